"""How far predictions and hidden states are from given ones.

A fixed distribution may be known by its largest entries only. Its other tokens then count as one
bucket, on both sides.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from etw_lightning.kernels.distributions import TopLogps

__all__ = [
    "cross_entropy",
    "js_divergence",
    "kl_divergence",
    "mean_squares",
    "reverse_kl_divergence",
]


def cross_entropy(logps: Tensor, target: TopLogps) -> Tensor:
    """Return ``-sum_v q(v) log p(v)`` at each position, nats, >= 0, ``(n,)``.

    Of a target that holds K < V entries: ``-sum_k q_k log p_k - q_rest log p_rest``, which is no
    more than the sum over the whole vocabulary, and leaves open how p divides its rest.

    Args:
        logps: log p of the whole vocabulary, nats, ``(n, V)``.
        target: q.

    Example:
        >>> p = torch.tensor([[0.25, 0.25, 0.5]])
        >>> cross_entropy(p.log(), TopLogps(p.log()[:, 2:], torch.tensor([[2]])))
        tensor([0.6931])
    """
    held, rest = _coarsen(logps, target)
    found = -(target.logps.exp() * held).sum(-1)
    return found if rest is None else found - target.rest * rest


def kl_divergence(logps: Tensor, target: TopLogps) -> Tensor:
    """Return ``sum_v q(v) (log q(v) - log p(v))`` at each position, nats, ``(n,)``.

    >= 0 up to rounding. Of a target that holds K < V entries: the divergence of the distributions
    over those and one bucket. It is a lower bound, and 0 just where these agree.

    Args:
        logps: log p of the whole vocabulary, nats, ``(n, V)``.
        target: q.

    Example:
        >>> even = torch.tensor([[0.5, 0.5]]).log()
        >>> kl_divergence(torch.tensor([[0.25, 0.75]]).log(), TopLogps(even))
        tensor([0.1438])
    """
    held, rest = _coarsen(logps, target)
    found = (target.logps.exp() * (target.logps - held)).sum(-1)
    if rest is None:
        return found
    share = target.rest
    return found + torch.xlogy(share, share) - share * rest


def js_divergence(logps: Tensor, target: TopLogps) -> Tensor:
    """Return ``KL(p, h) / 2 + KL(q, h) / 2``, ``h = (p + q) / 2``, nats, ``(n,)``.

    From 0 to log 2, up to rounding, and the same whichever of both is given. Of a target that holds
    K < V entries: the divergence of the distributions over those and one bucket, a lower bound.

    Args:
        logps: log p of the whole vocabulary, nats, ``(n, V)``.
        target: q.

    Example:
        >>> certain = TopLogps(torch.tensor([[1.0, 1e-30]]).log())
        >>> js_divergence(torch.tensor([[1e-30, 1.0]]).log(), certain)  # log 2
        tensor([0.6931])
    """
    held, rest = _coarsen(logps, target)
    found = _half_divergences(held, target.logps).sum(-1)
    if rest is None:
        return found
    # A rest that rounds to nothing has no logarithm.
    return found + _half_divergences(rest, target.log_rest.clamp(min=-1e4))


def _half_divergences(one: Tensor, other: Tensor) -> Tensor:
    half = torch.logaddexp(one, other) - math.log(2)
    return (one.exp() * (one - half) + other.exp() * (other - half)) / 2


def reverse_kl_divergence(logps: Tensor, target: TopLogps) -> Tensor:
    """Return ``sum_v p(v) (log p(v) - log q(v))`` at each position, nats, ``(n,)``.

    >= 0 up to rounding. Of a target that holds K < V entries: the divergence of the distributions
    over those and one bucket, a lower bound.

    Args:
        logps: log p of the whole vocabulary, nats, ``(n, V)``.
        target: q.

    Example:
        >>> target = TopLogps(torch.tensor([[0.25, 0.75]]).log())
        >>> reverse_kl_divergence(torch.tensor([[0.5, 0.5]]).log(), target)
        tensor([0.1438])
    """
    held, rest = _coarsen(logps, target)
    found = (held.exp() * (held - target.logps)).sum(-1)
    if rest is None:
        return found
    # A rest that rounds to nothing has no logarithm.
    return found + rest.exp() * (rest - target.log_rest.clamp(min=-1e4))


def mean_squares(states: Tensor, wanted: Tensor, rows: Tensor, num_rows: int) -> Tensor:
    """Return each sequence's mean of ``(states - wanted)^2`` over its tokens and D.

    Computed in float32 whatever the dtype of the states, in float64 for float64: bfloat16 would
    round small gaps of large states away.

    Args:
        states: One vector a token, ``(M, D)``.
        wanted: What they are to be, ``(M, D)`` or one vector for all, ``(D,)``.
        rows: Sequence of each token, ``(M,)``.
        num_rows: Number of sequences.

    Returns:
        ``(num_rows,)``, >= 0; 0 for a sequence without a token.

    Example:
        >>> states = torch.tensor([[3.0, 1.0], [1.0, 1.0]])
        >>> mean_squares(states, torch.zeros(2), torch.tensor([1, 1]), 2)
        tensor([0., 3.])
    """
    dtype = torch.float64 if states.dtype == torch.float64 else torch.float32
    squares = (states.to(dtype) - wanted.to(states.device, dtype)).square().mean(-1)
    zeros = squares.new_zeros(num_rows)
    counts = zeros.index_add(0, rows, torch.ones_like(squares))
    return zeros.index_add(0, rows, squares) / counts.clamp(min=1)


def _coarsen(logps: Tensor, target: TopLogps) -> tuple[Tensor, Tensor | None]:
    """Return log p of what the target holds, and of all other tokens together if there are any.

    The sum over the others is taken itself: one minus the held ones would round to 0.
    """
    if target.ids is None:
        return logps, None
    held = logps.gather(-1, target.ids)
    if target.ids.shape[-1] >= logps.shape[-1]:
        return held, None
    return held, logps.scatter(-1, target.ids, -torch.inf).logsumexp(-1)
