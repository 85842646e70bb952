"""What a finished run leaves behind: records, ``results.json``, pages, and the table at the end."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, cast

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from etw_lightning.boards.grouped import GroupedTensorBoard, hyperparameters
from etw_lightning.callbacks.evaluation import Suite
from etw_lightning.callbacks.retain_budget import RetainBudget
from etw_lightning.judging.judgement import Judgement, judge, print_judgement
from etw_lightning.notices import for_screen
from etw_lightning.runs.checkpointing import Checkpoints
from etw_lightning.runs.evaluate import WORST_ROWS, sources
from etw_lightning.runs.folder import BEFORE, RETAIN
from etw_lightning.runs.key import run_key
from etw_lightning.runs.results import (
    MUSE_SETS,
    Row,
    left_out_line,
    model_row,
    precision_lines,
    write_results,
)
from etw_lightning.runs.run_report import RunReport, collapse_entries
from etw_lightning.schema import Record
from etw_lightning.scoring.retain_results import save_provenance, save_records, write_atomically
from etw_lightning.training.module import UnlearningModule

__all__ = ["RunEnd"]

_Sets = Mapping[str, Sequence[Record]]


class RunEnd:
    """Writes down what a run that has ended came to, and prints it.

    Args:
        report: What was noted while it trained.
        trainer: The run's trainer.
        module: The trained model.
    """

    def __init__(self, report: RunReport, trainer: Trainer, module: UnlearningModule) -> None:
        self.report, self.trainer, self.module = report, trainer, module
        self.data = module.datamodule
        self.collapse = collapse_entries(trainer)
        suites = self._callbacks(Suite)
        self.left_out = {name: reason for one in suites for name, reason in one.left_out.items()}
        self.budgets = self._callbacks(RetainBudget)

    def _callbacks(self, kind: type) -> list[Any]:
        callbacks = cast(list[Any], cast(Any, self.trainer).callbacks)
        return [one for one in callbacks if isinstance(one, kind)]

    def write(
        self,
        provenance: Mapping[str, Any],
        before: Callable[[Mapping[str, Any]], None] | None = None,
    ) -> None:
        """Write records and ``results.json`` and print the table.

        Args:
            provenance: What the records were made with.
            before: Called with the results before a file says that the run is finished.
        """
        folder, unlearned = self.report.folder, self.report.unlearned
        retain, target = self._others()
        table = self._table(retain, target) if unlearned else {}
        save_records(folder, unlearned)
        save_provenance(folder, provenance)
        judged = self._judged(table, retain, target) if unlearned else None
        for place, others in ((BEFORE, self.report.target), (RETAIN, retain)):
            if others:
                save_records(folder / place, others)
        page = judged.page() if judged is not None else ""
        if page:
            write_atomically(folder / WORST_ROWS, page.encode("utf-8"))
        self._show(page)
        results = self._results(provenance, table, judged)
        if before is not None:
            before(results)
        write_results(folder / "results.json", results)
        if judged is not None:
            print_judgement(judged)
        if page:
            sys.stdout.write(f"worst rows, before and after: {folder / WORST_ROWS}\n")
        for line in self._lines():
            sys.stdout.write(f"{line}\n")

    def _others(self) -> tuple[_Sets, _Sets]:
        """Return what the retain and a target model that was given say of this run's rows."""
        data, names = self.data, self.report.unlearned
        held = {role: found.records for role, found in data.results.items()}
        retain = {n: data.retain_records(n) for n in names if n in held.get("retain", ())}
        given = set(data.beside.get("target", ())) & set(held.get("target", ()))
        target = {n: data.target_records(n) for n in names if n in given}
        return retain, target

    def _table(self, retain: _Sets, target: _Sets) -> dict[str, Row]:
        """Return the table's rows: target, unlearned (or fine-tuned) and retain model.

        Args:
            retain: Records of the retain model.
            target: Records of a target model that is not the one the run began with, which then
                is called ``start``.
        """
        report, data = self.report, self.data
        is_muse = any(name in report.unlearned for name in MUSE_SETS)

        def row(records: _Sets) -> Row:
            words = data.rouge_tokenizer
            return model_row(records, retain, is_muse=is_muse, is_own=data.is_own, words=words)

        table = {}
        if target:
            table["target"] = row(target)
        if report.target:
            table["start" if target else "target"] = row(report.target)
        table[report.label] = row(report.unlearned)
        if retain:
            table["retain"] = row(retain)
        return table

    def _judged(self, table: Mapping[str, Row], retain: _Sets, target: _Sets) -> Judgement:
        """Return the judgement of the trained model, next to those of the table."""
        report, data = self.report, self.data
        sets = {"target": target or report.target, "start": report.target}
        sets |= {"retain": retain, report.label: report.unlearned}
        return judge(
            {name: sets[name] for name in table},
            report.label,
            table,
            words=data.rouge_tokenizer,
            conventions=data.conventions,
            forgets=self.module.method.forget is not None,
        )

    def _show(self, page: str) -> None:
        """Put the worst rows where the curves are, and all numbers beside the settings."""
        logger, report, step = self.trainer.logger, self.report, self.trainer.global_step
        if not isinstance(logger, TensorBoardLogger) or not self.trainer.is_global_zero:
            return
        if page:
            logger.experiment.add_text("samples/worst rows", page, step)
        if isinstance(logger, GroupedTensorBoard):
            numbers = {name: metric.value for name, metric in report.metrics.items()}
            logger.show_end(hyperparameters(report.config, report.seed), numbers, step)

    def _results(
        self, provenance: Mapping[str, Any], table: Mapping[str, Row], judged: Judgement | None
    ) -> dict[str, Any]:
        """Return what ``results.json`` holds; what there is none of is left out."""
        report, data, module = self.report, self.data, self.module
        saving = self._callbacks(Checkpoints) if report.config.get("save_model", True) else []
        told = {
            "lost_labels": data.lost_labels,
            "lost_labels_scored": data.lost_scored,
            "repeated_forget_rows": data.repeated_rows,
            "precision_of_others": data.precision_of_others,
        }
        return {
            "finished": True,
            "command": "fit",
            "metrics": {name: asdict(metric) for name, metric in report.metrics.items()},
            **({"left_out": self.left_out} if self.left_out else {}),
            **self.collapse,
            **{name: found for name, found in told.items() if found},
            "table": table,
            **({"judgement": judged.to_json()} if judged is not None else {}),
            "history": report.history,
            **({"retain_budget": _kept(self.budgets[0])} if self.budgets else {}),
            **({"forget_scale": _scaled(module)} if module.forget_scale else {}),
            **({"checkpoints": saving[0].kept()} if saving else {}),
            **({"changed": report.changed} if report.changed else {}),
            "config_hash": run_key(report.config),
            "seed": report.seed,
            "git_commit": provenance["git_commit"],
            "versions": provenance["versions"],
            "provenance": provenance,
            "conventions": asdict(data.conventions),
            **sources(data),
            "steps": self.trainer.global_step,
            "seconds": round(report.seconds, 1),
        }

    def _lines(self) -> Iterator[str]:
        """Give what is printed below the table."""
        for one in self.budgets:
            yield (
                f"retain budget: the retain loss ends {one.rise:+.2f} % from its start, "
                f"{100 * one.budget:g} % were allowed; lambda ends at {one.weight:.3g}"
            )
        module = self.module
        if module.forget_scale is not None:
            yield (
                f"forget_unit gradient: lambda {module.forget_weight:.3g} is a weight of "
                f"{module.effective_forget_weight:.3g} here"
            )
        yield from precision_lines(self.data.precision_of_others)
        if self.left_out:
            yield for_screen(left_out_line(self.left_out))
        if "stopped" in self.collapse:
            yield f"stopped: {_line(self.collapse['stopped'])}"
        for one in self.collapse.get("warnings", ()):
            yield for_screen(f"warning: {_line(one)}")


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
