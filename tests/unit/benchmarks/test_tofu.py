"""TOFU rows to examples and evaluation sets."""

import json
from dataclasses import replace
from typing import ClassVar

import pytest
from refusals import message

from etw_lightning.benchmarks import Benchmark
from etw_lightning.benchmarks.source import Source
from etw_lightning.benchmarks.tofu import (
    FORGET_SPLITS,
    HOLDOUT_OF,
    RETAIN_OF,
    SPLITS,
    TOFU,
    Columns,
    read_row,
)
from etw_lightning.schema import EvalSet, Example


def plain(name, n):
    return [{"question": f"{name} q{i}", "answer": f"{name} a{i}"} for i in range(n)]


def perturbed(name, n, paraphrased=True):
    rows = [{**row, "perturbed_answer": ["w0", "w1", "w2"]} for row in plain(name, n)]
    more = {"paraphrased_answer": "pa", "paraphrased_question": "pq"}
    return [{**row, **more} for row in rows] if paraphrased else rows


def write(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in files.items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text)
    return folder


@pytest.fixture
def root(tmp_path):
    return write(
        tmp_path,
        {
            "forget10": plain("forget", 4),
            "forget10_perturbed": perturbed("forget", 4),
            "retain90": plain("retain", 6),
            "retain_perturbed": perturbed("retain", 3),
            "holdout10": plain("holdout", 5),
            "real_authors_perturbed": perturbed("authors", 2, paraphrased=False),
            "world_facts_perturbed": perturbed("facts", 2, paraphrased=False),
        },
    )


def test_names_are_the_eighteen_configurations():
    assert len(SPLITS) == len(set(SPLITS)) == 18
    assert set(RETAIN_OF) == set(HOLDOUT_OF) == set(FORGET_SPLITS)
    assert {*RETAIN_OF.values(), *HOLDOUT_OF.values()} < set(SPLITS)
    assert all(holdout[-2:] == forget[-2:] for forget, holdout in HOLDOUT_OF.items())


def test_examples_have_row_numbers_as_ids(root):
    found = TOFU(Source(root=root)).examples("forget10", "data.forget_split")
    assert found[1] == Example("forget10/1", answer="forget a1", question="forget q1")
    assert [example.id for example in found] == [f"forget10/{i}" for i in range(4)]


def test_splits_are_joined_in_the_order_given(root):
    ids = [e.id for e in TOFU(Source(root=root)).examples("retain90+forget10", "data.retain_split")]
    assert ids == [f"retain90/{i}" for i in range(6)] + [f"forget10/{i}" for i in range(4)]


def test_perturbed_rows_are_filled(root):
    reader = TOFU(Source(root=root))
    (first, *_) = reader.examples("forget10_perturbed", "data.forget_split")
    assert first.paraphrased_answer == "pa"
    assert first.paraphrased_question == "pq"
    assert first.perturbed_answers == ("w0", "w1", "w2")
    (first, *_) = reader.examples("world_facts_perturbed", "data.forget_split")
    assert first.paraphrased_answer is None
    assert len(first.perturbed_answers) == 3


def test_the_retain_split_is_the_partner_unless_given(root):
    for forget, retain in RETAIN_OF.items():
        assert TOFU(Source(root=root), forget).retain_split == retain
    assert TOFU(Source(root=root), "forget10", "full").retain_split == "full"


def test_eval_sets(root):
    reader = TOFU(Source(root=root))
    sets = reader.eval_sets()
    assert tuple(sets) == TOFU.EVAL_SETS
    assert {name: len(s.examples) for name, s in sets.items()} == {
        "forget": 4,
        "retain": 3,
        "real_authors": 2,
        "world_facts": 2,
        "forget_paraphrased": 4,
        "retain_paraphrased": 3,
        "holdout": 5,
    }
    assert sets["forget"].examples[2].id == "forget10_perturbed/2"
    for name, s in sets.items():
        assert s == EvalSet(name, s.examples, max_new_tokens=0 if name == "holdout" else 200)
    short = TOFU(Source(root=root), max_new_tokens=7).eval_sets(["retain", "holdout"])
    assert list(short) == ["retain", "holdout"]
    assert [s.max_new_tokens for s in short.values()] == [7, 0]
    assert reader.eval_sets([]) == {}


@pytest.mark.parametrize("name", ["forget", "retain"])
def test_a_paraphrased_set_asks_the_same_rows_in_other_words(root, name):
    sets = TOFU(Source(root=root)).eval_sets([name, f"{name}_paraphrased"])
    asked, again = (s.examples for s in sets.values())
    assert {e.question for e in again} == {"pq"}
    for one, other in zip(asked, again, strict=True):
        assert other == replace(one, question=one.paraphrased_question)


def test_the_holdout_set_belongs_to_the_forget_split(root):
    write(root, {"holdout01": plain("other", 2)})
    for forget, text in (("forget10", "holdout a0"), ("forget01", "other a0")):
        (found,) = TOFU(Source(root=root), forget).eval_sets(["holdout"]).values()
        assert found.examples[0] == Example(
            f"{HOLDOUT_OF[forget]}/0", answer=text, question=text.replace("a0", "q0")
        )


def test_a_row_without_a_paraphrased_question_is_an_error_only_where_it_is_asked(root):
    rows = perturbed("forget", 3)
    del rows[1]["paraphrased_question"]
    write(root, {"forget10_perturbed": rows})
    reader = TOFU(Source(root=root))
    assert len(reader.eval_sets(["forget"])["forget"].examples) == 3
    text = message(reader.eval_sets, ["forget_paraphrased"])
    assert text.startswith("forget10_perturbed/1: no column 'paraphrased_question'")


def test_sets_not_asked_for_are_not_read(root):
    (root / "world_facts_perturbed.jsonl").unlink()
    reader = TOFU(Source(root=root))
    assert set(reader.eval_sets(["forget", "retain"])) == {"forget", "retain"}
    assert "world_facts_perturbed.jsonl" in message(reader.eval_sets)


def test_a_limit_on_the_forget_set_holds_for_its_perturbed_twin(root):
    reader = TOFU(Source(root=root, limits={"forget10": 2, "retain90": 5}))
    assert len(reader.examples("forget10", "k")) == 2
    assert len(reader.examples("retain90", "k")) == 5
    assert len(reader.eval_sets()["forget"].examples) == 2
    assert len(reader.eval_sets()["retain"].examples) == 3
    named = TOFU(Source(root=root, limits={"forget10": 2, "forget10_perturbed": 1}))
    assert len(named.eval_sets(["forget"])["forget"].examples) == 1


def test_a_root_with_a_folder_per_benchmark(root, tmp_path):
    outer = tmp_path / "outer"
    write(outer / "tofu", {"forget10": plain("forget", 1)})
    assert len(TOFU(Source(root=outer)).examples("forget10", "k")) == 1


def test_errors_name_the_key(root):
    source = Source(root=root)
    assert message(TOFU, source, "forget11") == (
        "data.forget_split must be forget01, forget05, forget10, forget05-forget01, "
        "forget10-forget01 or forget10-forget05; got 'forget11'. "
        "Did you mean 'forget10'?"
    )
    text = message(TOFU, source, "forget10", "retain90+retian")
    assert text.startswith("data.retain_split must be ")
    assert "got 'retian'" in text
    reader = TOFU(source)
    text = message(reader.examples, "forget1O", "data.full_split")
    assert text.startswith("data.full_split must be ")
    assert "Did you mean 'forget10'?" in text
    assert message(reader.eval_sets, ["forgot"]).startswith("data.eval_sets must be forget, retain")
    text = message(TOFU, Source(root=root, limits={"forget_10": 2}))
    assert text.startswith("each name in data.rows must be ")
    text = message(TOFU, Source(root=root, limits={"forget10": 0}))
    assert text.startswith("data.rows.forget10 must be ")


@pytest.mark.parametrize("missing", ["perturbed_answer", "paraphrased_answer"])
def test_a_perturbed_row_without_its_columns_is_an_error(root, missing):
    rows = perturbed("forget", 3)
    del rows[1][missing]
    write(root, {"forget10_perturbed": rows})
    text = message(TOFU(Source(root=root)).eval_sets, ["forget"])
    assert text.startswith(f"forget10_perturbed/1: no column {missing!r}; its columns are question")


def test_an_empty_answer_is_an_error(root):
    write(root, {"forget10": [*plain("forget", 2), {"question": "q", "answer": "  "}]})
    text = message(TOFU(Source(root=root)).examples, "forget10", "data.forget_split")
    assert text == "forget10/2: column 'answer' is empty; fill it or take the row out."


def test_rows_with_other_column_names():
    columns = Columns(question="prompt", answer="response", perturbed_answer="wrong")
    row = {"prompt": "q", "response": "a", "wrong": ["w"], "paraphrased_answer": None}
    assert read_row(row, "mine/0", columns=columns) == Example(
        "mine/0", answer="a", question="q", perturbed_answers=("w",)
    )


def test_a_benchmark_of_the_same_shape_needs_only_its_names(tmp_path):
    class Small(TOFU):
        name: ClassVar[str] = "small"
        hub: ClassVar[str | None] = None
        retain_of: ClassVar[dict[str, str]] = {"forget": "retain"}
        split_names: ClassVar[tuple[str, ...]] = ("forget", "retain", "forget_perturbed")

    write(tmp_path / "small", {"forget_perturbed": perturbed("forget", 3)})
    reader: Benchmark = Small(Source(root=tmp_path, limits={"forget": 2}), "forget")
    assert reader.retain_split == "retain"
    assert len(reader.eval_sets(["forget"])["forget"].examples) == 2
    assert message(Small, Source(), "forget10").startswith("data.forget_split must be forget;")


def test_what_a_split_adds_to_a_smaller_one_is_a_split(root):
    """TOFU's forget splits lie at the end of the next, its holdout splits at the beginning."""
    write(
        root,
        {
            "forget01": plain("forget", 4)[3:],
            "forget01_perturbed": perturbed("forget", 4)[3:],
            "forget05": plain("forget", 4)[1:],
            "forget05_perturbed": perturbed("forget", 4)[1:],
            "holdout01": plain("holdout", 2),
            "holdout05": plain("holdout", 5),
        },
    )
    reader = TOFU(Source(root=root), "forget05-forget01")
    assert reader.retain_split == "retain95"
    found = reader.examples("forget05-forget01")
    assert [one.question for one in found] == ["forget q1", "forget q2"]
    assert found[0].id == "forget05-forget01/0"
    sets = reader.eval_sets(["forget", "holdout"])
    assert [one.question for one in sets["forget"].examples] == ["forget q1", "forget q2"]
    assert sets["forget"].examples[0].perturbed_answers == ("w0", "w1", "w2")
    assert [one.question for one in sets["holdout"].examples] == [
        f"holdout q{i}" for i in (2, 3, 4)
    ]
    few = TOFU(Source(root=root, limits={"forget05-forget01": 1}), "forget05-forget01")
    assert len(few.examples("forget05-forget01")) == 1
    assert len(few.eval_sets(["forget"])["forget"].examples) == 1
