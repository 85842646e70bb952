"""What a run leaves behind: records, ``results.json``, a text panel, the table at the end."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from etw_lightning.boards.grouped import GroupedTensorBoard, hyperparameters
from etw_lightning.callbacks.collapse import Collapse
from etw_lightning.callbacks.evaluation import EvaluationCallback, Suite
from etw_lightning.callbacks.findings import Finding, TrainingStoppedError
from etw_lightning.callbacks.retain_budget import RetainBudget
from etw_lightning.judging.judgement import Judgement, judge, print_judgement
from etw_lightning.metrics import Metric
from etw_lightning.metrics.words import WordRule
from etw_lightning.notices import as_markdown_text, for_screen
from etw_lightning.runs.checkpointing import Checkpoints
from etw_lightning.runs.evaluate import WORST_ROWS, sources
from etw_lightning.runs.key import run_key
from etw_lightning.runs.results import (
    MUSE_SETS,
    Row,
    left_out_line,
    model_row,
    precision_lines,
    write_results,
)
from etw_lightning.schema import InputError, Record
from etw_lightning.scoring.retain_results import (
    RetainResults,
    save_provenance,
    save_records,
    write_atomically,
)
from etw_lightning.training.datamodule import UnlearningDataModule
from etw_lightning.training.module import UnlearningModule

__all__ = ["BEFORE", "RETAIN", "RunReport"]

#: Folder of a run, laid out as the run's own, that holds the records of before training.
BEFORE = "before"
#: The same with the records of the retain model, as far as they are in the table.
RETAIN = "retain_model"
_Sets = Mapping[str, Sequence[Record]]

_SAMPLES = 3


class RunReport(Callback):
    """Collects every evaluation of a run and writes it down.

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

    def rows(
        self,
        retain: Mapping[str, Sequence[Record]] | None,
        target: Mapping[str, Sequence[Record]] | None = None,
        *,
        is_own: bool = False,
        words: WordRule = "published",
    ) -> dict[str, Row]:
        """Return the table's rows: target, unlearned (or fine-tuned) and retain model.

        Args:
            retain: Records of the retain model.
            target: Records of a target model that is not the one the run began with, which then
                is called ``start``.
            is_own: The rows are the user's own.
            words: ``published`` or ``unicode``, as of ``data.rouge_tokenizer``.
        """
        is_muse = any(name in self.unlearned for name in MUSE_SETS)

        def row(records: Mapping[str, Sequence[Record]]) -> Row:
            return model_row(records, retain, is_muse=is_muse, is_own=is_own, words=words)

        table = {}
        if target:
            table["target"] = row(target)
        if self.target:
            table["start" if target else "target"] = row(self.target)
        table[self.label] = row(self.unlearned)
        if retain:
            table["retain"] = row({name: retain[name] for name in self.unlearned if name in retain})
        return table

    def write(
        self,
        trainer: Trainer,
        module: UnlearningModule,
        provenance: Mapping[str, Any],
        before: Callable[[Mapping[str, Any]], None] | None = None,
    ) -> None:
        """Write records and ``results.json`` and print the table.

        Args:
            trainer: The run's trainer.
            module: The trained model.
            provenance: What the records were made with.
            before: Called with the results before a file says that the run is finished.
        """
        table = self._table(module.datamodule) if self.unlearned else {}
        callbacks = cast(list[Any], trainer.callbacks)  # type: ignore[attr-defined]
        suites = [one for one in callbacks if isinstance(one, Suite)]
        left_out = {name: reason for one in suites for name, reason in one.left_out.items()}
        budgets = [one for one in callbacks if isinstance(one, RetainBudget)]
        keeps = self.config.get("save_model", True)
        saving = [one for one in callbacks if isinstance(one, Checkpoints) and keeps]
        found = _found(trainer)
        data = module.datamodule
        told = {
            "lost_labels": data.lost_labels,
            "lost_labels_scored": data.lost_scored,
            "repeated_forget_rows": data.repeated_rows,
            "precision_of_others": data.precision_of_others,
        }
        save_records(self.folder, self.unlearned)
        save_provenance(self.folder, provenance)
        judged = self._judged(module, table) if self.unlearned else None
        for place, others in ((BEFORE, self.target), (RETAIN, self._others(module.datamodule)[0])):
            if others:
                save_records(self.folder / place, others)
        page = judged.page() if judged is not None else ""
        if page:
            write_atomically(self.folder / WORST_ROWS, page.encode("utf-8"))
        self._show(trainer, page)
        results = {
            "finished": True,
            "command": "fit",
            "metrics": {name: asdict(metric) for name, metric in self.metrics.items()},
            **({"left_out": left_out} if left_out else {}),
            **found,
            **{name: found for name, found in told.items() if found},
            "table": table,
            **({"judgement": judged.to_json()} if judged is not None else {}),
            "history": self.history,
            **({"retain_budget": _kept(budgets[0])} if budgets else {}),
            **({"forget_scale": _scaled(module)} if module.forget_scale else {}),
            **({"checkpoints": saving[0].kept()} if saving else {}),
            **({"changed": self.changed} if self.changed else {}),
            "config_hash": run_key(self.config),
            "seed": self.seed,
            "git_commit": provenance["git_commit"],
            "versions": provenance["versions"],
            "provenance": provenance,
            "conventions": asdict(module.datamodule.conventions),
            **sources(module.datamodule),
            "steps": trainer.global_step,
            "seconds": round(self.seconds, 1),
        }
        if before is not None:
            before(results)
        write_results(self.folder / "results.json", results)
        if judged is not None:
            print_judgement(judged)
        if page:
            sys.stdout.write(f"worst rows, before and after: {self.folder / WORST_ROWS}\n")
        for one in budgets:
            sys.stdout.write(
                f"retain budget: the retain loss ends {one.rise:+.2f} % from its start, "
                f"{100 * one.budget:g} % were allowed; lambda ends at {one.weight:.3g}\n"
            )
        if module.forget_scale is not None:
            sys.stdout.write(
                f"forget_unit gradient: lambda {module.forget_weight:.3g} is a weight of "
                f"{module.effective_forget_weight:.3g} here\n"
            )
        for line in precision_lines(data.precision_of_others):
            sys.stdout.write(f"{line}\n")
        if left_out:
            sys.stdout.write(f"{for_screen(left_out_line(left_out))}\n")
        if "stopped" in found:
            sys.stdout.write(f"stopped: {_line(found['stopped'])}\n")
        for one in found.get("warnings", ()):
            sys.stdout.write(for_screen(f"warning: {_line(one)}") + "\n")

    def _others(self, data: UnlearningDataModule) -> tuple[_Sets, _Sets]:
        """Return what the retain and a target model that was given say of this run's rows."""
        held = {role: found.records for role, found in data.results.items()}
        retain = {n: data.retain_records(n) for n in self.unlearned if n in held.get("retain", ())}
        given = set(data.beside.get("target", ())) & set(held.get("target", ()))
        target = {n: data.target_records(n) for n in self.unlearned if n in given}
        return retain, target

    def _table(self, data: UnlearningDataModule) -> dict[str, Row]:
        """Return the table, with what the other models say of this run's rows."""
        retain, target = self._others(data)
        return self.rows(retain, target, is_own=data.is_own, words=data.rouge_tokenizer)

    def _judged(self, module: UnlearningModule, table: Mapping[str, Row]) -> Judgement:
        """Return the judgement of the trained model, next to those of the table."""
        data = module.datamodule
        retain, target = self._others(data)
        sets = {"target": target or self.target, "start": self.target}
        sets |= {"retain": retain, self.label: self.unlearned}
        return judge(
            {name: sets[name] for name in table},
            self.label,
            table,
            words=data.rouge_tokenizer,
            conventions=data.conventions,
            forgets=module.method.forget is not None,
        )

    def _show(self, trainer: Trainer, page: str) -> None:
        """Put the worst rows where the curves are, and all numbers beside the settings."""
        logger = trainer.logger
        if not isinstance(logger, TensorBoardLogger) or not trainer.is_global_zero:
            return
        if page:
            logger.experiment.add_text("samples/worst rows", page, trainer.global_step)
        if isinstance(logger, GroupedTensorBoard):
            numbers = {name: metric.value for name, metric in self.metrics.items()}
            settings = hyperparameters(self.config, self.seed)
            logger.show_end(settings, numbers, trainer.global_step)

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
                    **_found(trainer),
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


def _found(trainer: Trainer) -> dict[str, Any]:
    """Return what was found of a collapse."""
    callbacks = cast(list[Any], trainer.callbacks)  # type: ignore[attr-defined]
    entries: dict[str, Any] = {}
    for one in callbacks:
        if isinstance(one, Collapse):
            entries |= one.entries()
    return entries


def _line(found: Mapping[str, Any]) -> str:
    return f"collapse at step {found['step']}, in epoch {found['epoch']}: {found['reason']}"


def _kept(budget: RetainBudget) -> dict[str, float | int | None]:
    """Return what a budget came to: the rise in percent, and the weight in the end."""
    return {
        "budget_percent": 100 * budget.budget,
        "rise_percent": budget.rise,
        "start_loss": budget.start_loss,
        "forget_weight": budget.weight,
        "measured_at_step": budget.measured_at,
    }


def _scaled(module: UnlearningModule) -> dict[str, float | int]:
    """Return what lambda came to where it counts in gradients."""
    assert module.forget_scale is not None
    return {**module.forget_scale._asdict(), "weight": module.effective_forget_weight}


def _sample_panel(rows: Sequence[Record]) -> str:
    """Return a Markdown table: question, truth, and what the model says now."""

    def cell(text: str | None) -> str:
        return as_markdown_text((text or "")[-400:])

    lines = ["| question | truth | model |", "| --- | --- | --- |"]
    for row in rows[:_SAMPLES]:
        lines.append(f"| {cell(row.question)} | {cell(row.answer)} | {cell(row.generation)} |")
    return "\n".join(lines)
