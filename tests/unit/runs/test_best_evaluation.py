"""The best evaluation: in the number's own direction, above a share of the start's utility."""

import pytest

from etw_lightning.metrics import Metric
from etw_lightning.runs.best_evaluation import BestEvaluation


def rated(direction, values):
    """Tell of each value, in order, whether it is the best so far."""
    best = BestEvaluation("number", "model_utility", None)
    return [best.improves({"number": Metric(value, direction, 9)}) for value in values]


@pytest.mark.parametrize(
    ("direction", "values", "expected"),
    [
        ("up", (0.1, 0.3, 0.3, 0.2, 0.4), (True, True, False, False, True)),
        ("down", (0.4, 0.5, 0.3, 0.3, 0.1), (True, False, True, False, True)),
        # Nearest to 0, from either side.
        ("zero", (-50, 20, -10, -60, 30), (True, True, True, False, False)),
        ("zero", (5, -5, 4, -4, 0), (True, False, True, False, True)),
    ],
)
def test_better_is_in_the_numbers_own_direction(direction, values, expected):
    assert rated(direction, values) == list(expected)


def test_the_floor_is_a_share_of_the_utility_before_training():
    """0.95 of 0.6 is 0.57."""
    best = BestEvaluation("number", "model_utility", 0.95)
    best.begin({"model_utility": Metric(0.6, "up", 9)})

    def improves(value, utility):
        found = {"number": Metric(value, "up", 9), "model_utility": Metric(utility, "up", 9)}
        return best.improves(found)

    assert not improves(0.1, 0.56)
    assert improves(0.1, 0.58)
    assert not improves(0.9, 0.569), "better, but useless"
    assert best.value == 0.1
    assert improves(0.9, 0.571)


def test_an_evaluation_without_the_utility_is_not_the_best():
    best = BestEvaluation("number", "model_utility", 0.5)
    number = {"number": Metric(0.4, "up", 9)}
    useful = {**number, "model_utility": Metric(0.6, "up", 9)}
    assert not best.improves(useful), "nothing is known of the start"
    best.begin(useful)
    assert not best.improves(number)
    assert best.improves(useful)
    assert not BestEvaluation(None, "model_utility", None).improves(useful)
    assert not BestEvaluation("other", "model_utility", None).improves(useful)


def test_a_resumed_run_knows_the_best_so_far():
    first = BestEvaluation("number", "model_utility", 0.9)
    first.begin({"model_utility": Metric(0.5, "up", 9)})
    good = {"number": Metric(0.4, "up", 9), "model_utility": Metric(0.46, "up", 9)}
    assert first.improves(good)
    first.step = 7
    again = BestEvaluation("number", "model_utility", 0.9)
    again.load_state_dict(first.state_dict())
    assert again.step == 7
    assert not again.improves(good)
    assert not again.improves(
        {**good, "number": Metric(0.5, "up", 9), "model_utility": Metric(0.44, "up", 9)}
    )
    assert again.improves({**good, "number": Metric(0.5, "up", 9)})
