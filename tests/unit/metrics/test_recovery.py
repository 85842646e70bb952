"""What comes back: shares and robustness by hand, with every direction and limit."""

import pytest

from etw_lightning.metrics.recovery import (
    quantisation_robustness,
    recovered_share,
    relearning_robustness,
    robustness,
)
from etw_lightning.schema import InputError


@pytest.mark.parametrize(
    ("before", "after", "target", "direction", "expected"),
    [
        (0.2, 0.2, 0.8, "down", 0.0),
        (0.2, 0.8, 0.8, "down", 1.0),
        (0.2, 0.35, 0.8, "down", 0.25),
        (0.75, 0.875, 1.0, "down", 0.5),
        (0.9375, 1.0, 1.0, "down", 1.0),
        (0.2, 0.1, 0.8, "down", -1 / 6),
        (0.2, 1.1, 0.8, "down", 1.5),
        (0.6, 0.3, 0.1, "up", 0.6),
        (0.5, -20.0, -100.0, "zero", 20.5 / 100.5),
        (20.0, -10.0, -40.0, "zero", 0.5),
    ],
)
def test_the_share_that_comes_back(before, after, target, direction, expected):
    assert recovered_share(before, after, target, direction) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("before", "target", "direction"),
    [
        (0.8, 0.8, "down"),
        (0.9, 0.8, "down"),
        (0.1, 0.8, "up"),
        (0.8 - 1e-12, 0.8, "down"),
        (0.95 + 1e-9, 1.0, "down"),
        (1.0, 0.95 + 1e-9, "up"),
        (-95.1, -100.0, "zero"),
        (-50.0, 40.0, "zero"),
        (0.2, 0.8, "retain"),
        (0.2, 0.8, "none"),
    ],
)
def test_nothing_comes_back_of_what_was_not_forgotten(before, target, direction):
    assert recovered_share(before, 0.5, target, direction) is None


def test_relearning_is_compared_with_the_retain_model():
    assert relearning_robustness(0.1, 0.5, 0.2, 0.3) == pytest.approx(0.25)
    assert relearning_robustness(0.1, 0.2, 0.2, 0.9) == 1.0, "at most one"
    assert relearning_robustness(0.3, 0.2, 0.2, 0.9) == 1.0, "nothing rises"
    assert relearning_robustness(0.1, 0.5, 0.3, 0.2) == pytest.approx(-0.25)


def test_quantisation_compares_before_with_after():
    assert quantisation_robustness(0.1, 0.4) == pytest.approx(0.25)
    assert quantisation_robustness(0.4, 0.1) == 1.0
    assert quantisation_robustness(0.0, 0.0) == 1.0
    assert quantisation_robustness(0.0, 0.1) == 0.0
    with pytest.raises(InputError, match="needs numbers >= 0"):
        quantisation_robustness(-0.1, 0.4)


def test_both_by_their_harmonic_mean():
    assert robustness(0.5, 0.25) == pytest.approx(2 / (2 + 4))
    assert robustness(-0.5, 1.0) == 0.0
