"""What an attack came to: recovered shares and the meta-evaluation's scores, worked out by hand."""

import pytest

from etw_lightning.attacks.results import print_outcome
from etw_lightning.attacks.running import AttackOutcome
from etw_lightning.metrics import Metric


def outcome(name, direction, *values, own=()):
    numbers = [{name: Metric(value, direction, 4)} for value in values]
    return AttackOutcome(*numbers, own=frozenset(own))


@pytest.mark.parametrize(
    ("name", "direction"),
    [("forget_probability", "down"), ("mia_min_k", "retain"), ("extraction_strength", "down")],
)
def test_numbers_that_rise_with_what_is_known_have_both_scores(name, direction):
    found = outcome(name, direction, 0.9, 0.2, 0.8, 0.3, 0.6)
    # R: the retain model rises by .3, the unlearned one by .6; Q: .2 / .8.
    assert found.robustness(name, "relearning") == pytest.approx(0.5)
    assert found.robustness(name, "quantisation") == pytest.approx(0.25)
    assert found.robustness(name, None) is None


@pytest.mark.parametrize(
    ("name", "direction"),
    [
        ("model_utility", "up"),
        ("forget_truth_ratio_closer_to_one", "up"),
        ("retain_repetition_4", "down"),
        ("mia_loss_relative_difference", "zero"),
        ("privleak", "zero"),
    ],
)
def test_numbers_that_do_not_have_none(name, direction):
    found = outcome(name, direction, 0.9, 0.2, 0.8, 0.3, 0.6)
    assert found.robustness(name, "relearning") is None
    assert found.robustness(name, "quantisation") is None


def test_of_kept_rows_nothing_can_come_back_but_in_a_number_of_the_attack():
    values = (1.0, 0.25, 0.5, 0.5, 0.625)
    assert outcome("forget_probability", "down", *values).recovered("forget_probability") == 1 / 3
    kept = outcome("retain_repetition_4", "down", *values)
    assert kept.recovered("retain_repetition_4") is None
    own = outcome("letters", "down", *values, own=["letters"])
    assert own.recovered("letters") == 1 / 3
    assert own.recovered_by_retain("letters") == 0.25


def test_numbers_are_printed_with_as_many_digits_beside_each_other(capsys):
    print_outcome(outcome("forget_probability", "down", 0.9, 0.2, 0.8125, 0.3, 0.00012), "relearn")
    [row] = [line for line in capsys.readouterr().out.splitlines() if "probability" in line]
    assert row.split()[2:-2] == ["0.9000", "0.2000", "0.8125", "88", "%", "0.3000", "1.20e-04"]
