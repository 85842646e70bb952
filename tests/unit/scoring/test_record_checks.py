"""Stored records that no model can have made are refused, row and field named."""

import json
import math
from dataclasses import replace

import pytest

from etw_lightning.schema import InputError, Record
from etw_lightning.scoring.record_checks import check_records
from etw_lightning.scoring.retain_results import load_retain_results, load_set, save_records

GOOD = Record(
    "forget", "f/0", "a b", question="q", answer_loss=0.5, paraphrase_loss=0.0,
    perturbed_losses=(1.0, 2), token_logps=(-0.1, -3.0), token_entropies=(0.0, 2.0),
    token_variances=(0.0, 1.0), token_matches=(1, 0), token_spans=((0, 1), (1, 3)),
    gradient_norm=0.2, generation="g", choices=("x", "y"), choice_logps=(-1.0, 0.0),
    choice_num_tokens=(1, 2), right_choice=1, min_k=0.1,
)  # fmt: skip


def test_what_models_say_passes():
    check_records([GOOD, Record("forget", "f/1", "a")], "k: file")
    # JSON's whole numbers have no largest.
    check_records([replace(GOOD, answer_loss=10**30)], "k: file")


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("token_logps", (-1.0, 0.5), "0 at most, as p is at most 1; got 0.5."),
        ("choice_logps", (0.1, -1.0), "0 at most, as p is at most 1"),
        ("answer_loss", -0.7, "in its range"),
        ("perturbed_losses", (1.0, -2.0), "in its range"),
        ("token_entropies", (-1.0, 0.0), "in its range"),
        ("token_matches", (2, 0), "in its range"),
        ("gradient_norm", -1.0, "in its range"),
        ("answer_loss", math.nan, "in its range"),
        ("token_logps", (-math.inf, -1.0), "0 at most"),
        ("answer_loss", "0.5", "a number; got '0.5'"),
        ("answer_loss", (0.5,), "a number; got (0.5,)"),
        ("right_choice", [1], "a number; got [1]"),
        ("token_logps", -0.5, "numbers; got -0.5"),
        ("perturbed_losses", 0.5, "numbers; got 0.5"),
        ("token_entropies", (0.0,), "one of each of the 2 tokens that token_logps has; got '1 of"),
        ("token_spans", ((0, 1),) * 3, "one of each of the 2 tokens that token_logps has"),
        ("token_logps", ("-1", -1.0), "numbers"),
        ("token_matches", (True, 0), "numbers"),
        ("right_choice", "1", "a number"),
        ("generation", 3, "a text; got 3"),
    ],
)
def test_what_no_model_says_is_refused(field, value, said):
    wrong = [GOOD, replace(GOOD, **{field: value})]
    with pytest.raises(InputError) as error:
        check_records(wrong, "k: file")
    assert str(error.value).startswith(f"k: file row 1: {field} must be {said}")
    assert "\n" not in str(error.value)


def test_every_way_of_reading_looks(tmp_path):
    save_records(tmp_path, {"forget": [replace(GOOD, token_logps=(0.5, -1.0))]})
    for read in (load_retain_results, lambda path: load_set(path / "records/forget.jsonl.gz")):
        with pytest.raises(InputError, match="row 0: token_logps must be 0 at most"):
            read(tmp_path)


def test_published_logs_are_looked_at_too(tmp_path):
    def log(loss):
        rows = {"0": {"prob": math.exp(-loss), "avg_loss": loss}}
        path = tmp_path / "TOFU_EVAL.json"
        path.write_text(json.dumps({"forget_Q_A_Prob": {"value_by_index": rows}}))
        return path

    found = load_retain_results(log(0.25))
    assert (found.is_published, found.records["forget"][0].answer_loss) == (True, 0.25)
    with pytest.raises(InputError, match="forget row 0: answer_loss must be in its range"):
        load_retain_results(log(-0.25))


#: Fields by the least and the largest number that they may hold, None for any.
BOUNDS = {
    (-1e-4, None): (
        "answer_loss", "paraphrase_loss", "perturbed_losses", "min_k", "token_entropies",
        "token_variances",
    ),
    (None, 1e-4): ("token_logps", "choice_logps"),
    (0.0, None): ("gradient_norm", "token_spans", "choice_num_tokens", "right_choice"),
    (0.0, 1.0): ("token_matches",),
}  # fmt: skip


@pytest.mark.parametrize(
    ("least", "largest", "field"),
    [(*bounds, field) for bounds, fields in BOUNDS.items() for field in fields],
)
def test_numbers_may_lie_on_their_bounds_and_not_beyond(least, largest, field):
    def check(number):
        value = (number, number) if isinstance(getattr(GOOD, field), tuple) else number
        check_records([replace(GOOD, **{field: value})], "k: file")

    fits = [least, largest, least is None and -1e30, largest is None and 1e30]
    for number in (one for one in fits if one not in (None, False)):
        check(number)
    beyond = [None if least is None else least - 1e-6, None if largest is None else largest + 1e-6]
    for number in (*(one for one in beyond if one is not None), math.nan, math.inf, -math.inf):
        with pytest.raises(InputError, match=field):
            check(number)
