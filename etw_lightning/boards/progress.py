"""Progress where there is no terminal: a line a minute, for logs of Slurm and nohup."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

__all__ = ["LineProgress"]


class LineProgress(Callback):
    """Writes where a run is: at most one line a minute.

    Args:
        seconds: Between two lines, >= 0.
        clock: Gives the time, seconds.
    """

    def __init__(self, seconds: float = 60.0, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds, self.clock = seconds, clock
        self.last = self.begun = clock()
        self.first_step = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count from here, also where a run goes on."""
        self.begun, self.first_step = self.clock(), trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Say how far training is, and how long it will still take without evaluations."""
        if not self._is_due(trainer):
            return
        done, whole = trainer.global_step, int(trainer.estimated_stepping_batches)
        words = [f"epoch {trainer.current_epoch + 1}", f"step {done} of {whole}"]
        losses = {name: one for name, one in trainer.callback_metrics.items() if "loss/" in name}
        words += [f"{name} {float(value):.4g}" for name, value in losses.items()]
        made = done - self.first_step
        if made:
            left = (self.clock() - self.begun) / made * (whole - done)
            words.append(
                f"about {left / 60:.0f} min left" if left >= 60 else "less than 1 min left"
            )
        self._say(words)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Say how far an evaluation is."""
        if not self._is_due(trainer):
            return
        batches = trainer.num_sanity_val_batches if trainer.sanity_checking else None
        counts = batches or trainer.num_val_batches
        whole = sum(counts) if isinstance(counts, list) else counts
        self._say([f"evaluating, batch {batch_idx + 1} of {whole:g}"])

    def _is_due(self, trainer: Trainer) -> bool:
        if not trainer.is_global_zero or self.clock() - self.last < self.seconds:
            return False
        self.last = self.clock()
        return True

    def _say(self, words: list[str]) -> None:
        sys.stdout.write(f"{', '.join(words)}\n")
        sys.stdout.flush()
