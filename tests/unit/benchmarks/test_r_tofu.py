"""R-TOFU's files to requests, traces, answers and evaluation sets."""

import json

import pytest
from refusals import message

from etw_lightning.benchmarks.r_tofu import CLOSE, OPEN, RTOFU, thinking, without_knowing
from etw_lightning.benchmarks.source import Source
from etw_lightning.schema import Example


def row(name, **more):
    return {"question": f"Who is {name}?", "answer": f"{name} is one.", **more}


FILES = {
    "forget01": [
        row(f"F{task}{i}", task_id=str(task), cot=f"Hm, F{task}{i}.")
        for task in (2, 1)
        for i in range(2)
    ],
    "retain90": [row(f"R{i}", cot="Well.\n\nR.") for i in range(3)],
    "retain_perturbed": [row("R0", cot="Well.\n\nR.", perturbed_answer=["x"])],
    "real_authors_perturbed": [row("Basil", cot="", perturbed_answer=["x"], original_answer="y")],
    "world_facts_perturbed": [row("Paris", cot="", perturbed_answer=["x"], original_answer="y")],
}


@pytest.fixture
def root(tmp_path):
    for name, rows in FILES.items():
        # Lines in a file called .json, as the repository has them.
        (tmp_path / f"{name}.json").write_text("".join(json.dumps(one) + "\n" for one in rows))
    return tmp_path


def test_a_request_is_its_rows_in_their_order(root):
    found = RTOFU(Source(root=root)).examples("forget01/1")
    assert [one.id for one in found] == ["forget01/1/0", "forget01/1/1"]
    assert found[1] == Example(
        "forget01/1/1",
        "Hm, F11.\n</think>\n\nF11 is one.",
        "Who is F11?",
        lead="<think>\n",
    )


@pytest.mark.parametrize(
    ("part", "lead", "answer"),
    [
        ("both", "<think>\n", "Hm, F10.\n</think>\n\nF10 is one."),
        ("trace", "<think>\n", "Hm, F10."),
        ("answer", "<think>\nHm, F10.\n</think>\n\n", "F10 is one."),
    ],
)
def test_the_part_that_is_pushed_down_is_the_forget_rows_alone(root, part, lead, answer):
    reader = RTOFU(Source(root=root), forget_part=part)
    first = reader.examples("forget01/1")[0]
    assert (first.lead, first.answer) == (lead, answer)
    kept = reader.examples("retain90+forget01/2", "data.retain_split")
    assert [one.lead for one in kept] == ["<think>\n"] * 5
    assert kept[3].answer == "Hm, F20.\n</think>\n\nF20 is one."


def test_what_stays_are_the_retain_file_and_the_requests_to_come(root):
    source = Source(root=root)
    assert RTOFU(source).retain_split == "retain90+" + "+".join(
        f"forget01/{request}" for request in range(2, 11)
    )
    assert RTOFU(source, "forget05/9").retain_split == "retain50+forget05/10"
    # The tenth request of forget10 is the file that stays.
    assert RTOFU(source, "forget10/8").retain_split == "retain10+forget10/9"
    assert RTOFU(source, "forget10/9").retain_split == "retain10"


def test_the_sets_are_the_whole_and_its_parts(root):
    sets = RTOFU(Source(root=root), forget_part="answer").eval_sets()
    assert list(sets) == list(RTOFU.EVAL_SETS)
    said = {name: (one.examples[0].lead, one.examples[0].answer) for name, one in sets.items()}
    trace, answer = "Hm, F10.", "F10 is one."
    assert said["forget"] == (OPEN, trace + CLOSE + answer)
    assert said["forget_trace"] == (OPEN, trace)
    assert said["forget_answer"] == (OPEN + trace + CLOSE, answer)
    assert said["retain"] == (OPEN, "Well.\n\nR." + CLOSE + "R0 is one.")
    assert said["retain_answer"] == (OPEN + "Well.\n\nR." + CLOSE, "R0 is one.")
    assert said["real_authors"] == (OPEN, "Basil is one.")
    asked = {name: (one.losses, one.max_new_tokens) for name, one in sets.items()}
    assert asked == {
        "forget": (True, 1024),
        "forget_trace": (True, 0),
        "forget_answer": (True, 0),
        "retain": (True, 1024),
        "retain_answer": (True, 0),
        "real_authors": (False, 1024),
        "world_facts": (False, 1024),
    }


def test_a_limit_is_of_a_request(root):
    reader = RTOFU(Source(root=root, limits={"forget01/2": 1}))
    assert [one.id for one in reader.examples("forget01/2")] == ["forget01/2/0"]
    assert len(reader.examples("forget01/1")) == 2


def test_a_refusal_is_thought_and_said_where_both_are_learnt():
    plain = Example("f/0", "Basil.", "Who?")
    assert without_knowing(thinking(plain, "Hm."), "No.") == "No.\n</think>\n\nNo."
    assert without_knowing(thinking(plain, "Hm.", "answer"), "No.") == "No."
    assert without_knowing(thinking(plain, "Hm.", "trace"), "No.") == "No."
    assert without_knowing(plain, "No.") == "No."


def test_errors_name_the_key(root):
    source = Source(root=root)
    assert message(RTOFU, source, "retain90").startswith("data.forget_split must be forget01/1, ")
    assert message(RTOFU, source, "forget01/1", "", "thoughts").startswith(
        "data.forget_part must be both, trace or answer; got 'thoughts'"
    )
    assert message(RTOFU, Source()).startswith("data.root is None and data.hub None, but R-TOFU")
    assert message(RTOFU(source).examples, "forget01/7") == (
        "forget01/7: forget01 has no request 7; it has 1, 2."
    )
    (root / "forget01.json").write_text(json.dumps(row("A", cot="x")))
    assert "forget01/0: no column 'task_id'" in message(RTOFU(source).examples, "forget01/1")
    (root / "retain90.json").write_text(json.dumps(row("A", cot=" ")))
    assert "column 'cot' is empty" in message(RTOFU(source).examples, "retain90", "k")
