"""What is logged of an optimiser step: losses, how token weights lie; and the bar that shows it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import RichProgressBar
from torch import Tensor

from etw_lightning.kernels.signals import TokenSignals
from etw_lightning.weighting.spread import row_aucs, row_ginis

__all__ = ["StepLog", "count_epochs_from_one", "ends_step"]

#: What is counted of all processes, and what each statistic of the weights is a mean over.
_COUNTS = ("weights/batches", "weights/tokens", "weights/rows", "weights/annotated_rows")
_MEAN_OVER = {
    "weights/top_decile_share": "weights/batches",
    "weights/mean_entropy": "weights/tokens",
    "weights/mean_importance": "weights/tokens",
    "weights/important_share": "weights/tokens",
    "weights/gini": "weights/rows",
    "weights/auc": "weights/annotated_rows",
}
#: Of these an epoch has a mean of its own.
_OF_EPOCH = ("weights/gini", "weights/auc")


#: What some numbers are called beside the bar.
_SHORT = {"forget_quality": "FQ", "model_utility": "MU"}


class _EpochsFromOne(RichProgressBar):
    """Lightning's bar, with epochs counted as all else here does, and names that fit beside it."""

    def _get_train_description(self, current_epoch: int) -> str:
        whole = self.trainer.max_epochs or 0
        words = f"Epoch {current_epoch + 1}" + (f"/{whole}" if whole > 0 else "")
        # As wide as the other bar's, so that bars do not jump.
        return words.ljust(len(self.validation_description))

    def get_metrics(self, trainer: Any, pl_module: LightningModule) -> dict[str, Any]:
        """Return the numbers beside the bar, by names that fit there."""
        shown = super().get_metrics(trainer, pl_module)
        names = {name: name.removeprefix("eval/") for name in shown}
        return {_SHORT.get(names[name], names[name]): value for name, value in shown.items()}


def count_epochs_from_one(callbacks: list[Callback]) -> None:
    """Have Lightning's bar among the callbacks count epochs from 1, as tables and files do."""
    for place, one in enumerate(callbacks):
        if type(one) is RichProgressBar:
            callbacks[place] = bar = _EpochsFromOne()
            vars(bar).update(vars(one))


def ends_step(trainer: Any, batch_idx: int) -> bool:
    """Tell whether the optimiser steps after a micro-batch.

    Args:
        trainer: Whose run it is.
        batch_idx: Micro-batch of the epoch, from 0.
    """
    is_last = batch_idx + 1 == trainer.num_training_batches
    return is_last or (batch_idx + 1) % trainer.accumulate_grad_batches == 0


class StepLog:
    """Collects what the micro-batches of a step say, and logs it with the last of them.

    What is on a device stays there: it is read when it is written or shown.
    """

    def __init__(self) -> None:
        self._window: dict[str, Any] = {}
        #: Sums, counts and the largest weight of the epoch's steps, of all processes.
        self._epoch: dict[str, Any] = {}
        #: Whether any token has had weight: what is known, and what is not yet read.
        self._weighs_any = False
        self._largest_weight: Tensor | None = None

    def _add(self, name: str, value: Any) -> None:
        if isinstance(value, Tensor):
            # So wide that how many micro-batches add up to it does not show; Macs have no such.
            value = value.detach() if value.device.type == "mps" else value.detach().double()
        self._window[name] = self._window[name] + value if name in self._window else value

    def note_loss(self, name: str, share: Tensor) -> None:
        """Add a micro-batch's share of a loss of the effective batch."""
        self._add(f"loss/{name}", share)

    def note_weights(
        self, signals: TokenSignals, weights: Tensor, annotated: Tensor | None = None
    ) -> None:
        """Add the token weights of a micro-batch.

        The mean entropy and the largest weight are those of the effective batch, the Gini
        coefficient and the ROC-AUC means over its rows; a row of which all tokens are annotated, or
        none, has no ROC-AUC. The share of the top decile is a mean over micro-batches, each with a
        decile of its own, so it depends on their size. A process without forget tokens notes the
        same names: what is summed over processes must be logged by all of them.

        Args:
            signals: Of the forget rows.
            weights: Of their tokens.
            annotated: Which labels of the whole batch, of which the forget rows are the first,
                ``data.annotations`` marks; None without.
        """
        weights = weights.detach()
        self._note_any_weight(weights)
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
        if signals.importances is not None:
            self._add("weights/mean_importance", signals.importances.sum())
            self._add("weights/important_share", (signals.importances > 0.5).sum())
        counts = signals.row_counts().detach()
        self._add("weights/rows", (counts > 0).sum())
        self._add("weights/gini", row_ginis(weights, signals).sum())
        if annotated is not None:
            areas, is_one = row_aucs(weights, annotated[: len(weights)], signals)
            self._add("weights/annotated_rows", is_one.sum())
            self._add("weights/auc", areas.sum())

    def _note_any_weight(self, weights: Tensor) -> None:
        """Keep what tells whether a token had weight, without waiting for it."""
        if not len(weights) or self._weighs_any:
            return
        largest = weights.abs().max()
        before = self._largest_weight
        self._largest_weight = largest if before is None else torch.maximum(before, largest)

    @property
    def weighs_any(self) -> bool:
        """Whether any token has had weight so far; waits for the device to say so."""
        if not self._weighs_any and self._largest_weight is not None:
            self._weighs_any = bool(self._largest_weight != 0)
        return self._weighs_any

    def log(self, module: LightningModule, batch_idx: int) -> None:
        """Log an optimiser step's losses and weight statistics once its last part is done.

        Args:
            module: Whose step it is; all processes must call it.
            batch_idx: Micro-batch of the epoch, from 0.
        """
        if batch_idx == 0:
            # A run that goes on from the last step of an epoch still holds that one's sums.
            self._epoch = {}
        if not ends_step(module.trainer, batch_idx):
            return
        counts = self._counted(module)
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
                mean = value / counts[_MEAN_OVER[name]]
                module.log(name, mean, sync_dist=True, reduce_fx="sum")
        self._window.clear()

    def _counted(self, module: LightningModule) -> dict[str, Any]:
        """Return the counts of all processes, at least 1 each, and add the step to the epoch."""
        counts = {name: self._window.pop(name, 0) for name in _COUNTS}
        noted = {name: self._window[name] for name in _OF_EPOCH if name in self._window}
        noted = {**counts, **noted}
        largest = self._window.get("weights/max")
        if module.trainer.world_size > 1:
            own = [*noted.values(), 0.0 if largest is None else largest]
            own = [torch.as_tensor(one, device=module.device).double() for one in own]
            every = cast(Tensor, module.all_gather(torch.stack(own)))
            noted = dict(zip(noted, every.sum(0)[:-1], strict=True))
            largest = None if largest is None else every[:, -1].max()
        if largest is not None:
            for name, value in noted.items():
                self._epoch[name] = self._epoch.get(name, 0) + value
            before = torch.as_tensor(self._epoch.get("weights/max", 0.0)).to(largest)
            self._epoch["weights/max"] = torch.maximum(before, largest)
        return {name: torch.as_tensor(noted[name]).clamp(min=1) for name in counts}

    def log_epoch(self, module: LightningModule) -> None:
        """Log the epoch's largest weight, and means over its rows, and begin the next.

        Args:
            module: Whose epoch it was; all processes must call it.
        """
        epoch, self._epoch = self._epoch, {}
        for name, value in epoch.items():
            short = name.removeprefix("weights/")
            if name == "weights/max":
                module.log(f"weights/epoch_{short}", torch.as_tensor(value).float())
            elif name in _OF_EPOCH and epoch[_MEAN_OVER[name]]:
                mean = torch.as_tensor(value / epoch[_MEAN_OVER[name]]).float()
                module.log(f"weights/epoch_{short}", mean)

    def epoch_so_far(self) -> dict[str, float]:
        """Return what a run must know of the epoch to go on in it."""
        return {name: float(value) for name, value in self._epoch.items()}

    def go_on(self, epoch: Mapping[str, float], *, weighs_any: bool = False) -> None:
        """Go on in an epoch.

        Args:
            epoch: As ``epoch_so_far`` has returned it.
            weighs_any: As it was then.
        """
        self._epoch, self._weighs_any = dict(epoch), weighs_any
