"""A long text window by window has the tokens of the whole text, whatever tokenises it."""

import random
from functools import partial

import numpy as np
import pytest
from small_tokenizers import make_tokenizer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from etw_lightning.data import joined_text
from etw_lightning.data.joined_text import Window, merged, tokenise, windows_of
from etw_lightning.models.loading import load_tokenizer

WORDS = [
    "mill",
    "river",
    "1958",
    "—",
    "Quill's",
    "Ünïcödé",
    "так",
    "ไทย",
    "河の町",
    "🙂",
    "fourteenlettersandmanymorebehindthem",
]
JOINTS = [" ", " ", " ", "\n", "\n\n", "  ", "", ". "]


def text_of(seed, length):
    draw = random.Random(seed)
    parts = [draw.choice(WORDS) + draw.choice(JOINTS) for _ in range(length)]
    return "".join(parts)


def _trained(model, trainer, before, normalizer=None):
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = before
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.train_from_iterator([text_of(9, 2000)], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bytes")
    make_tokenizer(folder)
    size = {"vocab_size": 300, "show_progress": False}
    unknown = {"special_tokens": ["<unk>"], **size}
    return {
        "bytes, digits in threes": load_tokenizer(str(folder)),
        "bytes, trimmed": _trained(
            models.BPE(unk_token="<unk>"),
            trainers.BpeTrainer(**unknown),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True),
        ),
        "words behind a mark": _trained(
            models.Unigram(),
            trainers.UnigramTrainer(unk_token="<unk>", **unknown),
            pre_tokenizers.Metaspace(prepend_scheme="first"),
            normalizers.NFKC(),
        ),
        "the whole text at once": _trained(
            models.Unigram(),
            trainers.UnigramTrainer(unk_token="<unk>", **unknown),
            pre_tokenizers.Split("\0", "isolated"),
        ),
        "pieces of words": _trained(
            models.WordPiece(unk_token="<unk>"),
            trainers.WordPieceTrainer(**unknown),
            pre_tokenizers.BertPreTokenizer(),
            normalizers.BertNormalizer(),
        ),
    }


NAMES = [
    "bytes, digits in threes",
    "bytes, trimmed",
    "words behind a mark",
    "the whole text at once",
    "pieces of words",
]


@pytest.mark.parametrize(
    ("name", "width", "overlap"),
    [
        *((name, *sizes) for name in NAMES for sizes in ((1000, 500), (3000, 1000))),
        # Rules that look no further than a word need little to agree on.
        *((name, 64, 32) for name in NAMES if name != "the whole text at once"),
    ],
)
def test_windows_have_the_tokens_of_the_whole(tokenizers, name, width, overlap):
    tokenizer = tokenizers[name]
    work = partial(tokenise, tokenizer)
    for seed, count in enumerate((1, 3, 40, 400)):
        texts = [text_of(100 * seed + n, count) for n in range(4)]
        windows = map(work, windows_of(texts, "\n\n", width, overlap))
        found = np.concatenate(list(merged(windows, work, overlap))).tolist()
        whole = tokenizer("\n\n".join(texts), add_special_tokens=False)["input_ids"]
        assert found == whole, (seed, count)


@pytest.mark.parametrize(
    "texts",
    [[], [""], ["", ""], ["a"], ["abcd"], ["abcdefgh" * 9], ["ab"] * 30, ["a" * 100, "b"]]
    + [["a" * length] for length in (9, 10, 11, 18)],
)
def test_windows_overlap_and_cover_the_text(texts):
    whole, reached = "--".join(texts), 0
    windows = list(windows_of(texts, "--", 8, 2))
    for number, (start, text) in enumerate(windows):
        assert start == max(8 * number - 2, 0)
        assert text == whole[start : 8 * number + 10]
        assert start <= reached
        reached = start + len(text)
    assert reached == len(whole)
    # One more as soon as there is all of one.
    assert len(windows) == 1 + max(len(whole) - 2, 0) // 8


def test_two_windows_that_do_not_agree_become_one():
    """Letters in pairs from wherever a window begins: nothing that is cut anew agrees."""

    def work(window):
        cut = [window.text[n : n + 2] for n in range(0, len(window.text), 2)]
        ids = np.array([sum(map(ord, two)) + 1000 * len(two) for two in cut])
        places = window.start + 2 * np.arange(len(cut))
        return joined_text.Tokenised(window, ids, places)

    text = "abcdefghijklmnopqrstuvwxyz" * 4
    asked = []

    def again(window):
        asked.append(len(window.text))
        return work(window)

    found = np.concatenate(list(merged(map(work, windows_of([text], "", 15, 5)), again, 5)))
    assert found.tolist() == work(Window(0, text)).ids.tolist()
    assert asked, "even borders agree by themselves, odd ones never"


def test_few_windows_are_in_memory_at_a_time():
    read = []

    def texts():
        for number in range(1000):
            read.append(number)
            yield "x" * 10

    windows = windows_of(texts(), "", 100, 10)
    next(windows)
    assert len(read) < 30


def test_windows_are_256_thousand_characters_apart_and_reach_2048_into_their_neighbours():
    text = "ab" * 150_000
    found = list(windows_of([text], ""))
    assert [(start, len(text)) for start, text in found] == [(0, 264_192), (260_096, 39_904)]
    assert found[1].text == text[260_096:]

    def work(window):
        ids = np.frombuffer(window.text.encode(), np.uint8)
        return joined_text.Tokenised(window, ids, window.start + np.arange(len(ids)))

    first, second = merged(map(work, found), None)
    assert (len(first), len(second)) == (262_144, 37_856)


def _tokenised(ids, places):
    return joined_text.Tokenised(Window(0, ""), np.array(ids), np.array(places))


@pytest.mark.parametrize(
    ("changes", "is_taken"),
    [
        ({}, True),
        ({"ids": {19: 0}}, True),  # before the border, behind character 20
        ({"ids": {20: 0}}, False),
        ({"ids": {24: 0}}, False),
        ({"ids": {25: 0}}, True),  # half of what they share of 10 characters
        ({"places": {20: 21}}, False),
        ({"places": {23: 22}}, False),
        ({"places": {24: 20}}, False),  # falls
        ({"places": {4: 3, 5: 3}}, True),  # of a character that is several tokens
    ],
)
def test_a_window_takes_over_where_half_of_what_is_shared_agrees(changes, is_taken):
    ids, places = 100 + np.arange(30), np.arange(30)
    for place, value in changes.get("ids", {}).items():
        ids[place] = value
    for place, value in changes.get("places", {}).items():
        places[place] = value
    left, right = _tokenised(ids, places), _tokenised(100 + np.arange(15, 40), np.arange(15, 40))
    for one, other, found in ((left, right, (20, 5)), (right, left, (5, 20))):
        expected = found if is_taken else None
        assert joined_text._takes_over(one, other, 20, 10) == expected
    # Nothing behind the border is nothing to agree on.
    assert joined_text._takes_over(_tokenised(ids[:20], places[:20]), right, 20, 10) is None
