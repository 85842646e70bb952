"""The scorer of token importances: a direction in the states, stepped beside the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from etw_lightning.kernels.signals import Counts, TokenSignals
from etw_lightning.notices import warn_first
from etw_lightning.tuning.optimizers import scale_of
from etw_lightning.weighting.learned import ATWU

__all__ = ["ImportanceScorer"]

_MOMENTUM, _DECAY, _LONGEST = 0.9, 1e-4, 1.0


class ImportanceScorer:
    """Scores labels by their states, and learns from the steps of a run.

    The same on all processes, and no part of the model: nothing of it is exported. float32 under
    any precision.

    Args:
        weighting: Says what is minimised, and how often.
    """

    def __init__(self, weighting: ATWU) -> None:
        self.weighting = weighting
        self._weights: list[Tensor] = []
        self._optimizer: torch.optim.SGD | None = None
        self._steps = 0
        self._sums: list[Tensor] = []
        #: What to go on from, until the first states tell the device.
        self._kept: dict[str, Any] = {}

    def _make(self, width: int, device: torch.device) -> None:
        kept = self._kept.get("weights") or [torch.zeros(size) for size in (width, 1)]
        self._weights = [one.to(device, copy=True) for one in kept]
        self._optimizer = torch.optim.SGD(
            self._weights, lr=self.weighting.rate, momentum=_MOMENTUM, weight_decay=_DECAY
        )
        for weight, momentum in zip(self._weights, self._kept.get("momenta", ()), strict=False):
            self._optimizer.state[weight]["momentum_buffer"] = momentum.to(device, copy=True)
        self._kept = {}

    def scores(self, signals: TokenSignals) -> Tensor:
        """Return the score of each label, 0 to 1, detached, ``(N,)``."""
        states = self._states(signals)
        with torch.no_grad(), torch.autocast(states.device.type, enabled=False):
            return _score(states, *self._weights)

    def _states(self, signals: TokenSignals) -> Tensor:
        assert signals.states is not None
        states = signals.states.of_labels(-1, signals).detach().float()
        if not self._weights:
            self._make(states.shape[1], states.device)
        return states

    def is_due(self, step: int) -> bool:
        """Tell whether the scorer learns from an optimiser step.

        Args:
            step: Steps that were made before it.
        """
        return (step + 1) % self.weighting.every == 0

    def tell_unused(self, total: int) -> None:
        """Warn of a run too short for what is learnt to be used.

        Args:
            total: Optimiser steps of the run.
        """
        if total <= self.weighting.every:
            warn_first(
                f"model.weighting {type(self.weighting).__name__} learns once in "
                f"{self.weighting.every} steps, and this run has {total}: no score but 1/2 is ever "
                "used; give a smaller model.weighting.every, or more steps."
            )

    def note(self, signals: TokenSignals, counts: Counts, skipped: int = 0) -> None:
        """Add a micro-batch to what the next step is made of.

        Args:
            signals: Of its forget rows.
            counts: Of the effective batch's forget rows.
            skipped: Tokens at the start of each row that have no term and are not counted.
        """
        kept = signals.places() >= skipped
        states = self._states(signals)[kept]
        signals = TokenSignals(
            signals.labels[kept], signals.rows[kept], signals.num_rows, signals.logps[kept]
        )
        with torch.enable_grad(), torch.autocast(states.device.type, enabled=False):
            weights = [one.detach().requires_grad_() for one in self._weights]
            loss = self.weighting.importance_loss(_score(states, *weights), signals, counts)
            gradients = torch.autograd.grad(loss, weights)
        if not self._sums:
            self._sums = [torch.zeros_like(one) for one in self._weights]
        for total, gradient in zip(self._sums, gradients, strict=True):
            total += gradient

    def step(self, total: int, sum_over_processes: Callable[[Tensor], Tensor]) -> None:
        """Learn from what was noted.

        Args:
            total: Optimiser steps of the run.
            sum_over_processes: Sums a tensor over all processes.
        """
        assert self._optimizer is not None
        for weight, noted in zip(self._weights, self._sums, strict=True):
            weight.grad = sum_over_processes(noted) + 2 * self.weighting.ridge * weight
        self._sums = []
        torch.nn.utils.clip_grad_norm_(self._weights, _LONGEST)
        scale = scale_of("linear", 0.0, -(-total // self.weighting.every))
        for group in self._optimizer.param_groups:
            group["lr"] = self.weighting.rate * scale(self._steps)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._steps += 1

    def state(self) -> dict[str, Any]:
        """Return what a run must know to go on."""
        if self._optimizer is None:
            return self._kept
        held = self._optimizer.state
        momenta = [held[one]["momentum_buffer"].clone() for one in self._weights if one in held]
        weights = [one.clone() for one in self._weights]
        return {"weights": weights, "momenta": momenta, "steps": self._steps}

    def go_on(self, state: dict[str, Any]) -> None:
        """Go on from ``state``; from an empty one begin."""
        self._weights, self._sums, self._optimizer = [], [], None
        self._kept, self._steps = state, int(state.get("steps", 0))


def _score(states: Tensor, direction: Tensor, offset: Tensor) -> Tensor:
    return torch.sigmoid(states @ direction + offset)
