"""What is logged of an optimiser step: its losses, and how the token weights lie."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from etw_lightning.kernels.signals import TokenSignals

__all__ = ["StepLog"]


class StepLog:
    """Collects what the micro-batches of a step say, and logs it with the last of them.

    What is on a device stays there: it is read when it is written or shown.
    """

    def __init__(self) -> None:
        self._window: dict[str, Any] = {}

    def _add(self, name: str, value: Any) -> None:
        if isinstance(value, Tensor):
            # So wide that how many micro-batches add up to it does not show; Macs have no such.
            value = value.detach() if value.device.type == "mps" else value.detach().double()
        self._window[name] = self._window[name] + value if name in self._window else value

    def note_loss(self, name: str, share: Tensor) -> None:
        """Add a micro-batch's share of a loss of the effective batch."""
        self._add(f"loss/{name}", share)

    def note_weights(self, signals: TokenSignals, weights: Tensor) -> None:
        """Add the token weights of a micro-batch.

        The mean entropy and the largest weight are those of the effective batch. The share of the
        top decile is a mean over micro-batches, each with a decile of its own, so it depends on
        their size. A process without forget tokens notes the same names: what is summed over
        processes must be logged by all of them.
        """
        weights = weights.detach()
        top = largest = entropy = weights.new_zeros(())
        if len(weights):
            # Of weights that are all 0, no share is any token's.
            total = weights.sum().clamp(min=torch.finfo(weights.dtype).tiny)
            top = weights.topk(max(1, len(weights) // 10)).values.sum() / total
            largest = weights.max()
            entropy = largest if signals.entropies is None else signals.entropies.sum()
        self._add("weights/batches", int(len(weights) > 0))
        self._add("weights/tokens", len(weights))
        self._add("weights/top_decile_share", top)
        before = self._window.get("weights/max", weights.new_zeros(()))
        self._window["weights/max"] = torch.maximum(before, largest)
        if signals.entropies is not None:
            self._add("weights/mean_entropy", entropy)

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
        numbers = [float(self._window.pop(name, 0.0)) for name in names]
        if module.trainer.world_size > 1:
            counts = torch.tensor(numbers, device=module.device)
            batches, tokens = module.trainer.strategy.reduce(counts, reduce_op="sum").clamp(min=1)
        else:
            batches, tokens = (max(number, 1.0) for number in numbers)
        # What goes to a bar is read at once; where there is none, nothing waits for it.
        has_bar = module.trainer.progress_bar_callback is not None
        for name, noted in self._window.items():
            value = noted.float()
            kind = name.split("/")[0]
            if kind == "loss":
                shown = has_bar and name != "loss/total"
                module.log(name, value, sync_dist=True, reduce_fx="sum", prog_bar=shown)
            elif name == "weights/max":
                module.log(name, value, sync_dist=True, reduce_fx="max")
            else:
                count = tokens if name == "weights/mean_entropy" else batches
                module.log(name, value / count, sync_dist=True, reduce_fx="sum")
        self._window.clear()
