"""MUSE rows to texts, prompts and evaluation sets."""

import json

import pytest
from refusals import message

from etw_lightning.benchmarks.muse import KNOWMEM_STOPS, MUSE, TEXT_SPLITS, few_shot_prompt
from etw_lightning.benchmarks.source import Source
from etw_lightning.schema import Example

FILES = {
    "raw/forget": [{"text": "one"}, {"text": ""}, {"text": "two\n"}, {"text": "one"}],
    "raw/retain1": [{"text": "kept"}],
    "verbmem/forget": [{"prompt": "Once upon", "gt": " a time\n"}],
    "knowmem/forget_qa": [{"question": "Q1?", "answer": "A1"}, {"question": "Q2?", "answer": "A2"}],
    "knowmem/forget_qa_icl": [
        {"question": "S1?", "answer": "T1"},
        {"question": "S2?", "answer": "T2"},
    ],
    "privleak/forget": [{"text": "in"}],
    "privleak/holdout": [{"text": "out"}],
    "privleak/retain": [{"text": "stay"}],
}


@pytest.fixture
def root(tmp_path):
    for name, rows in FILES.items():
        path = tmp_path / "muse_news" / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_texts_keep_their_row_numbers_and_repeats_but_not_empty_rows(root):
    found = MUSE(Source(root=root)).examples("raw/forget", "data.forget_split")
    assert found == [
        Example("raw/forget/0", "one"),
        Example("raw/forget/2", "two\n"),
        Example("raw/forget/3", "one"),
    ]


def test_splits_are_joined(root):
    found = MUSE(Source(root=root / "muse_news")).examples("raw/retain1+raw/forget", "k")
    assert [e.id for e in found] == ["raw/retain1/0", *(f"raw/forget/{i}" for i in (0, 2, 3))]


def test_a_limit_counts_rows_before_empty_ones_are_dropped(root):
    reader = MUSE(Source(root=root, limits={"raw/forget": 3}))
    assert [e.id for e in reader.examples("raw/forget", "k")] == ["raw/forget/0", "raw/forget/2"]


def test_rows_that_are_all_empty_are_an_error(root):
    (root / "muse_news/raw/holdout.jsonl").write_text('{"text": ""}\n')
    text = message(MUSE(Source(root=root)).examples, "raw/holdout", "k")
    assert text.startswith("raw/holdout holds empty rows only")


def test_verbmem_goes_on_from_the_prompt(root):
    (found,) = MUSE(Source(root=root)).eval_sets(["verbmem"]).values()
    # A space is put between the two, whatever stands there.
    assert found.examples == (
        Example("verbmem/forget/0", "  a time\n", question="Once upon", verbatim=True),
    )
    assert (found.losses, found.max_new_tokens, found.stop_strings) == (True, 128, ())


def test_knowmem_shows_the_shots_first(root):
    (found,) = MUSE(Source(root=root)).eval_sets(["knowmem_forget"]).values()
    assert found.examples[1] == Example(
        "knowmem/forget_qa/1",
        "A2",
        question=(
            "Question: S1?\nAnswer: T1\n\nQuestion: S2?\nAnswer: T2\n\nQuestion: Q2?\nAnswer: "
        ),
        verbatim=True,
    )
    assert (found.losses, found.max_new_tokens, found.stop_strings) == (False, 32, KNOWMEM_STOPS)
    assert few_shot_prompt([], "Q?") == "Question: Q?\nAnswer: "


def test_privleak_keeps_token_log_probabilities(root):
    splits = ("forget", "holdout", "retain")
    sets = MUSE(Source(root=root)).eval_sets([f"privleak_{split}" for split in splits[::-1]])
    assert list(sets) == [f"privleak_{split}" for split in splits]
    for split, found in zip(splits, sets.values(), strict=True):
        assert (found.losses, found.max_new_tokens) == (True, 0)
        assert found.examples[0].question is None
        assert found.examples[0].id == f"privleak/{split}/0"


def test_a_missing_file_of_a_set_is_an_error(root):
    text = message(MUSE(Source(root=root)).eval_sets)
    assert text.startswith("data.root: no file ")
    assert "retain_qa" in text
    text = message(MUSE(Source(root=root / "muse_news"), "books").examples, "raw/holdout", "k")
    assert "holdout.jsonl" in text


def test_names_and_data_sets_follow_the_corpus():
    for corpus, hub in (("news", "MUSE-News"), ("books", "MUSE-Books")):
        reader = MUSE(Source(), corpus)
        assert reader.name == f"muse_{corpus}"
        assert reader.source.hub == f"muse-bench/{hub}"
        assert (reader.forget_split, reader.retain_split) == ("raw/forget", "raw/retain1")
    assert len(set(TEXT_SPLITS)) == len(TEXT_SPLITS) == 18


def test_errors_name_the_key(root):
    source = Source(root=root)
    text = message(MUSE, source, "film")
    assert text.startswith("data.corpus must be news or books; got 'film'")
    text = message(MUSE, source, "news", "raw/forgot")
    assert text.startswith("data.forget_split must be raw/forget, ")
    assert text.endswith("Did you mean 'raw/forget'?")
    assert message(MUSE, source, "news", "raw/forget", "forget").startswith(
        "data.retain_split must"
    )
    text = message(MUSE(source).examples, "knowmem/forget_qa", "data.forget_split")
    assert text.startswith("data.forget_split must be raw/forget, ")
    assert message(MUSE(source).eval_sets, ["verbmen"]).endswith("Did you mean 'verbmem'?")
    text = message(MUSE, Source(root=root, limits={"forget": 3}))
    assert text.startswith("each name in data.rows must be raw/forget, ")


def test_a_row_without_text_is_an_error(root):
    (root / "muse_news/raw/holdout.jsonl").write_text('{"body": "x"}\n')
    text = message(MUSE(Source(root=root)).examples, "raw/holdout", "k")
    assert text == "raw/holdout/0: no column 'text'; its columns are body."
