"""Records of the retain and the target model, held against this run's rows."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from etw_lightning.data.encode import Encoder
from etw_lightning.schema import Conventions, EvalSet, Example, InputError, Record, Turn
from etw_lightning.scoring import other_results
from etw_lightning.scoring.cache.keys import rows_hash
from etw_lightning.scoring.other_results import checked_records, missing_results, read_results
from etw_lightning.scoring.provenance import texts_hashes
from etw_lightning.scoring.retain_results import RetainResults

KNOWN = {
    "template": {"key": "k"}, "conventions": {}, "dtype": "float32", "precision": "32-true"
}  # fmt: skip
ROWS = [Example("forget/0", "In Paris.", "Where?"), Example("forget/1", "1956", "When?")]


@pytest.fixture
def warned(monkeypatch):
    said = []
    monkeypatch.setattr(other_results, "warn_first", said.append)
    return said


@pytest.mark.parametrize("role", ["retain", "target"])
@pytest.mark.parametrize(
    ("is_published", "provenance", "conventions", "said"),
    [
        (True, {}, Conventions(), "is a log of open-unlearning, scored by its own conventions"),
        (True, {}, Conventions.peer(), ""),
        (False, KNOWN, Conventions(), ""),
        (False, KNOWN, Conventions.peer(), ""),
        (False, {**KNOWN, "dtype": None}, Conventions(), "does not say with what dtype its"),
    ],
)
def test_what_can_not_be_compared_is_told(
    monkeypatch, warned, role, is_published, provenance, conventions, said
):
    key = f"data.{role}_results"
    results = RetainResults("there", {}, provenance, key, is_published)
    monkeypatch.setattr(
        other_results, "load_retain_results", lambda *given: given == ("there", key) and results
    )
    assert read_results("there", role, conventions) is results
    assert len(warned) == bool(said)
    assert all(text.startswith(f"{key}: there ") and said in text for text in warned)


def test_the_way_to_missing_results_is_told():
    tofu = SimpleNamespace(name="tofu", retain_split="retain90", forget_split="forget10")
    other = SimpleNamespace(name="jsonl", retain_split="r", forget_split="f")
    assert missing_results("target", tofu).startswith("data.target_results is missing")
    assert "--config" not in missing_results("target", tofu)
    said = missing_results("retain", tofu)
    assert said.startswith("data.retain_results is missing")
    assert said.endswith("--data.split retain90 --data.forget_split forget10")
    assert missing_results("retain", other).endswith("score one now.")


def record(row, **changes):
    example = ROWS[row]
    fields = {"answer": example.answer, "question": example.question, **changes}
    return Record("forget", example.id, **fields)


def check(tokenizer, *records, is_published=False):
    results = RetainResults("there", {"forget": list(records)}, is_published=is_published)
    return checked_records(results, "forget", ROWS, Encoder(tokenizer))


@pytest.mark.parametrize("is_published", [False, True])
def test_records_of_these_rows_pass(tiny_tokenizer, is_published):
    for first in (record(0), record(0, answer=" In  Paris ."), record(0, answer="")):
        found = check(tiny_tokenizer, first, record(1), is_published=is_published)
        assert found == [first, record(1)]
    check(tiny_tokenizer, record(0, question=None), record(1))


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({"answer": "In Rome."}, "answer"),
        ({"question": "Who?"}, "question"),
        ({"answer": "In Rome.", "question": "Who?"}, "answer"),
    ],
)
def test_records_of_other_rows_are_refused(tiny_tokenizer, changes, wrong):
    message = f"there holds another {wrong} in row forget/0 than this run"
    with pytest.raises(InputError, match=message):
        check(tiny_tokenizer, record(0, **changes), record(1))


CHOICE = Example("c/0", "Rome", "Where?", choices=("Rome", "Bonn"), right_choice=0)
TOFU = Example("f/0", "Rome", "Where?", paraphrased_answer="In Rome", perturbed_answers=("a", "b"))


@pytest.mark.parametrize(
    ("example", "changes", "wrong"),
    [
        (TOFU, {"perturbed_losses": (1.0, 2.0), "paraphrase": "In Rome"}, None),
        (TOFU, {"perturbed_losses": (1.0,)}, "number of wrong answers"),
        (TOFU, {"perturbed_losses": (1.0, 2.0, 3.0)}, "number of wrong answers"),
        (TOFU, {"paraphrase": "In Bonn"}, "paraphrased answer"),
        (CHOICE, {"choices": ("Rome", "Bonn"), "right_choice": 0}, None),
        (CHOICE, {"choices": ("Bonn", "Rome"), "right_choice": 1}, "list of options"),
        (CHOICE, {"choices": ("Rome", "Bonn"), "right_choice": 1}, "right option"),
    ],
)
def test_what_else_was_scored_of_a_row_must_be_this_run_s(
    tiny_tokenizer, example, changes, wrong, warned
):
    found = Record("forget", example.id, example.answer, example.question, **changes)
    results = RetainResults("there", {"forget": [found]})
    if wrong is None:
        assert checked_records(results, "forget", [example], Encoder(tiny_tokenizer)) == [found]
        return
    with pytest.raises(InputError, match=f"there holds another {wrong} in row {example.id} than"):
        checked_records(results, "forget", [example], Encoder(tiny_tokenizer))


@pytest.mark.parametrize(
    ("then", "is_told"),
    [
        (TOFU, False),
        (replace(TOFU, id="other/0"), False),
        (replace(TOFU, alternative_answer="I don't know."), False),
        (replace(TOFU, perturbed_answers=("a", "c")), True),
    ],
)
def test_wrong_answers_that_may_be_others_are_told(tiny_tokenizer, warned, then, is_told):
    """Older records tell of them by one hash of whole rows alone."""
    found = Record("forget", then.id, then.answer, then.question, perturbed_losses=(1.0, 2.0))
    sets = {"forget": {"hash": rows_hash(EvalSet("forget", (then,)))}}
    results = RetainResults("there", {"forget": [found]}, {"sets": sets})
    now = replace(TOFU, alternative_answer=then.alternative_answer)
    assert checked_records(results, "forget", [now], Encoder(tiny_tokenizer)) == [found]
    assert [text.partition(" scored ")[0] for text in warned] == [
        "data.retain_results: there"
    ] * is_told


CHAT = (Turn("user", "Hello"),)


@pytest.mark.parametrize(
    ("then", "wrong"),
    [
        (replace(TOFU, id="other/0", alternative_answer="I don't know."), None),
        (replace(TOFU, paraphrased_answer="It is Rome"), None),
        (replace(TOFU, perturbed_answers=("a", "c")), "wrong answers"),
        (replace(TOFU, perturbed_answers=("b", "a")), "wrong answers"),
        (replace(TOFU, turns=CHAT), "questions"),
        (replace(TOFU, verbatim=True), "questions"),
    ],
)
def test_texts_that_records_do_not_hold_are_this_run_s_or_refused(
    tiny_tokenizer, warned, then, wrong
):
    """What was not scored, here the paraphrase, may be another."""
    found = Record("forget", then.id, then.answer, then.question, perturbed_losses=(1.0, 2.0))
    made = {"hash": "other", "texts": texts_hashes(EvalSet("forget", (then,)))}
    results = RetainResults("there", {"forget": [found]}, {"sets": {"forget": made}})
    if wrong is None:
        assert checked_records(results, "forget", [TOFU], Encoder(tiny_tokenizer)) == [found]
    else:
        with pytest.raises(InputError, match=f"there holds scores of other {wrong} of 'forget'"):
            checked_records(results, "forget", [TOFU], Encoder(tiny_tokenizer))
    assert not warned


def test_a_published_log_asks_with_the_whole_prompt(tiny_tokenizer):
    check(tiny_tokenizer, record(0, question="[INST] Where?"), record(1), is_published=True)
    with pytest.raises(InputError, match="holds another answer in row forget/1"):
        check(tiny_tokenizer, record(0), record(1, answer="1957"), is_published=True)


def test_records_of_other_tokens_or_of_fewer_rows_are_refused(tiny_tokenizer):
    with pytest.raises(InputError, match="holds 1 rows of 'forget', this run scores 2"):
        check(tiny_tokenizer, record(0))
    results = RetainResults("there", {"forget": [record(0), record(1)]}, {"template": {"key": "x"}})
    with pytest.raises(InputError, match=r"was made with data\.template None"):
        checked_records(results, "forget", ROWS, Encoder(tiny_tokenizer))
