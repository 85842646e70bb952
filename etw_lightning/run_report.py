"""What a run leaves behind: records, ``results.json``, a text panel, the table at the end."""

from __future__ import annotations

import hashlib
import json
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from etw_lightning.callbacks import EvaluationCallback
from etw_lightning.metrics import Metric
from etw_lightning.module import UnlearningModule
from etw_lightning.report import Row, muse_row, print_table, tofu_row, write_results
from etw_lightning.retain_results import save_records
from etw_lightning.schema import InputError, Record

__all__ = ["RunReport", "config_hash", "is_finished"]

_LIBRARIES = ("torch", "lightning", "transformers", "datasets", "torchmetrics", "rouge-score")
_SAMPLES = 3


def is_finished(folder: Path) -> bool:
    """Tell whether a folder holds the results of a finished run."""
    path = folder / "results.json"
    if not path.is_file():
        return False
    try:
        return bool(json.loads(path.read_text(encoding="utf-8")).get("finished"))
    except (ValueError, AttributeError) as error:
        raise InputError(
            f"output_dir {str(folder)!r} holds a results.json that no run has written; give "
            "another folder."
        ) from error


def config_hash(config: Mapping[str, Any]) -> str:
    """Hash a run's configuration; equal settings give equal hashes, 12 hexadecimal digits."""
    text = json.dumps(config, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


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
        #: Optimiser steps the model had made when a set was last scored.
        self.scored_at: dict[str, int] = {}
        self.started = time.monotonic()

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
        self.scored_at |= dict.fromkeys(records, trainer.global_step)
        self.unlearned, self.metrics = {**self.unlearned, **records}, {**self.metrics, **latest}
        # Inside fit the running epoch is not counted yet; after it, it is.
        epoch = trainer.current_epoch + (trainer.state.fn == "fit")
        epoch = 0 if trainer.sanity_checking else epoch
        self.history.append(
            {
                "epoch": epoch,
                "step": trainer.global_step,
                "metrics": {name: asdict(metric) for name, metric in latest.items()},
            }
        )
        if isinstance(trainer.logger, TensorBoardLogger) and trainer.is_global_zero:
            for name, rows in records.items():
                if rows and rows[0].generation is not None:
                    panel = _sample_panel(rows)
                    trainer.logger.experiment.add_text(
                        f"samples/{name}", panel, trainer.global_step
                    )

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run must not lose: the target's records and the epochs so far."""
        target = {name: [row.to_json() for row in rows] for name, rows in self.target.items()}
        return {"history": self.history, "target": target}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from ``state_dict``."""
        self.history = list(state_dict["history"])
        self.target = {
            name: [Record.from_json(row) for row in rows]
            for name, rows in state_dict["target"].items()
        }

    def is_stale(self, names: Iterable[str], step: int) -> bool:
        """Tell whether a set was not scored by the model as it is after ``step`` steps."""
        return any(self.scored_at.get(name) != step for name in names)

    def rows(self, retain: Mapping[str, Sequence[Record]] | None) -> dict[str, Row]:
        """Return the table's rows: target, unlearned (or fine-tuned) and retain model."""
        is_muse = any(name in self.unlearned for name in ("verbmem", "privleak_forget"))

        def row(records: Mapping[str, Sequence[Record]]) -> Row:
            if is_muse:
                return muse_row(records, retain)
            return tofu_row(records, (retain or {}).get("forget"))

        table = {}
        if self.target:
            table["target"] = row(self.target)
        table[self.label] = row(self.unlearned)
        if retain:
            table["retain"] = row({name: retain[name] for name in self.unlearned if name in retain})
        return table

    def write(self, trainer: Trainer, module: UnlearningModule) -> None:
        """Write records and ``results.json`` and print the table."""
        results = module.datamodule.retain_results
        table = self.rows(results.records if results else None) if self.unlearned else {}
        save_records(self.folder, self.unlearned)
        write_results(
            self.folder / "results.json",
            {
                "finished": True,
                "metrics": {name: asdict(metric) for name, metric in self.metrics.items()},
                "table": table,
                "history": self.history,
                "config_hash": config_hash(self.config),
                "seed": self.seed,
                "git_commit": _git_commit(),
                "versions": {name: version(name) for name in ("etw-lightning", *_LIBRARIES)},
                "retain_results": results.source if results else None,
                "steps": trainer.global_step,
                "seconds": round(time.monotonic() - self.started, 1),
            },
        )
        if table:
            print_table(table)


def _sample_panel(rows: Sequence[Record]) -> str:
    """Return a Markdown table: question, truth, and what the model says now."""

    def cell(text: str | None) -> str:
        return (text or "")[-400:].replace("|", "\\|").replace("\n", " ")

    lines = ["| question | truth | model |", "| --- | --- | --- |"]
    for row in rows[:_SAMPLES]:
        lines.append(f"| {cell(row.question)} | {cell(row.answer)} | {cell(row.generation)} |")
    return "\n".join(lines)


def _git_commit() -> str | None:
    """Return the commit of the package's sources, ``+`` if they were changed since; else None."""
    where = ["git", "-C", str(Path(__file__).parent)]
    try:
        commit = subprocess.run([*where, "rev-parse", "HEAD"], capture_output=True, text=True)
        dirty = subprocess.run([*where, "diff", "--quiet", "HEAD", "--", "."], capture_output=True)
    except FileNotFoundError:
        return None
    if commit.returncode:
        return None
    return commit.stdout.strip() + ("+" if dirty.returncode else "")
