"""Shares and orders of the labelled tokens of each sequence, and what words of it amount to."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import torch
from jsonargparse.typing import restricted_number_type
from torch import Tensor

from etw_lightning.kernels.signals import TokenSignals

__all__ = [
    "Pooling",
    "Scope",
    "TopShare",
    "Unit",
    "lift_to",
    "order_within_rows",
    "pool_words",
    "share_out",
    "units_of",
]

#: What has one value: a token, or a word, whose tokens share it.
Unit = Literal["token", "word"]

#: What the value of a word is made of: all of its tokens, or the largest.
Pooling = Literal["sum", "max"]

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


def units_of(signals: TokenSignals) -> Tensor:
    """Return the number of the word, or lone token, that each token is part of, ``(N,)``.

    Ascending from 0 over all sequences; a word ends with its sequence, and a token of no word is
    one for itself.

    Example:
        >>> rows = torch.tensor([0, 0, 0, 0, 1])
        >>> words = torch.tensor([4, 4, -1, -1, 4])
        >>> units_of(TokenSignals(rows, rows, 2, torch.zeros(5), words=words))
        tensor([0, 0, 1, 2, 3])
    """
    assert signals.words is not None
    words, rows = signals.words, signals.rows
    goes_on = (words[1:] == words[:-1]) & (words[1:] >= 0) & (rows[1:] == rows[:-1])
    starts = torch.ones_like(words)
    starts[1:] = (~goes_on).to(words.dtype)
    return starts.cumsum(0) - 1


def pool_words(values: Tensor, signals: TokenSignals, pooling: Pooling) -> Tensor:
    """Return the sum, or the maximum, over its word for each token, ``(N,)``.

    Args:
        values: Of tokens, ``(N,)``.
        signals: The tokens, with ``words``.
        pooling: ``sum`` or ``max``.

    Example:
        >>> rows = torch.tensor([0, 0, 0])
        >>> signals = TokenSignals(rows, rows, 1, torch.zeros(3), words=torch.tensor([0, 0, -1]))
        >>> pool_words(torch.tensor([1.0, 2.0, 5.0]), signals, "sum")
        tensor([3., 3., 5.])
    """
    units = units_of(signals)
    if pooling == "sum":
        return values.new_zeros(len(values)).index_add(0, units, values)[units]
    lowest = values.new_full((len(values),), -torch.inf)
    return lowest.scatter_reduce(0, units, values, "amax")[units]


def lift_to(
    floor: float, values: Tensor, signals: TokenSignals, scope: Scope, kept: Tensor | None = None
) -> Tensor:
    """Return values that are lifted alike until their mean is at least ``floor``, ``(N,)``.

    Args:
        floor: The least mean.
        values: Of tokens, ``(N,)``.
        signals: The tokens.
        scope: What the mean is of.
        kept: Tokens that it is of; None for all.

    Example:
        >>> rows = torch.tensor([0, 0, 1])
        >>> signals = TokenSignals(rows, rows, 2, torch.zeros(3))
        >>> lift_to(1.0, torch.tensor([0.0, 1.0, 3.0]), signals, "sequence")
        tensor([0.5000, 1.5000, 3.0000])
    """
    if scope == "batch":
        signals = replace(signals, rows=torch.zeros_like(signals.rows))
    counted = torch.ones_like(values) if kept is None else kept.to(values.dtype)
    means = signals.row_sums(values * counted) / signals.row_sums(counted).clamp(min=1)
    return values + (floor - means).clamp(min=0)[signals.rows]
