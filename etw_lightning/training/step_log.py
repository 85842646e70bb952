"""What is logged of an optimiser step: its losses, and how the token weights lie."""

from __future__ import annotations

from collections import defaultdict

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from etw_lightning.kernels.signals import TokenSignals

__all__ = ["StepLog"]


class StepLog:
    """Collects what the micro-batches of a step say, and logs it with the last of them."""

    def __init__(self) -> None:
        self._window: dict[str, float] = defaultdict(float)

    def note_loss(self, name: str, share: float) -> None:
        """Add a micro-batch's share of a loss of the effective batch."""
        self._window[f"loss/{name}"] += share

    def note_weights(self, signals: TokenSignals, weights: Tensor) -> None:
        """Add the token weights of a micro-batch.

        The mean entropy and the largest weight are those of the effective batch. The share of the
        top decile is a mean over micro-batches, each with a decile of its own, so it depends on
        their size. A process without forget tokens notes the same names: what is summed over
        processes must be logged by all of them.
        """
        top = largest = entropy = 0.0
        if len(weights):
            # Of weights that are all 0, no share is any token's.
            total = weights.sum().clamp(min=torch.finfo(weights.dtype).tiny)
            top = (weights.topk(max(1, len(weights) // 10)).values.sum() / total).item()
            largest = weights.max().item()
            entropy = 0.0 if signals.entropies is None else signals.entropies.sum().item()
        self._window["weights/batches"] += len(weights) > 0
        self._window["weights/tokens"] += len(weights)
        self._window["weights/top_decile_share"] += top
        self._window["weights/max"] = max(self._window["weights/max"], largest)
        if signals.entropies is not None:
            self._window["weights/mean_entropy"] += entropy

    def log(self, module: LightningModule, batch_idx: int) -> None:
        """Log an optimiser step's losses and weight statistics once its last part is done.

        Args:
            module: Whose step it is; all processes must call it.
            batch_idx: Micro-batch of the epoch, from 0.
        """
        is_last = batch_idx + 1 == module.trainer.num_training_batches
        if (batch_idx + 1) % module.trainer.accumulate_grad_batches and not is_last:
            return
        names = ("weights/batches", "weights/tokens")
        counts = torch.tensor([self._window.pop(name, 0.0) for name in names], device=module.device)
        batches, tokens = module.trainer.strategy.reduce(counts, reduce_op="sum").clamp(min=1)
        for name, value in self._window.items():
            kind = name.split("/")[0]
            if kind == "loss":
                module.log(
                    name, value, sync_dist=True, reduce_fx="sum", prog_bar=name != "loss/total"
                )
            elif name == "weights/max":
                module.log(name, value, sync_dist=True, reduce_fx="max")
            else:
                count = tokens if name == "weights/mean_entropy" else batches
                module.log(name, value / count, sync_dist=True, reduce_fx="sum")
        self._window.clear()
