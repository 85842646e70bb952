"""Checkpoints while training: when they are made, which are kept, and stopping at one."""

from __future__ import annotations

import errno
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from jsonargparse.typing import NonNegativeFloat, PositiveFloat, PositiveInt
from lightning.pytorch import Callback, LightningModule, Trainer

from etw_lightning.callbacks.evaluation import EvaluationCallback
from etw_lightning.callbacks.findings import Finding, TrainingStoppedError
from etw_lightning.files.checkpoint_folder import (
    FOLDER,
    STATE,
    describe_files,
    draft_of,
    files_below,
    folder_of,
    publish,
    remove,
    remove_drafts,
    saved_checkpoints,
)
from etw_lightning.metrics import Metric
from etw_lightning.runs.best_evaluation import BestEvaluation
from etw_lightning.runs.preemption import Preempted, StopSignals
from etw_lightning.runs.state_file import UnwrittenError
from etw_lightning.schema import InputError

__all__ = ["Checkpoints"]

#: What says that the validation behind an epoch's last step was begun and is to be made anew.
_BEGUN = {"ready": 1, "started": 1, "processed": 0, "completed": 0}


class Checkpoints(Callback):
    """Save what a run needs to go on exactly, so that the same command goes on from there.

    A checkpoint is made at the end of an optimiser step, after the evaluation if there is one; when
    the process is asked to stop (SIGTERM, SIGUSR1, Ctrl-C), at the end of the step it is in. Each
    is written under another name, flushed, and renamed.

    Args:
        every_n_steps: Optimiser steps between checkpoints; null for none by steps.
        every_n_minutes: Minutes between checkpoints; null for none by time.
        keep: The last so many are kept.
        best: Metric by which one more is kept, of those at evaluations; null for none. Runs that do
            not compute it keep none.
        utility: Metric that must not have fallen too far for an epoch to be the best.
        utility_floor: Share of its value before training that ``utility`` must have, >= 0; null for
            no floor. An epoch in which it is not computed can't be the best.
    """

    def __init__(
        self,
        every_n_steps: PositiveInt | None = None,
        every_n_minutes: PositiveFloat | None = 30.0,
        keep: PositiveInt = 2,
        best: str | None = "forget_quality",
        utility: str = "model_utility",
        utility_floor: NonNegativeFloat | None = 0.95,
    ) -> None:
        self.every_n_steps = every_n_steps
        self.every_n_minutes = every_n_minutes
        self.keep = keep
        self.rating = BestEvaluation(best, utility, utility_floor)
        self.signals = StopSignals()
        self._run: Path | None = None
        self._manifest: Mapping[str, Any] = {}
        self._seen = 0
        self._saved_at = time.monotonic()
        self._is_due = self._is_best = self._repeats_validation = False
        self._common = 0
        #: Whether the batch that has just been had is the epoch's last.
        self._is_last = False

    def begin(self, run: Path, manifest: Mapping[str, Any], signals: StopSignals) -> None:
        """Say where checkpoints go and what their manifests hold beside their own.

        Args:
            run: The run's folder.
            manifest: What a run that goes on from one must have in common with this one.
            signals: What may ask the run to stop.
        """
        self._run, self._manifest, self.signals = run, manifest, signals

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Watch for signals; the trainer has just put its own handlers there."""
        self._watch()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start counting; of a resumed run, from the checkpoint."""
        self._watch()
        self._seen, self._saved_at = trainer.global_step, time.monotonic()
        ends = torch.tensor([-1.0, 1.0], device=trainer.strategy.root_device) * self._seen
        least, most = trainer.strategy.reduce(ends, reduce_op="max").tolist()
        if -least != most:
            raise InputError(
                f"output_dir {str(self._run)!r}: processes went on from different checkpoints, as "
                "one was damaged; give the same command again."
            )

    def _watch(self) -> None:
        self.signals.install()
        self.signals.is_watched = True

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave signals to end the process at once: the steps are done."""
        self.signals.is_watched = False

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """As ``on_fit_end``."""
        self.signals.is_watched = False

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save, and stop if that is asked for, once the optimiser has stepped."""
        self._is_last = batch_idx + 1 == trainer.num_training_batches
        if trainer.global_step == self._seen:
            return
        self._seen = trainer.global_step
        by_steps = self.every_n_steps is not None and self._seen % self.every_n_steps == 0
        must_stop, by_time = self._agree(trainer, self._is_time)
        self._is_due = self._is_due or by_steps or by_time
        if self._is_last or self._is_evaluated_next(trainer):
            return  # what follows the step belongs to it
        if self._is_due or must_stop:
            self._save(trainer)
        if must_stop:
            self._stop(trainer)

    @staticmethod
    def _is_evaluated_next(trainer: Trainer) -> bool:
        """Tell whether an evaluation within the epoch follows the batch that has just been had."""
        loop = cast(Any, trainer.fit_loop)
        return bool(loop.epoch_loop._should_check_val_fx(loop._data_fetcher))

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop before a validation, if that is asked for; it is made when the run goes on."""
        self._is_best = False
        if trainer.state.fn == "fit":
            batches = torch.tensor(
                float(sum(map(int, cast(Any, trainer).num_val_batches))),
                device=trainer.strategy.root_device,
            )
            self._common = int(trainer.strategy.reduce(batches, reduce_op="min"))
            self._stop_in_validation(trainer)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Stop in the middle of a validation, where every process has a batch."""
        if trainer.state.fn == "fit" and batch_idx < self._common:
            self._stop_in_validation(trainer)

    def _stop_in_validation(self, trainer: Trainer) -> None:
        if not trainer.sanity_checking and self._is_within_step(trainer):
            return
        must_stop, _ = self._agree(trainer, False)
        if not must_stop:
            return
        if not trainer.sanity_checking:
            self._repeats_validation = True
            self._save(trainer)
        self._stop(trainer)

    @staticmethod
    def _is_within_step(trainer: Trainer) -> bool:
        """Tell whether gradients are held of micro-batches, which no checkpoint has."""
        return bool(cast(Any, trainer.fit_loop.epoch_loop)._should_accumulate())

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """See whether this is the best evaluation so far; save what was due at its step."""
        self._rate(trainer)
        is_training = trainer.state.fn == "fit" and not trainer.sanity_checking
        if is_training and not self._is_last and not self._is_within_step(trainer):
            self._end_step(trainer)

    def _rate(self, trainer: Trainer) -> None:
        callbacks = cast(list[Any], trainer.callbacks)  # type: ignore[attr-defined]
        found: dict[str, Metric] = {}
        for one in callbacks:
            if isinstance(one, EvaluationCallback):
                found |= one.latest
        if trainer.sanity_checking:
            self.rating.begin(found)
        elif self.rating.improves(found):
            self._is_best = True

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save what was due at the epoch's last step, and the best epoch."""
        self._end_step(trainer)

    def _end_step(self, trainer: Trainer) -> None:
        must_stop, by_time = self._agree(trainer, self._is_time)
        if self._is_best:
            self.rating.step = trainer.global_step
        if self._is_due or self._is_best or by_time or must_stop:
            self._save(trainer)
        self._is_best = False
        if must_stop:
            self._stop(trainer)

    @property
    def _is_time(self) -> bool:
        if self.every_n_minutes is None:
            return False
        return time.monotonic() - self._saved_at >= 60 * self.every_n_minutes

    def _agree(self, trainer: Trainer, is_time: bool) -> tuple[bool, bool]:
        """Return whether any process was asked to stop, and whether the first one's time is up."""
        wants = [float(bool(self.signals.received)), float(is_time and trainer.is_global_zero)]
        if trainer.world_size > 1:
            flags = torch.tensor(wants, device=trainer.strategy.root_device)
            wants = trainer.strategy.reduce(flags, reduce_op="sum").tolist()
        return wants[0] > 0, wants[1] > 0

    def _save(self, trainer: Trainer) -> None:
        """Write a checkpoint whole, then let go of those that are not kept."""
        assert self._run is not None, "begin() first"
        self._is_due = False
        try:
            self._write(trainer)
        except (OSError, UnwrittenError) as error:
            if trainer.is_global_zero:
                remove_drafts(self._run)
            found = saved_checkpoints(self._run)
            last = found[-1].folder.name if found else "the start"
            reason = (
                f"the checkpoint of step {trainer.global_step} can't be written below "
                f"{str(self._run / FOLDER)!r} ({error}); {_way_out(error)}, and the same command "
                f"goes on from {last}."
            )
            finding = Finding("disk", reason, trainer.global_step, trainer.current_epoch + 1)
            raise TrainingStoppedError(finding) from error
        self._saved_at = time.monotonic()

    def _write(self, trainer: Trainer) -> None:
        assert self._run is not None
        named = str(folder_of(self._run, trainer.global_step))
        folder = Path(trainer.strategy.broadcast(named))
        draft = draft_of(folder)
        if trainer.is_global_zero:
            shutil.rmtree(draft, ignore_errors=True)
            draft.mkdir(parents=True)
        trainer.strategy.barrier("checkpoint")
        trainer.save_checkpoint(draft / STATE, weights_only=False)
        # As the first process sees them: a file that another does not see yet is an error.
        written = trainer.strategy.broadcast([str(path) for path in files_below(draft)])
        mine = written[trainer.global_rank :: trainer.world_size]
        files = describe_files(draft, map(Path, mine))
        if trainer.world_size > 1:
            shares: list[Any] = [None] * trainer.world_size
            torch.distributed.all_gather_object(shares, files)
            files = {name: one for share in shares for name, one in share.items()}
        if trainer.is_global_zero:
            own = {
                "step": trainer.global_step,
                "epoch": trainer.current_epoch,
                "world_size": trainer.world_size,
                "files": files,
            }
            publish(draft, folder, {**self._manifest, **own})
            self._let_go()
        trainer.strategy.barrier("checkpoint is written")

    def _let_go(self) -> None:
        """Remove all but the last few steps and the best; of a step all but its newest."""
        assert self._run is not None
        found = saved_checkpoints(self._run)
        of_step = {one.step: one for one in found}
        others = [step for step in of_step if step != self.rating.step]
        kept = [of_step[step].folder for step in others[-self.keep :]]
        kept += [one.folder for step, one in of_step.items() if step == self.rating.step]
        for one in found:
            if one.folder not in kept:
                remove(one.folder)

    def _stop(self, trainer: Trainer) -> None:
        if trainer.is_global_zero:
            assert self._run is not None
            found = saved_checkpoints(self._run)
            where = (
                f"the same command goes on from {found[-1].folder}"
                if found
                else ("before the first step; the same command starts again")
            )
            name = self.signals.received or "a signal to another process"
            sys.stdout.write(f"stopped by {name} after step {trainer.global_step}; {where}\n")
            sys.stdout.flush()
        raise Preempted(self.signals.received, is_told=True)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Have a validation that was broken off made from its beginning."""
        if self._repeats_validation:
            loops = checkpoint["loops"]["fit_loop"]
            progress = loops["epoch_loop.val_loop.batch_progress"]
            progress["current"], progress["total"] = dict(_BEGUN), dict(_BEGUN)
            progress["is_last_batch"] = False

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run goes on with; plain numbers."""
        return self.rating.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from ``state_dict``."""
        self.rating.load_state_dict(state_dict)

    def kept(self) -> dict[str, Any]:
        """Return what ``results.json`` says of the checkpoints there are."""
        assert self._run is not None
        found = saved_checkpoints(self._run)
        names = [one.folder.relative_to(self._run).as_posix() for one in found]
        best = [
            name for name, one in zip(names, found, strict=True) if one.step == self.rating.step
        ]
        return {"kept": names, "best": best[-1] if best else None}


def _way_out(error: Exception) -> str:
    """Return what helps against a file that could not be written."""
    number = getattr(error, "errno", None)
    is_place = number in (errno.EACCES, errno.EPERM, errno.EROFS)
    return "make the folder writable" if is_place else "make room there"
