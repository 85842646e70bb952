"""The trainer of a run: where it writes, what it logs to, and its callbacks in their order."""

from __future__ import annotations

import re
import sys
from typing import Any, cast

from jsonargparse import Namespace
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from etw_lightning.boards.grouped import GroupedTensorBoard
from etw_lightning.boards.pictures import WeightPictures
from etw_lightning.boards.progress import LineProgress
from etw_lightning.callbacks.collapse import Collapse
from etw_lightning.callbacks.evaluation import EvaluationCallback, SetScores, Suite
from etw_lightning.callbacks.guards import FiniteGuard
from etw_lightning.commands.parser import Parser
from etw_lightning.commands.run.evaluate import EvaluateCommand
from etw_lightning.commands.run.fit import FitCommand
from etw_lightning.commands.run.run_checks import say
from etw_lightning.files.checkpoint_folder import remove_checkpoints
from etw_lightning.runs.checkpointing import Checkpoints
from etw_lightning.runs.companions import start_companions
from etw_lightning.runs.folder import (
    UNREADABLE,
    FinishedError,
    check_run,
    finished_command,
    is_of_fit,
    is_result_of,
)
from etw_lightning.runs.launched import launched_settings
from etw_lightning.runs.resume import check_processes, has_lock, traces_of
from etw_lightning.runs.run_report import RunReport
from etw_lightning.schema import InputError
from etw_lightning.training.datamodule import UnlearningDataModule
from etw_lightning.training.step_log import count_epochs_from_one
from etw_lightning.training.strategies import is_first_process

__all__ = ["RunTrainer"]


class RunTrainer(FitCommand, EvaluateCommand):
    """Makes the trainer, once the run's folder is known to be free or its own."""

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Give the trainer the run's folder, its logger and the report."""
        config = self.config[self.subcommand]
        check_run(config, self.folder)
        if self.subcommand == "fit" and is_first_process() and has_lock(self.folder):
            # Waits for a run that is about to end, before its traces are read.
            self._lock()
        if self.subcommand != "weights":
            self._check_finished(config.overwrite)
        self.resumed = None
        if self.subcommand == "fit":
            self._find_checkpoint()
            self.traces = traces_of(self.folder)
        self.seed = int(config.seed_everything or 0)
        has_lines = _has_lines(config.trainer)
        settings = self._settings(config.trainer)
        if has_lines:
            settings["enable_progress_bar"] = False
        try:
            trainer = super().instantiate_trainer(**{**kwargs, **settings})
        except (ValueError, TypeError, RuntimeError, MisconfigurationException) as error:
            if _is_fault(error):
                raise
            raise _refusal(error) from error
        start_companions(trainer)
        callbacks: list[Callback] = cast(Any, trainer).callbacks
        if has_lines:
            callbacks.append(LineProgress())
        count_epochs_from_one(callbacks)
        if self.subcommand == "evaluate":
            self._add_suite(callbacks)
        else:
            self._add_report(callbacks, trainer)
        return trainer

    def _settings(self, given: Namespace) -> dict[str, Any]:
        """Return what the trainer is given beside what was typed."""
        settings: dict[str, Any] = {"default_root_dir": str(self.folder)}
        if SLURMEnvironment.detect() and not given.plugins:
            # Its own handler would save inside a signal handler.
            settings["plugins"] = [SLURMEnvironment(auto_requeue=False)]
        settings |= launched_settings(given.devices, given.num_nodes)
        if self.subcommand != "fit":
            settings["logger"] = False
        elif given.logger in (None, True):
            # What was logged behind the checkpoint is logged again.
            step = 0 if self.resumed is None else self.resumed.step
            where = (self.folder.parent, self.folder.name, "")
            settings["logger"] = GroupedTensorBoard(
                *where, purge_step=step, default_hp_metric=False
            )
        return settings

    def _add_suite(self, callbacks: list[Callback]) -> None:
        """Put the metrics of ``evaluate`` where the file's own are, of training."""
        self.suite = Suite(self.config["evaluate"].metrics)
        of_fit = (EvaluationCallback, Checkpoints, Collapse)
        callbacks[:] = [one for one in callbacks if not isinstance(one, of_fit)]
        callbacks.append(self.suite)

    def _add_report(self, callbacks: list[Callback], trainer: Trainer) -> None:
        """Add what a run that trains is watched by, in order."""
        config = self.config[self.subcommand]
        label = "fine-tuned" if config.model.forget is None else "unlearned"
        self.report = RunReport(self.folder, self.plain, self.seed, label)
        self.report.changed = self._changes()
        # Checkpoints hold what all others have noted, so they come last.
        self.checkpoints = next(one for one in callbacks if isinstance(one, Checkpoints))
        callbacks.remove(self.checkpoints)
        if not any(isinstance(one, EvaluationCallback) for one in callbacks):
            callbacks += _scores_of_own(self.datamodule)
        if trainer.loggers:
            callbacks += [LearningRateMonitor("step"), WeightPictures()]
        callbacks += [self.report, self.checkpoints]
        if self.resumed is not None:
            check_processes(self.resumed, trainer.world_size)
        # Before all others: what they save must not be broken.
        callbacks.insert(0, FiniteGuard())

    def _check_finished(self, may_overwrite: bool) -> None:
        """Refuse a folder whose results would be lost."""
        command = finished_command(self.folder)
        if self.subcommand == "evaluate":
            if command == "fit" or (command == UNREADABLE and is_of_fit(self.folder)):
                raise InputError(
                    f"output_dir {str(self.folder)!r} holds a run of fit; give another folder."
                )
            if command == UNREADABLE:
                say(f"warning: {self.folder / 'results.json'} was cut; it is written anew")
        elif command == UNREADABLE and not may_overwrite:
            raise InputError(
                f"output_dir {str(self.folder)!r} holds a results.json that can't be read; give "
                "another folder, or --overwrite to run again."
            )
        elif command is not None and not may_overwrite:
            config = self.config[self.subcommand]
            has_model = not config.save_model or (self.folder / "model").is_dir()
            if self.subcommand == "fit" and has_model and is_result_of(self.folder, self.plain):
                if not config.save_model and is_first_process():
                    # It may have been ended before it came to that.
                    remove_checkpoints(self.folder)
                raise FinishedError(self.folder)
            raise InputError(
                f"output_dir {self.folder} holds a finished run; give another folder, or "
                "--overwrite to run again."
            )


def _is_fault(error: Exception) -> bool:
    """Tell a fault in code from what Lightning says of what was typed."""
    return isinstance(error, TypeError) and not str(error).lstrip().startswith("`")


def _refusal(error: Exception) -> InputError:
    """Return what Lightning refuses, with the key as it is typed: it names some, in backticks."""
    reason = " ".join(str(error).split())
    if reason.startswith("`CUDAAccelerator` can not run"):
        return InputError(
            "trainer.accelerator: there is no CUDA device; give --trainer.accelerator cpu "
            "with --config strategy/single, strategy/ddp or strategy/fsdp, or run "
            "where there is one."
        )
    reason = re.sub("^`(\\w+)`", r"trainer.\1", reason)
    is_named = reason.startswith("trainer.")
    return InputError(reason if is_named else f"trainer: {reason}")


def _has_lines(trainer: Namespace) -> bool:
    """Whether progress is told in lines: there is no terminal, and no bar was asked for."""
    is_asked = any("enable_progress_bar" in word for word in Parser.typed)
    return trainer.enable_progress_bar in (None, True) and not is_asked and not sys.stdout.isatty()


def _scores_of_own(data: UnlearningDataModule) -> list[EvaluationCallback]:
    """Return what shows numbers of own rows where no callback is asked for; nothing of others."""
    if not data.is_own:
        return []
    splits = {"forget": data.forget_split, "retain": data.retain_split}
    given = [name for name, split in splits.items() if split is not None]
    wanted = given or (["retain"] if data.split is not None else list(splits))
    sets = [name for name in wanted if name in data.set_names]
    return [SetScores(sets)] if sets else []
