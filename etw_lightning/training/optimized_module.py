"""A module whose weights are stepped: the optimiser, its learning rate's course, and clipping."""

from __future__ import annotations

import math
from typing import Any

import torch
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.utilities import GradClipAlgorithmType

from etw_lightning.models.loading import LabelScorer
from etw_lightning.training.prepared_module import PreparedModule
from etw_lightning.tuning.optimizers import Rounding, Schedule, make_optimizer, scale_of

__all__ = ["OptimizedModule"]


class OptimizedModule(PreparedModule):
    """Knows how what trains is stepped."""

    #: Of ``UnlearningModule``'s arguments, those that say how.
    optimizer: str
    optimizer_args: dict[str, Any] | None
    rounding: Rounding | None
    lr: float
    betas: tuple[float, float]
    weight_decay: float
    schedule: Schedule
    warmup: float

    def check_optimizer(self) -> None:
        """Make the optimiser once, to find what it refuses before anything is scored.

        Raises:
            InputError: As ``make_optimizer``.
        """
        scorer = self.scorer or self.loaded_ahead
        if scorer is not None:
            self._make_optimizer(scorer)

    def configure_optimizers(self) -> Any:
        """Make the optimiser of what trains, with the learning rate's schedule by steps."""
        assert self.scorer is not None
        optimizer = self._make_optimizer(self.scorer)
        scale = scale_of(self.schedule, self.warmup, self.num_steps())
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, scale)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip before a fused step too, where nothing is scaled.

        Lightning refuses that under any mixed precision, though in bfloat16 there is no scale that
        a fused step would have to take off first.
        """
        precision = self.trainer.precision_plugin
        if isinstance(precision, MixedPrecision) and precision.scaler is None:
            kind = GradClipAlgorithmType(gradient_clip_algorithm or GradClipAlgorithmType.NORM)
            Precision.clip_gradients(precision, optimizer, gradient_clip_val or 0.0, kind)
            return
        self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def _make_optimizer(self, scorer: LabelScorer) -> torch.optim.Optimizer:
        is_scaled = self._trainer is not None and self._trainer.scaler is not None
        return make_optimizer(
            scorer.named_parameters(),
            self.optimizer,
            lr=self.lr,
            betas=self.betas,
            weight_decay=self.weight_decay,
            optimizer_args=self.optimizer_args,
            rounding=self.rounding,
            fuses=not is_scaled,
        )

    def num_steps(self) -> int:
        """Return the optimiser steps of the run.

        Not ``trainer.estimated_stepping_batches``: that sets the training loader up before a
        checkpoint is restored, whose place in the epoch would then never reach the loader.
        """
        trainer = self.trainer
        batches, limit = self.datamodule.pairing().num_batches, trainer.limit_train_batches
        batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
        epoch = math.ceil(batches / trainer.accumulate_grad_batches)
        bounds = (epoch * (trainer.max_epochs or 0), trainer.max_steps)
        return min(steps for steps in bounds if steps >= 0)
