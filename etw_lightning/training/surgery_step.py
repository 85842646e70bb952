"""A step whose terms' gradients are made apart, and joined by surgery."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from etw_lightning.schema import InputError
from etw_lightning.tuning.two_gradients import Geometry, Rule, Surgery, TermGradients, adam_metric

if TYPE_CHECKING:
    from etw_lightning.training.module import UnlearningModule

__all__ = ["SurgeryStep"]

_WITH_ADAM = ("torch.optim.AdamW", "torch.optim.Adam")


class SurgeryStep:
    """Collects the gradients of both terms over a step's micro-batches, and joins them.

    Args:
        rule: ``model.surgery``.
        average: ``model.surgery_average``.
        geometry: ``model.surgery_geometry``.
    """

    def __init__(self, rule: Rule, average: float, geometry: Geometry) -> None:
        self.surgery = Surgery(rule, average, geometry)
        self._apart: TermGradients | None = None
        self._terms: tuple[Tensor, Tensor] | None = None
        self._is_last = False
        self._noted: dict[str, Tensor] = {}

    @property
    def remembers(self) -> bool:
        """Whether the retain gradient of earlier steps is kept."""
        return self.surgery.average > 0

    @classmethod
    def asked(
        cls, rule: Rule | None, average: float, geometry: Geometry, optimizer: str
    ) -> SurgeryStep | None:
        """Return what the arguments ask for; None for no surgery.

        Raises:
            InputError: If there is none, but something is said of it, or there is no Adam for its
                geometry.
        """
        for key, value, default in (
            ("surgery_average", average, 0.0),
            ("surgery_geometry", geometry, "plain"),
        ):
            if rule is None and value != default:
                raise InputError(
                    f"model.{key} is {value}, but model.surgery is null; give model.surgery "
                    "conflict or orthogonal, or leave it out."
                )
        if geometry == "adam" and optimizer not in _WITH_ADAM:
            raise InputError(
                "model.surgery_geometry adam reads Adam's mean of squares: model.optimizer must be "
                f"{' or '.join(_WITH_ADAM)}; got {optimizer}."
            )
        return None if rule is None else cls(rule, average, geometry)

    def note(self, forget: Tensor, retain: Tensor, *, is_last: bool) -> None:
        """Keep a micro-batch's terms until its backward pass.

        Args:
            forget: Share of the forget term.
            retain: Share of the retain term, its weight in it.
            is_last: Whether the optimiser steps after it.
        """
        self._terms, self._is_last = (forget, retain), is_last

    def backward(self, module: UnlearningModule) -> None:
        """Make the gradients of the terms that were noted, and with the last the step's own."""
        if self._apart is None:
            self._apart = TermGradients([one for one in module.parameters() if one.requires_grad])
        assert self._terms is not None
        self._apart.add(*self._terms)
        self._terms = None
        if not self._is_last:
            return
        weights = self._apart.weights
        with torch.no_grad():
            metric: Sequence[Any] = ()
            if self.surgery.geometry == "adam":
                metric = adam_metric(module.trainer.optimizers[0], weights)
            forget, retain = self._apart.take(module.sum_over_processes)
            found = self.surgery.rectify(forget, retain, module.effective_forget_weight, metric)
        self._noted = {"surgery/cosine": found.cosine, "surgery/removed": found.removed}
        # A backward pass of their own, so that DDP sees that each weight has its gradient; it
        # averages what is the same on all processes.
        torch.autograd.backward(weights, found.gradients)

    def log(self, module: UnlearningModule) -> None:
        """Log what the last step's surgery did; once."""
        noted, self._noted = self._noted, {}
        for name, value in noted.items():
            # Equal on all processes, as the sums that it is made of are.
            module.log(name, value.float(), on_step=True, on_epoch=False)

    def state(self) -> list[Tensor]:
        """Return what a run must know to go on: the remembered retain gradient."""
        return list(self.surgery.remembered)

    def go_on(self, state: Sequence[Tensor]) -> None:
        """Go on from ``state``."""
        self.surgery.remembered = list(state)
