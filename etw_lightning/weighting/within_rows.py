"""Shares and orders of the labelled tokens of each sequence."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import torch
from jsonargparse.typing import restricted_number_type
from torch import Tensor

from etw_lightning.kernels.signals import TokenSignals

__all__ = ["Scope", "TopShare", "order_within_rows", "share_out"]

#: What weights are shared out over. ``sequence``: each sequence's tokens. ``batch``: the tokens of
#: one micro-batch of one process, so that the weights hang on how the effective batch is split.
Scope = Literal["sequence", "batch"]

#: A share of which there is always some: in (0, 1].
if TYPE_CHECKING:
    TopShare = float
else:
    TopShare = restricted_number_type("TopShare", float, [(">", 0), ("<=", 1)])


def share_out(
    values: Tensor, signals: TokenSignals, scope: Scope = "sequence", kept: Tensor | None = None
) -> Tensor:
    """Return ``n * v_i / sum_j v_j``: weights that sum to the number of tokens n.

    Values that are all 0 give uniform weights. Tokens that are not kept get 0; the kept ones get
    all of n, where there are any.

    Args:
        values: What weights are in proportion to, >= 0, ``(N,)``.
        signals: The tokens they belong to.
        scope: What n and the sum are of.
        kept: Tokens that get a weight, bool, ``(N,)``; None keeps all.

    Example:
        >>> rows = torch.tensor([0, 0, 1])
        >>> signals = TokenSignals(labels=rows, rows=rows, num_rows=2, logps=torch.zeros(3))
        >>> share_out(torch.tensor([1.0, 3.0, 7.0]), signals)
        tensor([0.5000, 1.5000, 1.0000])
    """
    if scope == "batch":
        signals = replace(signals, rows=torch.zeros_like(signals.rows))
    rows = signals.rows
    counts = signals.row_counts()[rows]
    if kept is None:
        even = torch.ones_like(values)
    else:
        values = torch.where(kept, values, torch.zeros_like(values))
        left = signals.row_sums(kept.to(values.dtype))[rows]
        even = torch.where(kept, counts / left, torch.zeros_like(values))
    totals = signals.row_sums(values)[rows]
    # Share first: n / sum(v) overflows where all values are tiny.
    shares = values / totals
    return torch.where(totals == 0, even, counts * shares)


def order_within_rows(keys: Tensor, rows: Tensor) -> Tensor:
    """Return the tokens row by row, each row's by rising key, equal keys by place, ``(N,)``.

    Example:
        >>> order_within_rows(torch.tensor([3, 1, 5, 4]), torch.tensor([0, 0, 1, 1]))
        tensor([1, 0, 3, 2])
    """
    order = keys.argsort(stable=True)
    return order[rows[order].argsort(stable=True)]
