"""Predicted distributions over the whole vocabulary, worked on a few positions at a time.

N x V numbers are more than a large vocabulary leaves room for. What an objective makes of each
position's distribution is computed chunk by chunk and once more in the backward pass, so that only
one chunk of logits exists at a time.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from etw_lightning.kernels.logits import LogitTransform

__all__ = ["Distributions", "GivenDistributions", "HeadDistributions", "TopLogps"]


@dataclass(frozen=True)
class TopLogps:
    """Fixed distributions at n positions: their largest log-probabilities, or all of them.

    Args:
        logps: Log-probabilities, nats, ``(n, K)``.
        ids: Tokens they belong to, ``(n, K)``; None where ``logps`` holds the whole vocabulary in
            order.
        rest_logps: Log of the probability of all tokens that are not held, ``(n,)``. None takes
            one minus the sum of the others, which rounds where that is almost 1.
    """

    logps: Tensor
    ids: Tensor | None = None
    rest_logps: Tensor | None = None

    def __len__(self) -> int:
        return len(self.logps)

    def __getitem__(self, part: slice) -> TopLogps:
        others = (None if one is None else one[part] for one in (self.ids, self.rest_logps))
        return TopLogps(self.logps[part], *others)

    @property
    def rest(self) -> Tensor:
        """Probability of all tokens that are not held, ``(n,)``; 0 if all are."""
        if self.ids is None:
            return self.logps.new_zeros(len(self.logps))
        if self.rest_logps is not None:
            return self.rest_logps.exp()
        return (1 - self.logps.exp().sum(-1)).clamp(min=0)

    @property
    def log_rest(self) -> Tensor:
        """Log of ``rest``, nats, ``(n,)``; -inf if all tokens are held."""
        return self.rest.log() if self.rest_logps is None else self.rest_logps


class Distributions(ABC):
    """Log-probabilities of the whole vocabulary at N positions."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, part: slice) -> Distributions: ...

    @abstractmethod
    def log_probs(self) -> Tensor:
        """Return all of them at once, nats, ``(N, V)``."""

    @abstractmethod
    def map(self, function: Callable[..., Tensor], *others: Any) -> Tensor:
        """Return what a function makes of each position, ``(N,)``.

        Args:
            function: Takes log-probabilities ``(n, V)`` of some of the positions and the same
                positions of each of ``others``; returns ``(n,)``.
            others: Tensors with N rows, ``TopLogps`` or ``Distributions``; the function gets
                ``TopLogps`` of the latter, detached.
        """


@dataclass(frozen=True)
class GivenDistributions(Distributions):
    """Log-probabilities that are there already.

    Args:
        logps: Nats, ``(N, V)``.
    """

    logps: Tensor

    def __len__(self) -> int:
        return len(self.logps)

    def __getitem__(self, part: slice) -> GivenDistributions:
        return GivenDistributions(self.logps[part])

    def log_probs(self) -> Tensor:
        """Return them."""
        return self.logps

    def map(self, function: Callable[..., Tensor], *others: Any) -> Tensor:
        """Return what a function makes of all positions at once."""
        return function(self.logps, *(_fixed(other) for other in others))


@dataclass(frozen=True)
class HeadDistributions(Distributions):
    """``log_softmax(hidden @ weight.T + bias)``, a chunk at a time.

    Computed in float32 whatever the dtype of the inputs, in float64 for float64 inputs.

    Args:
        hidden: Hidden states, ``(N, D)``.
        weight: Output embedding, ``(V, D)``.
        bias: Output bias, ``(V,)``.
        chunk_size: Positions at a time, >= 1. Changes memory, not values.
        transform: What the model makes of the logits; V is what it keeps of the vocabulary.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None = None
    chunk_size: int = 256
    transform: LogitTransform | None = None

    def __len__(self) -> int:
        return len(self.hidden)

    def __getitem__(self, part: slice) -> HeadDistributions:
        return replace(self, hidden=self.hidden[part])

    def log_probs(self) -> Tensor:
        """Return all of them at once, nats, ``(N, V)``."""
        return _log_probs(self.hidden, self.weight, self.bias, self.transform)

    def map(self, function: Callable[..., Tensor], *others: Any) -> Tensor:
        """Return what a function makes of each position, ``(N,)``, in chunks."""

        def run(hidden: Tensor, weight: Tensor, bias: Tensor | None, *parts: Any) -> Tensor:
            logps = _log_probs(hidden, weight, bias, self.transform)
            return function(logps, *(_fixed(part) for part in parts))

        found = []
        # One chunk without rows for no rows: the result stays part of the graph.
        for start in range(0, max(len(self), 1), self.chunk_size):
            part = slice(start, start + self.chunk_size)
            inputs = (self.hidden[part], self.weight, self.bias, *(other[part] for other in others))
            found.append(checkpoint(run, *inputs, use_reentrant=False, preserve_rng_state=False))
        return torch.cat(found)


@torch.no_grad()
def _fixed(other: Any) -> Any:
    return TopLogps(other.log_probs()) if isinstance(other, Distributions) else other


def _log_probs(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, transform: LogitTransform | None
) -> Tensor:
    """Return log-probabilities of the whole vocabulary, as precise as the fused head's."""
    dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    if transform is not None:
        weight, bias = transform.cut(weight, bias)
    with torch.autocast(hidden.device.type, enabled=False):
        wide = None if bias is None else bias.to(dtype)
        logits = nn.functional.linear(hidden.to(dtype), weight.to(dtype), wide)
        return (logits if transform is None else transform.change(logits)).log_softmax(-1)
