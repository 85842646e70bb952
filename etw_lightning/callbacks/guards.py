"""Stops a run before a loss, a gradient or a weight that is not finite does harm."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from etw_lightning.callbacks.findings import Finding, TrainingStoppedError
from etw_lightning.training.module import UnlearningModule
from etw_lightning.training.training_batches import Batch

__all__ = ["FiniteGuard"]

#: Names and rows that a message holds; ``results.json`` holds all rows.
_SHOWN_NAMES, _SHOWN_ROWS = 3, 8
#: Rows of a batch that a term of the loss reads.
_GROUPS: Mapping[str, tuple[str, ...]] = {
    "forget": ("forget", "alternative"),
    "retain": ("retain",),
}
_FILLER = "filler"
_WAY_OUT = (
    "Lower model.lr or model.forget_weight, or look at these rows; the same command would stop "
    "here again."
)


@dataclass
class _MicroBatch:
    """Rows of a micro-batch by group, and its losses by term, on the device."""

    rows: dict[str, list[str]]
    losses: dict[str, Tensor] = field(default_factory=dict)

    @property
    def broken(self) -> list[str]:
        """Terms that are not finite; the total only if no term is."""
        terms = [name for name, loss in self.losses.items() if not math.isfinite(loss.item())]
        return [name for name in terms if name != "total"] or terms


class FiniteGuard(Callback):
    """Looks at each optimiser step's losses and gradients before the step is made.

    For that the device is waited for once a step: a step that has been made already would leave
    weights that are not finite, in the caller's own model too. Nothing else in a step waits. One
    reduction over the processes per step lets all of them stop together. Weights are looked at
    before they go into a checkpoint. In float16 with a loss scale, gradients that are infinite are
    ordinary (the step is left out and the scale falls): there the losses alone are looked at.
    DeepSpeed holds gradients where they can't be seen; their norm is read after its step.
    """

    def __init__(self) -> None:
        self._micro_batches: list[_MicroBatch] = []
        self._last: list[_MicroBatch] = []
        self._num_steps = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to count."""
        self._micro_batches, self._last, self._num_steps = [], [], trainer.global_step

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Note the rows of a micro-batch."""
        self._micro_batches.append(_MicroBatch(_rows_by_group(batch)))

    def on_before_backward(
        self, trainer: Trainer, pl_module: LightningModule, loss: Tensor
    ) -> None:
        """Note its losses."""
        self._micro_batches[-1].losses = dict(cast(UnlearningModule, pl_module).losses)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Any
    ) -> None:
        """Check losses and gradients of the step that is about to be made.

        Raises:
            TrainingStoppedError: If one of them is not finite, on any process; on all of them.
        """
        self._last, self._micro_batches = self._micro_batches, []
        losses = [loss for one in self._last for loss in one.losses.values()]
        looks = not _scales_losses(trainer)
        gradients = _locals(p.grad for p in pl_module.parameters()) if looks else []
        if not _agree(trainer, pl_module, losses, gradients):
            return
        named = pl_module.named_parameters() if looks else ()
        bad = _not_finite((name, weight.grad) for name, weight in named)
        found = _gather(trainer, self._terms(), bad, self._rows())
        step, made = trainer.global_step + 1, "the step was not made"
        raise TrainingStoppedError(_of_step(trainer, step, found, made))

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        """Read the norm of the gradients that DeepSpeed has stepped with.

        Raises:
            TrainingStoppedError: If it is not finite; it is the same on all processes.
        """
        if trainer.global_step == self._num_steps:
            return
        self._num_steps = trainer.global_step
        norm_of = getattr(trainer.strategy.model, "get_global_grad_norm", None)
        norm = None if norm_of is None or _scales_losses(trainer) else norm_of()
        # It says -1 of some that are not finite.
        if norm is not None and not 0 <= float(norm) < math.inf:
            found = _gather(trainer, [], [], self._rows())
            made = "no checkpoint is of that step"
            raise TrainingStoppedError(_of_step(trainer, trainer.global_step, found, made))

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Refuse to write weights that are not finite over good ones.

        Raises:
            TrainingStoppedError: If one is not; on all processes.
        """
        weights = [weight for weight in pl_module.parameters() if weight.requires_grad]
        if not _agree(trainer, pl_module, [], _locals(weights)):
            return
        bad = _not_finite(pl_module.named_parameters())
        shares = _gather(trainer, [], bad, [])
        names = list(dict.fromkeys(name for share in shares for name in share["weights"]))
        step = trainer.global_step
        reason = (
            f"training stopped at step {step}: weights are not finite ({_some(names)}); no "
            "checkpoint was written of them. Lower model.lr."
        )
        raise TrainingStoppedError(Finding("weights", reason, step, trainer.current_epoch + 1))

    def _terms(self) -> list[str]:
        """Return, as ``forget loss is nan``, the terms that are not finite on this process."""
        said = {
            name: f"{name} loss is {one.losses[name].item()}"
            for one in self._last
            for name in one.broken
        }
        return list(said.values())

    def _rows(self) -> list[str]:
        """Return the rows of the step on this process, those with a broken loss first."""
        first: list[str] = []
        for one in self._last:
            for term in one.broken:
                for group in _GROUPS.get(term, tuple(one.rows)):
                    first += one.rows.get(group, [])
        every = [row for one in self._last for rows in one.rows.values() for row in rows]
        return [row for row in dict.fromkeys((*first, *every)) if row != _FILLER]


def _rows_by_group(batch: Batch) -> dict[str, list[str]]:
    groups, start = {}, 0
    for name, size in batch["sizes"].items():
        groups[name] = batch["row_ids"][start : start + size]
        start += size
    return groups


def _scales_losses(trainer: Trainer) -> bool:
    """Tell whether gradients are those of a loss times a scale that is found by trying."""
    return str(trainer.precision).startswith("16")


def _local(tensor: Tensor) -> Tensor:
    """Return this process's part of a tensor that may be spread over processes."""
    # FSDP2 makes distributed tensors of weights; ZeRO-3 keeps its part beside an empty weight.
    to_local = getattr(tensor, "to_local", None)
    part = getattr(tensor, "ds_tensor", tensor) if to_local is None else to_local()
    return cast(Tensor, part).detach()


def _locals(tensors: Iterable[Tensor | None]) -> list[Tensor]:
    parts = (_local(one) for one in tensors if one is not None)
    # A process may have none of a small weight's rows.
    return [part for part in parts if part.numel()]


def _agree(
    trainer: Trainer, module: LightningModule, losses: Sequence[Tensor], tensors: Sequence[Tensor]
) -> bool:
    """Tell whether anything is broken on any process: one reduction, one synchronisation."""
    # The norm that clipping takes: where that overflows, the step would be by nothing at all.
    norm = torch.nn.utils.get_total_norm(tensors)
    are_finite = [one.isfinite().to(module.device) for one in (norm, *losses)]
    flag = (~torch.stack(are_finite).all()).float()
    if trainer.world_size > 1:
        flag = cast(Tensor, trainer.strategy.reduce(flag, reduce_op="max"))
    return bool(flag.item())


def _not_finite(named: Iterable[tuple[str, Tensor | None]]) -> list[str]:
    """Return the names, as ``model.train_only`` takes them, of what is not finite."""
    return [
        name.removeprefix("scorer.lm.")
        for name, tensor in named
        if tensor is not None and not bool(_local(tensor).isfinite().all())
    ]


def _gather(
    trainer: Trainer, terms: list[str], weights: list[str], rows: list[str]
) -> list[dict[str, Any]]:
    """Return what the processes that are concerned have found: those with a broken loss, if any."""
    mine = {"rank": trainer.global_rank, "terms": terms, "weights": weights, "rows": rows}
    shares = [mine]
    if trainer.world_size > 1:
        shares = [{}] * trainer.world_size
        torch.distributed.all_gather_object(shares, mine)
    for key in ("terms", "weights"):
        concerned = [share for share in shares if share[key]]
        if concerned:
            return concerned
    return shares


def _of_step(
    trainer: Trainer, step: int, shares: Sequence[Mapping[str, Any]], made: str
) -> Finding:
    """Return the finding of an optimiser step."""
    terms, names, rows = (
        list(dict.fromkeys(one for share in shares for one in share[key]))
        for key in ("terms", "weights", "rows")
    )
    kind = "loss" if terms else "gradient"
    place = _some(names) or "its norm"
    what = " and the ".join(terms) if terms else f"gradient is not finite ({place})"
    ranks = [str(share["rank"]) for share in shares]
    where = f", on process {', '.join(ranks)} of {trainer.world_size}" * (trainer.world_size > 1)
    epoch = trainer.current_epoch + 1
    shown = ", ".join(rows[:_SHOWN_ROWS])
    more = f" and {len(rows) - _SHOWN_ROWS} more" * (len(rows) > _SHOWN_ROWS)
    reason = (
        f"training stopped at step {step}, in epoch {epoch}: the {what}{where}; {made}. "
        f"Rows: {shown}{more}. {_WAY_OUT}"
    )
    return Finding(kind, reason, step, epoch, tuple(rows))


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN_NAMES} more" * (len(names) > _SHOWN_NAMES)
    return f"{', '.join(names[:_SHOWN_NAMES])}{more}"
