"""What a run notes while it trains: every evaluation, sample texts, why it stopped."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from etw_lightning.callbacks.collapse import Collapse
from etw_lightning.callbacks.evaluation import EvaluationCallback
from etw_lightning.callbacks.findings import Finding, TrainingStoppedError
from etw_lightning.metrics import Metric
from etw_lightning.notices import as_markdown_text
from etw_lightning.runs.key import run_key
from etw_lightning.runs.results import write_results
from etw_lightning.schema import InputError, Record
from etw_lightning.scoring.retain_results import RetainResults
from etw_lightning.training.module import UnlearningModule

__all__ = ["RunReport", "collapse_entries"]

_SAMPLES = 3


class RunReport(Callback):
    """Collects every evaluation of a run, and writes them down if it stops.

    Args:
        folder: The run's folder.
        config: The run's whole configuration.
        seed: The run's seed.
        label: What the trained model is called in the table.
    """

    def __init__(
        self, folder: Path, config: Mapping[str, Any], seed: int, label: str = "unlearned"
    ) -> None:
        self.folder, self.config, self.seed, self.label = folder, config, seed, label
        self.history: list[dict[str, Any]] = []
        self.target: dict[str, list[Record]] = {}
        self.unlearned: dict[str, list[Record]] = {}
        self.metrics: dict[str, Metric] = {}
        #: Sample texts of the latest evaluation, by set.
        self.samples: dict[str, str] = {}
        self.is_resumed = False
        #: Settings that were taken in place of what files say.
        self.changed: dict[str, dict[str, str]] = {}
        self.started = time.monotonic()
        #: Seconds that the parts of a run took which was broken off before.
        self.seconds_before = 0.0

    @property
    def seconds(self) -> float:
        """Seconds of the whole run, but for what was done twice."""
        return self.seconds_before + time.monotonic() - self.started

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the evaluation that has just been made."""
        module = cast(UnlearningModule, pl_module)
        callbacks = cast(list[Any], trainer.callbacks)  # type: ignore[attr-defined]
        found = [c.latest for c in callbacks if isinstance(c, EvaluationCallback)]
        latest = {name: metric for part in found for name, metric in part.items()}
        if not latest:
            return
        records = dict(module.gather_records())
        if trainer.sanity_checking:
            self.target = records
        self.unlearned, self.metrics = {**self.unlearned, **records}, {**self.metrics, **latest}
        epoch = 0 if trainer.sanity_checking else _running_epoch(trainer)
        # A run that goes on behind its last step scores the same model again.
        self.history = [one for one in self.history if one["step"] != trainer.global_step]
        self.history.append(
            {
                "epoch": epoch,
                "step": trainer.global_step,
                "metrics": {name: asdict(metric) for name, metric in latest.items()},
            }
        )
        self.samples = {
            name: _sample_panel(rows)
            for name, rows in records.items()
            if rows and rows[0].generation is not None
        }
        self._show_samples(trainer)

    def _show_samples(self, trainer: Trainer) -> None:
        if isinstance(trainer.logger, TensorBoardLogger) and trainer.is_global_zero:
            for name, panel in self.samples.items():
                trainer.logger.experiment.add_text(f"samples/{name}", panel, trainer.global_step)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Show the evaluation behind a checkpoint again, which went with the curves after it."""
        if not self.is_resumed:
            return
        self.is_resumed = False
        if self.history and self.history[-1]["step"] == trainer.global_step:
            values = {f"eval/{n}": one["value"] for n, one in self.history[-1]["metrics"].items()}
            for logger in trainer.loggers:
                logger.log_metrics(values, step=trainer.global_step)
            self._show_samples(trainer)

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run must not lose: the target's records and the epochs so far."""
        target = {name: [row.to_json() for row in rows] for name, rows in self.target.items()}
        return {
            "history": self.history,
            "target": target,
            "samples": self.samples,
            "seconds": self.seconds,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from ``state_dict``."""
        self.history = list(state_dict["history"])
        self.target = {
            name: [Record.from_json(row) for row in rows]
            for name, rows in state_dict["target"].items()
        }
        self.seconds_before = state_dict["seconds"]
        self.samples, self.is_resumed = dict(state_dict.get("samples", {})), True

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give a resumed run back what its target model had said."""
        data = cast(UnlearningModule, pl_module).datamodule
        if self.target and data.starts_from_target:
            source = "the model before training"
            data.results["target"] = RetainResults(source, self.target, key="data.target_results")

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Leave the reason in the folder if training could not go on, and the epochs so far."""
        if isinstance(exception, TrainingStoppedError):
            self._write_stopped(trainer, exception.finding)
            # A launcher ends all processes with the first of them; a full disk stops one alone.
            if exception.finding.kind != "disk":
                trainer.strategy.barrier()
        elif isinstance(exception, InputError) and trainer.global_step:
            # The evaluation of a model that training has broken.
            step, epoch = trainer.global_step, trainer.current_epoch + 1
            self._write_stopped(trainer, Finding("scores", str(exception), step, epoch))

    def _write_stopped(self, trainer: Trainer, finding: Finding) -> None:
        # Where the disk is full, what the command prints has to do.
        with contextlib.suppress(OSError):
            self._write_unfinished(trainer, finding)

    def _write_unfinished(self, trainer: Trainer, finding: Finding) -> None:
        if trainer.is_global_zero:
            write_results(
                self.folder / "results.json",
                {
                    "finished": False,
                    "command": "fit",
                    **collapse_entries(trainer),
                    "stopped": finding.to_json(),
                    "history": self.history,
                    "config_hash": run_key(self.config),
                    "seed": self.seed,
                    "steps": trainer.global_step,
                    "seconds": round(self.seconds, 1),
                },
            )


def _running_epoch(trainer: Trainer) -> int:
    """Return the epoch that the last batch belongs to, from 1.

    Lightning's own count differs inside and after ``fit``, and where a run went on behind its last
    step.
    """
    batches = trainer.fit_loop.epoch_loop.total_batch_idx + 1
    return math.ceil(batches / trainer.num_training_batches)


def collapse_entries(trainer: Trainer) -> dict[str, Any]:
    """Return what was found of a collapse."""
    callbacks = cast(list[Any], trainer.callbacks)  # type: ignore[attr-defined]
    entries: dict[str, Any] = {}
    for one in callbacks:
        if isinstance(one, Collapse):
            entries |= one.entries()
    return entries


def _sample_panel(rows: Sequence[Record]) -> str:
    """Return a Markdown table: question, truth, and what the model says now."""

    def cell(text: str | None) -> str:
        return as_markdown_text((text or "")[-400:])

    lines = ["| question | truth | model |", "| --- | --- | --- |"]
    for row in rows[:_SAMPLES]:
        lines.append(f"| {cell(row.question)} | {cell(row.answer)} | {cell(row.generation)} |")
    return "\n".join(lines)
