"""The user's own rows."""

import json

import pytest
from refusals import message

from etw_lightning.benchmarks.jsonl import JSONL
from etw_lightning.benchmarks.source import Source
from etw_lightning.benchmarks.tofu import Columns
from etw_lightning.schema import Example, InputError

QA = [{"question": f"q{i}", "answer": f"a{i}"} for i in range(3)]
TEXT = [{"text": "t0"}, {"text": "t1"}]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def root(tmp_path):
    write(tmp_path / "forget.jsonl", QA)
    write(tmp_path / "retain.jsonl", TEXT)
    return tmp_path


def test_questions_and_raw_text(root):
    reader = JSONL(Source(root=root), "forget.jsonl", "retain")
    assert reader.examples("forget.jsonl", "k")[2] == Example("forget.jsonl/2", "a2", question="q2")
    assert reader.examples("retain", "k") == [
        Example("retain/0", "t0"),
        Example("retain/1", "t1"),
    ]
    assert reader.split_names == ("forget.jsonl", "retain")


def test_files_are_joined_unless_one_has_the_whole_name(root):
    reader = JSONL(Source(root=root, limits={"retain": 1}), "forget", "retain+forget.jsonl")
    assert [one.id for one in reader.examples(reader.retain_split, "k")] == [
        "retain/0",
        *(f"forget.jsonl/{n}" for n in range(3)),
    ]
    assert reader.split_names == ("forget", "retain", "forget.jsonl")
    assert message(reader.examples, "retain+gone", "data.retain_split").startswith(
        "data.retain_split is 'gone': no file "
    )
    write(root / "c++.jsonl", TEXT)
    for name in ("c++", "c++.jsonl"):
        reader = JSONL(Source(root=root), name, "retain")
        assert [one.id for one in reader.examples(name, "k")] == [f"{name}/0", f"{name}/1"]
        assert reader.split_names == (name, "retain")


def test_eval_sets_generate_only_after_questions(root):
    sets = JSONL(Source(root=root), "forget", "retain", max_new_tokens=9).eval_sets()
    assert tuple(sets) == ("forget", "retain")
    assert JSONL.EVAL_SETS == ("forget", "retain", "holdout")
    assert (sets["forget"].losses, sets["forget"].max_new_tokens) == (True, 9)
    assert (sets["retain"].losses, sets["retain"].max_new_tokens) == (True, 0)
    assert list(JSONL(Source(root=root), "forget", "x").eval_sets(["forget"])) == ["forget"]


def test_columns_have_the_users_names(root):
    row = {"prompt": "q", "response": "a", "text": "unused", "wrong": ["w"], "same": "s"}
    write(root / "mine.jsonl", [row])
    columns = Columns("prompt", "response", "body", "other", "same", "wrong")
    reader = JSONL(Source(root=root), "mine", "retain", columns)
    assert reader.examples("mine", "k") == [
        Example("mine/0", "a", question="q", paraphrased_answer="s", perturbed_answers=("w",))
    ]


def test_absolute_files_and_limits(root):
    file = str(root / "forget.jsonl")
    reader = JSONL(Source(limits={file: 1}), file, str(root / "retain.jsonl"))
    assert [e.id for e in reader.examples(file, "k")] == [f"{file}/0"]
    text = message(JSONL, Source(limits={"forgot": 1}), "forget", "retain")
    assert text.startswith("each name in data.rows must be forget or retain; got 'forgot'.")


def test_errors_name_row_and_columns(root):
    write(root / "odd.jsonl", [*QA, {"input": "x", "output": "y"}])
    write(root / "both.jsonl", [{"question": "q", "answer": "a", "text": "t"}])
    write(root / "half.jsonl", [{"answer": "a"}])
    write(root / "mixed.jsonl", [*QA, *TEXT])
    reader = JSONL(Source(root=root), "mixed", "retain")
    assert message(reader.examples, "odd", "k") == (
        "odd/3: neither 'text' nor 'question' and 'answer', nor 'messages'; its columns are input, "
        "output. Name the right ones in data.columns."
    )
    assert message(reader.examples, "both", "k").startswith("both/0: both 'text' and 'question'")
    assert message(reader.examples, "half", "k") == (
        "half/0: no column 'question'; its columns are answer. Name the right ones in "
        "data.columns, as by data.columns.question NAME."
    )
    assert message(reader.eval_sets).startswith("data.forget_split is 'mixed', which mixes")
    assert len(reader.examples("mixed", "k")) == 5


def test_errors_name_the_key(root):
    reader = JSONL(Source(root=root), "forgot.jsonl", "retain")
    text = message(reader.eval_sets)
    assert text.startswith("data.forget_split is 'forgot.jsonl': no file ")
    assert "forget.jsonl" in text
    assert message(JSONL, Source(root=root), "", "retain").startswith("data.forget_split must name")
    assert message(reader.eval_sets, ["verbmem"]).startswith("data.eval_sets must be forget, reta")
    assert message(reader.eval_sets, ["holdout"]).startswith("data.holdout_split is missing: ")


def test_holdout_rows_are_scored_and_not_continued(root):
    write(root / "unseen.jsonl", QA[:2])
    reader = JSONL(Source(root=root), "forget", "retain", holdout_split="unseen")
    found = reader.eval_sets(["holdout"])["holdout"]
    assert [one.id for one in found.examples] == ["unseen/0", "unseen/1"]
    assert (found.losses, found.max_new_tokens) == (True, 0)
    assert reader.split_names == ("forget", "retain", "unseen")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("mine.csv", "question,answer\n", "mine.csv has no rows; give at least one."),
        ("mine.jsonl", '{"question": "q", "answer": "a"} b\n', "mine.jsonl line 1 is not JSON: "),
        ("mine.json", "[1]", "mine.json row 0 must be a JSON object with named columns; got 1."),
        ("mine.tsv", "question\tanswer\nq\n", "mine.tsv line 2 has 1 cells, the first line "),
        ("mine.parquet", "no table", "mine.parquet can't be read: "),
    ],
)
@pytest.mark.parametrize("key", ["data.forget_split", "data.retain_split", "data.holdout_split"])
def test_what_is_wrong_with_a_file_begins_with_the_key_that_names_it(
    tmp_path, key, name, content, said
):
    (tmp_path / name).write_text(content)
    reader = JSONL(Source(root=tmp_path), name, name, holdout_split=name)
    with pytest.raises(InputError) as caught:
        reader.examples(name, key)
    assert str(caught.value).startswith(f"{key} is {name!r}: {tmp_path}/{said}")


def test_a_file_that_is_named_twice_is_refused(tmp_path):
    """Its rows would have the ids of others, and be pushed twice as often without a word."""
    (tmp_path / "a.jsonl").write_text('{"question": "q", "answer": "a"}\n')
    (tmp_path / "b.jsonl").write_text('{"question": "q", "answer": "b"}\n')
    reader = JSONL(Source(root=tmp_path), "a+b", "a")
    assert [one.id for one in reader.examples("a+b")] == ["a/0", "b/0"]
    said = r"^data.retain_split is 'a\+b\+a', which names 'a' twice"
    with pytest.raises(InputError, match=said):
        reader.examples("a+b+a", "data.retain_split")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", '{"question": "q", "answer": "b", "answer": "c"}\n'),
        ("a.json", '[{"question": "q", "answer": "b", "answer": "c"}]'),
        ("a.jsonl", '{"messages": [{"answer": 1, "answer": 2}]}\n'),
    ],
)
def test_a_name_that_stands_twice_in_an_object_is_refused(tmp_path, name, content):
    """One of both would be read, and nobody could say which."""
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match="names 'answer' twice in one object; take one out"):
        JSONL(Source(root=tmp_path), name, name).examples(name)
