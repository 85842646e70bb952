"""Gini and ROC-AUC of weights within rows, by all pairs of tokens."""

from itertools import product

import pytest
import torch

from etw_lightning.kernels.signals import TokenSignals
from etw_lightning.weighting.spread import row_aucs, row_ginis

#: Of each row its values and which tokens are marked. A value goes on beyond the end of a row, and
#: comes back in another; the third row has none marked, the fourth no other, the sixth one token;
#: the last one sums up to less than 1.
ROWS = [
    ([3.0, 1.0, 2.0, 2.0], [True, False, True, False]),
    ([2.0, 2.0, 5.0, 0.0, 2.0], [False, True, True, False, True]),
    ([2.0, 4.0], [False, False]),
    ([1.0, 4.0, 4.0], [True, True, True]),
    ([0.0, 0.0, 0.0], [True, False, False]),
    ([7.0], [True]),
    ([0.125, 0.25], [False, True]),
]


def given(dtype):
    rows = torch.tensor([place for place, (values, _) in enumerate(ROWS) for _ in values])
    values = torch.tensor([one for values, _ in ROWS for one in values], dtype=dtype)
    marked = torch.tensor([one for _, flags in ROWS for one in flags])
    return values, marked, TokenSignals(rows, rows, len(ROWS), torch.zeros(len(rows)))


def area(values, marked):
    pairs = [
        (first > second) + (first == second) / 2
        for (first, is_marked), (second, is_other) in product(
            zip(values, marked, strict=True), repeat=2
        )
        if is_marked and not is_other
    ]
    return sum(pairs) / len(pairs) if pairs else None


def gini(values):
    apart = sum(abs(first - second) for first, second in product(values, repeat=2))
    return apart / (2 * len(values) * sum(values)) if sum(values) else 0.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_areas_are_counted_over_all_pairs_of_a_row(dtype):
    values, marked, signals = given(dtype)
    found, is_one = row_aucs(values, marked, signals)
    expected = [area(*row) for row in ROWS]
    assert expected[:3] == [0.875, 5 / 6, None]
    assert is_one.tolist() == [one is not None for one in expected]
    assert found.tolist() == pytest.approx([one or 0.0 for one in expected], rel=1e-6)
    assert found.dtype == dtype
    rows = torch.zeros(3, dtype=torch.long)
    signals = TokenSignals(rows, rows, 1, torch.zeros(3))
    marked = torch.tensor([False, True, False])
    without_ties, _ = row_aucs(torch.tensor([3.0, 2.0, 1.0], dtype=dtype), marked, signals)
    assert without_ties.tolist() == [0.5]


def test_ginis_are_those_of_all_pairs_of_a_row():
    values, _, signals = given(torch.float64)
    expected = [gini(row) for row, _ in ROWS]
    assert expected[0] == pytest.approx(3 / 16)
    assert expected[-3:] == pytest.approx([0.0, 0.0, 1 / 6])
    assert row_ginis(values, signals).tolist() == pytest.approx(expected, abs=1e-15)
