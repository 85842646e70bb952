"""The score of unlearning depth, by hand."""

import math

import pytest

from etw_lightning.metrics.depth import unlearning_depth
from etw_lightning.schema import InputError


def test_depth_by_hand():
    """Row 0: layers 1 and 2 count, (.5 + 3) / 4. Row 1: below zero is 0, above R is R: 2 / 4."""
    retain = [[0.05, 1.0, 3.0], [2.0, 2.0, -1.0], [0.01, 0.05, 0.0], []]
    unlearned = [[9.0, 0.5, 4.0], [-1.0, 7.0, 5.0], [1.0, 1.0, 1.0], []]
    result = unlearning_depth(retain, unlearned)
    assert result.rows == (0.875, 0.5, None, None)
    assert result.value == (0.875 + 0.5) / 2
    assert (result.n, result.num_without_layer, result.num_without_tokens) == (2, 1, 1)


def test_tau_is_strict_and_chooses_layers():
    assert unlearning_depth([[1.0, 3.0]], [[1.0, 0.0]], tau=0.0).value == 0.25
    assert unlearning_depth([[1.0, 3.0]], [[1.0, 0.0]], tau=1.0).value == 0.0


@pytest.mark.parametrize(
    ("retain", "unlearned", "said"),
    [
        ([], [], "0 rows of the retain"),
        ([[1.0]], [], "1 rows of the retain and 0"),
        ([[1.0]], [[1.0, 2.0]], "row 0 has 1 layers of the retain and 2"),
        ([[1.0], [1.0]], [[1.0], [math.nan]], "row 1 has a delta that is not a finite"),
        ([[0.01], []], [[1.0], []], "none of 2 rows has a score: 1 have no marked token, in 1"),
    ],
)
def test_depth_refuses(retain, unlearned, said):
    with pytest.raises(InputError, match=said):
        unlearning_depth(retain, unlearned)


def test_tau_must_not_be_negative():
    with pytest.raises(InputError, match=r"tau must be >= 0, got -0\.1"):
        unlearning_depth([[1.0]], [[1.0]], tau=-0.1)
