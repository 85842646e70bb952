"""Rows of logits scored with PyTorch's own operations, in place."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Scored", "describe_in_place", "score_in_place", "slope_in_place"]

#: Bytes of logits that a processor's core has at hand while it goes over them several times.
_CACHED = 1 << 19


class Scored(NamedTuple):
    """What one pass over N rows of logits finds, each ``(N,)``.

    Args:
        logps: Of the labels.
        entropies: Of the tempered predictions; empty if not asked for.
        largest: Largest logit.
        largest_shares: Probability of the likeliest token.
        places: Which token that is; empty from kernels, which need it no more.
    """

    logps: Tensor
    entropies: Tensor
    largest: Tensor
    largest_shares: Tensor
    places: Tensor


def score_in_place(
    logits: Tensor, labels: Tensor, temperature: float | None, *, keeps: bool
) -> list[Scored]:
    """Score rows in one pass; leaves the exponentials of the others by the likeliest in ``logits``.

    As in ``describe_in_place`` the largest share is kept out of the sums.

    Args:
        logits: Overwritten, ``(N, V)``.
        labels: ``(N,)``.
        temperature: Of the entropies; None for none.
        keeps: Whether the exponentials are wanted.

    Returns:
        One for as many rows as stay in a processor's cache; on other devices, for all.
    """
    return [
        _score_cached(rows, names, temperature, keeps=keeps)
        for rows, names in zip(_cached_rows(logits), _cached_rows(labels, logits), strict=True)
    ]


def slope_in_place(
    exps: Tensor, labels: Tensor, incoming: Tensor, largest_shares: Tensor, places: Tensor
) -> Tensor:
    """Make the gradient of log-probabilities by logits of what ``score_in_place`` has left.

    Args:
        exps: Overwritten, ``(N, V)``.
        labels: ``(N,)``.
        incoming: Gradient of the loss by each log-probability, ``(N,)``.
        largest_shares: As of ``Scored``.
        places: As of ``Scored``.
    """
    # d logp / d logits = onehot(label) - softmax, times the incoming gradient.
    shares = -incoming[:, None] * largest_shares[:, None]
    slope = exps.mul_(shares).scatter_(-1, places[:, None], shares)
    return slope.scatter_add_(-1, labels[:, None], incoming[:, None])


def _cached_rows(rows: Tensor, sized: Tensor | None = None) -> tuple[Tensor, ...]:
    """Split rows, or what belongs to those of ``sized``, for several passes to find them cached."""
    sized = rows if sized is None else sized
    if sized.device.type != "cpu":
        return (rows,)
    return rows.split(max(1, _CACHED // max(1, sized[:1].nbytes)))


def _shift(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Take each row's largest logit off it, in place.

    Returns:
        What was taken off and where it stands, ``(n, 1)``; the labels' logits, ``(n,)``; the
        exponentials of all but the largest, ``(n, V)``.
    """
    largest, place = logits.max(-1, keepdim=True)
    logits.sub_(largest)
    picked = logits.gather(-1, labels[:, None])[:, 0]
    return largest, place, picked, logits.exp().scatter_(-1, place, 0.0)


def _score_cached(
    logits: Tensor, labels: Tensor, temperature: float | None, *, keeps: bool
) -> Scored:
    """Score rows that stay in the cache."""
    largest, place, picked, exps = _shift(logits, labels)
    rest = exps.sum(-1)
    normalizer = rest.log1p()
    entropies = picked.new_empty(0)
    if temperature == 1:
        entropies = normalizer - torch.linalg.vecdot(exps, logits) / (1 + rest)
    elif temperature is not None:
        tempered = logits.div_(temperature)
        others = tempered.exp().scatter_(-1, place, 0.0)
        sums = others.sum(-1)
        expected = torch.linalg.vecdot(others, tempered) / (1 + sums)
        entropies = sums.log1p() - expected
    if keeps:
        logits.copy_(exps)
    return Scored(picked - normalizer, entropies, largest[:, 0], 1 / (1 + rest), place[:, 0])


def describe_in_place(logits: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    """Return the fields of ``LinearStatistics``; overwrites ``logits``.

    The largest share is kept out of the sums: of a near-certain prediction all there is to say is
    what the others sum to, and rounding ``1 + x`` would cost 5 % of an entropy of 1e-6 nats.
    """
    _, place, picked, exps = _shift(logits, labels)
    rest = exps.sum(-1)
    normalizer = rest.log1p()
    expected = torch.linalg.vecdot(exps, logits) / (1 + rest)
    entropies = normalizer - expected
    # log p(v) + H = shifted logit - expected shifted logit: the normalizer cancels.
    squares = logits.sub_(expected[:, None]).square_().mul_(exps).sum(-1) + expected.square()
    return picked - normalizer, entropies, squares / (1 + rest), labels == place[:, 0]
