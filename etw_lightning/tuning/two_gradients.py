"""The gradients of the two terms of a loss, apart, and what becomes of the two."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from etw_lightning.schema import InputError

__all__ = ["Geometry", "Rule", "Surgery", "TermGradients", "adam_metric", "inner_product"]

#: ``conflict``: only a forget gradient that opposes the retain gradient is changed.
#: ``orthogonal``: whatever of it lies along the retain gradient goes, be it for or against.
Rule = Literal["conflict", "orthogonal"]

#: What is at right angles: as the numbers are, or as Adam steps with them.
Geometry = Literal["plain", "adam"]


class Rectified(NamedTuple):
    """What surgery has made of the gradients of a step.

    Args:
        gradients: Of each weight, retain and forget term together.
        cosine: Of the two terms' gradients before, from -1 to 1; 0 where one of them is 0.
        removed: Share of the forget gradient's squared length that was taken away, 0 to 1.
    """

    gradients: list[Tensor]
    cosine: Tensor
    removed: Tensor


class TermGradients:
    """Sums of the gradients of both terms over the micro-batches of a step.

    Both together take twice the memory of the trained weights' gradients; each micro-batch has two
    backward passes over one forward pass.

    Args:
        weights: What trains.
    """

    def __init__(self, weights: Sequence[Tensor]) -> None:
        self.weights = list(weights)
        self._sums: dict[str, list[Tensor]] = {}

    def add(self, forget: Tensor, retain: Tensor) -> None:
        """Add a micro-batch's gradients; its graph is gone afterwards.

        Args:
            forget: Its share of the forget term.
            retain: Its share of the retain term, of the same forward pass.
        """
        self._add("forget", forget, keeps=True)
        self._add("retain", retain, keeps=False)

    def _add(self, name: str, term: Tensor, *, keeps: bool) -> None:
        found: Sequence[Tensor | None]
        if term.requires_grad:
            found = torch.autograd.grad(term, self.weights, retain_graph=keeps, allow_unused=True)
        else:
            # A micro-batch without rows of the group.
            found = (None,) * len(self.weights)
        if name not in self._sums:
            pairs = zip(found, self.weights, strict=True)
            self._sums[name] = [
                torch.zeros_like(weight) if one is None else one for one, weight in pairs
            ]
            return
        for before, one in zip(self._sums[name], found, strict=True):
            if one is not None:
                before += one

    def take(self, total: Callable[[Tensor], Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return the forget and the retain term's gradients of the whole step, and begin anew.

        Args:
            total: Sums a tensor over all processes.
        """
        sums, self._sums = self._sums, {}
        return [total(one) for one in sums["forget"]], [total(one) for one in sums["retain"]]


def inner_product(
    one: Sequence[Tensor], other: Sequence[Tensor], metric: Sequence[Tensor | None] = ()
) -> Tensor:
    """Return the sum over all weights of ``one * other * metric``; float64, scalar.

    Args:
        one: One tensor a weight.
        other: As many.
        metric: What each product counts, positive; None, or nothing at all, is 1.

    Example:
        >>> inner_product([torch.tensor([1.0, 2.0])], [torch.tensor([3.0, 4.0])]).item()
        11.0
    """
    found = torch.zeros((), dtype=torch.float64, device=one[0].device)
    for place, (left, right) in enumerate(zip(one, other, strict=True)):
        product = left.float() * right.float() if left.dtype.itemsize < 4 else left * right
        factor = metric[place] if metric else None
        found += (product if factor is None else product * factor).sum(dtype=torch.float64)
    return found


@dataclass
class Surgery:
    """Takes out of the forget gradient what works against the retain gradient.

    With f the forget term's gradient, r the retain term's (its weight in it), m the remembered
    retain gradient ``m = (1 - average) * r + average * m``, 0 at first, and lambda the forget
    term's weight, a step's gradient is

        r + lambda * (f - c * m)      c = <f, m> / <m, m>, with ``conflict`` only where it is < 0

    Source: ``conflict``: Wang et al. 2025, arXiv:2503.09117 (GRU), and its authors' code,
    tmlr-group/GRU at fbbf93a, dataloader_faster_refactor1.py, ``pipeline``; ``average`` is one
    minus its ``moving_avg``. ``orthogonal``: Zhou et al. 2025, arXiv:2511.17100 (GU), its authors'
    code, Lemutisme/geo-unlearning, gradient_surgery.py at 2d300bd and, for ``adam``,
    optimizer_geometry.py at 9b4cf43: the inner product counts each weight's product by
    ``1 / (sqrt(v) + eps)``, v Adam's corrected mean of squares before the step.
    Differs from it: GRU's plain form leaves r itself out of the step and its ``+ce`` form adds it;
    here it is always there, with ``retain_weight``. GU's ``adam`` geometry asks there for an Adam
    without a first running mean and without weight decay (``betas: [0, 0.999]``); with them, as
    here, the step is at right angles to r only as far as the gradient decides it. GU's
    memory of several earlier retain gradients is not here.

    Args:
        rule: When it is done.
        average: Share of the remembered retain gradient that is older than this step, in [0, 1).
        geometry: What the inner products count.

    Raises:
        InputError: If ``average`` is not in [0, 1).
    """

    rule: Rule
    average: float = 0.0
    geometry: Geometry = "plain"

    def __post_init__(self) -> None:
        if not 0 <= self.average < 1:
            raise InputError(f"model.surgery_average must be in [0, 1); got {self.average}.")
        #: The remembered retain gradient, one tensor a weight; empty before the first step.
        self.remembered: list[Tensor] = []

    def rectify(
        self,
        forget: Sequence[Tensor],
        retain: Sequence[Tensor],
        forget_weight: float,
        metric: Sequence[Tensor | None] = (),
    ) -> Rectified:
        """Return a step's gradients.

        Args:
            forget: f, one tensor a weight; overwritten.
            retain: r.
            forget_weight: lambda.
            metric: As of ``inner_product``.

        Example:
            >>> forget, retain = [torch.tensor([-1.0, 1.0])], [torch.tensor([2.0, 0.0])]
            >>> found = Surgery("conflict").rectify(forget, retain, 1.0)
            >>> found.gradients, round(found.removed.item(), 4)
            ([tensor([2., 1.])], 0.5)
        """
        kept = self._remember(retain)
        dot, size = inner_product(forget, kept, metric), inner_product(kept, kept, metric)
        own = inner_product(forget, forget, metric)
        tiny = torch.finfo(torch.float64).tiny
        cosine = dot / (own * size).sqrt().clamp(min=tiny)
        share = dot / size.clamp(min=tiny)
        if self.rule == "conflict":
            share = share.clamp(max=0)
        removed = torch.where(share == 0, torch.zeros_like(share), cosine.square())
        found = []
        for one, held, pull in zip(forget, kept, retain, strict=True):
            # Not lambda * f - lambda * c * m: what is at right angles must not round away.
            one -= share.to(one.dtype) * held
            found.append(torch.add(pull, one, alpha=forget_weight))
        return Rectified(found, cosine, removed)

    def _remember(self, retain: Sequence[Tensor]) -> list[Tensor]:
        if not self.average:
            return list(retain)
        if self.remembered:
            # Of a checkpoint they come on the processor.
            pairs = zip(self.remembered, retain, strict=True)
            self.remembered = [before.to(one) for before, one in pairs]
        else:
            self.remembered = [torch.zeros_like(one) for one in retain]
        for before, one in zip(self.remembered, retain, strict=True):
            before.mul_(self.average).add_(one, alpha=1 - self.average)
        return self.remembered


def adam_metric(optimizer: torch.optim.Optimizer, weights: Sequence[Tensor]) -> list[Any]:
    """Return what Adam divides each number of a gradient by, inverted; None before its first step.

    Args:
        optimizer: An Adam of ``torch.optim``.
        weights: What trains.
    """
    found: list[Any] = []
    settings = {
        id(weight): (group["betas"][1], group["eps"])
        for group in optimizer.param_groups
        for weight in group["params"]
    }
    for weight in weights:
        state = optimizer.state.get(weight, {})
        if not state:
            found.append(None)
            continue
        beta, eps = settings[id(weight)]
        correction = 1 - beta ** float(state["step"])
        squares = state["exp_avg_sq"]
        squares = squares.float() if squares.dtype.itemsize < 4 else squares
        found.append((squares.sqrt() / math.sqrt(correction) + eps).reciprocal())
    return found
