"""How unevenly the weights of a sequence lie, and how well they find marked tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from etw_lightning.kernels.signals import TokenSignals
from etw_lightning.weighting.within_rows import order_within_rows

__all__ = ["row_aucs", "row_ginis"]


def row_ginis(values: Tensor, signals: TokenSignals) -> Tensor:
    """Return the Gini coefficient of each sequence's values, ``(num_rows,)``.

    Formula: ``sum_i (2 i - n - 1) v_(i) / (n sum_i v_i)``, ``v_(i)`` the i-th smallest of n values.
    Range: 0 for values that are all alike, also for none and for values that are all 0, to
    ``(n - 1) / n`` where one token has everything.

    Args:
        values: Of tokens, >= 0, ``(N,)``.
        signals: The tokens.

    Example:
        >>> rows = torch.tensor([0, 0, 1])
        >>> signals = TokenSignals(rows, rows, 2, torch.zeros(3))
        >>> row_ginis(torch.tensor([0.0, 2.0, 5.0]), signals)
        tensor([0.5000, 0.0000])
    """
    counts = signals.row_sums(torch.ones_like(values))
    ranks = signals.places() + 1
    factors = 2 * ranks - counts[signals.rows] - 1
    ordered = values[order_within_rows(values, signals.rows)]
    totals = counts * signals.row_sums(values)
    found = signals.row_sums(factors * ordered)
    return torch.where(totals > 0, found / totals, torch.zeros_like(found))


def row_aucs(values: Tensor, marked: Tensor, signals: TokenSignals) -> tuple[Tensor, Tensor]:
    """Return each sequence's ROC-AUC of values as a detector of marked tokens, and where it is one.

    Formula: P(v_i > v_j) + P(v_i = v_j) / 2 of a marked token i and another j of the sequence.

    Args:
        values: Of tokens, ``(N,)``.
        marked: Tokens that are to be found, bool, ``(N,)``.
        signals: The tokens.

    Returns:
        The areas, 0 where all tokens are marked or none, and whether both kinds are there, each
        ``(num_rows,)``.

    Example:
        >>> rows = torch.tensor([0, 0, 0, 1])
        >>> signals = TokenSignals(rows, rows, 2, torch.zeros(4))
        >>> marked = torch.tensor([True, False, False, True])
        >>> row_aucs(torch.tensor([2.0, 2.0, 1.0, 1.0]), marked, signals)
        (tensor([0.7500, 0.0000]), tensor([ True, False]))
    """
    order = order_within_rows(values, signals.rows)
    ordered, rows = values[order], signals.rows
    starts = torch.ones_like(rows)
    starts[1:] = ((ordered[1:] != ordered[:-1]) | (rows[1:] != rows[:-1])).to(rows.dtype)
    ties = starts.cumsum(0) - 1
    places = (signals.places() + 1).to(values.dtype)
    sums = values.new_zeros(len(values)).index_add(0, ties, places)
    sizes = values.new_zeros(len(values)).index_add(0, ties, torch.ones_like(values))
    # Equal values share the mean of their ranks.
    ranks = sums[ties] / sizes[ties]
    flags = marked.to(values.dtype)
    num_marked = signals.row_sums(flags)
    num_others = signals.row_sums(1 - flags)
    above = signals.row_sums(ranks * flags[order]) - num_marked * (num_marked + 1) / 2
    pairs = num_marked * num_others
    has_both = pairs > 0
    return torch.where(has_both, above / pairs.clamp(min=1), torch.zeros_like(above)), has_both
