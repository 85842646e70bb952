"""Finished runs as reports read them: numbers, history, and what models said."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from etw_lightning.boards.grouped import hyperparameters
from etw_lightning.reports.results_form import wrong_with
from etw_lightning.runs.folder import BEFORE, RETAIN
from etw_lightning.schema import InputError, Record
from etw_lightning.scoring.retain_results import load_records

__all__ = ["FinishedRun", "read_run", "read_runs"]

_Sets = Mapping[str, Sequence[Record]]


@dataclass(frozen=True)
class FinishedRun:
    """One run.

    Args:
        folder: Its folder.
        name: What it is called among the others.
        results: Its ``results.json``.
        settings: Its hyperparameters, by short names.
        config: All its settings; empty where they can't be read.
    """

    folder: Path
    name: str
    results: Mapping[str, Any]
    settings: Mapping[str, Any]
    config: Mapping[str, Any]

    @property
    def judgement(self) -> Mapping[str, Any]:
        """Return the run's judgement; empty of an older run."""
        found: Mapping[str, Any] = self.results.get("judgement") or {}
        return found

    @property
    def models(self) -> dict[str, Mapping[str, Any]]:
        """Return the numbers of each model of the table; the run's own last but the retain's."""
        return dict(self.judgement.get("models") or self.results.get("table") or {})

    @property
    def label(self) -> str:
        """Return what the run's own model is called in ``models``."""
        names = [name for name in self.models if name not in ("target", "start", "retain")]
        return str(self.judgement.get("model") or (names[0] if names else ""))

    @property
    def own(self) -> Mapping[str, Any]:
        """Return the numbers of the run's own model."""
        return self.models.get(self.label, {})

    def number(self, name: str) -> float | None:
        """Return a number of the run by its name in ``metrics`` or in the table; None without."""
        metric = self.results.get("metrics", {}).get(name)
        value = metric["value"] if metric else self.own.get(name)
        return None if value is None else float(value)

    def of(self, model: str, name: str) -> float | None:
        """Return a number of another model of the table."""
        value = self.models.get(model, {}).get(name)
        return None if value is None else float(value)

    @cached_property
    def after(self) -> _Sets:
        """Return what the trained model said, by set; empty where records are broken or gone."""
        return _records(self.folder)

    @cached_property
    def before(self) -> _Sets:
        """Return what the model said before training."""
        return _records(self.folder / BEFORE)

    @cached_property
    def retain(self) -> _Sets:
        """Return what the retain model said."""
        return _records(self.folder / RETAIN)


def _records(folder: Path) -> _Sets:
    if not (folder / "records").is_dir():
        return {}
    return load_records(folder, "report")


def read_run(path: str | Path, name: str | None = None, key: str = "report") -> FinishedRun:
    """Read one run; what its records say is read when it is asked for.

    Args:
        path: Its folder.
        name: What it is called; None for the folder's name.
        key: What errors begin with.

    Raises:
        InputError: If it is no folder of a finished run; says which of these.
    """
    folder = Path(path).expanduser()
    file = folder / "results.json"
    if not folder.is_dir():
        raise InputError(f"{key}: {str(path)!r} is no folder of a run.")
    if not file.is_file():
        raise InputError(f"{key}: {str(path)!r} holds no results.json, so it is no finished run.")
    try:
        results = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise InputError(f"{key}: {file} can't be read ({error}).") from error
    if not isinstance(results, dict) or "command" not in results:
        raise InputError(f"{key}: {file} was written by no run of ours.")
    wrong = wrong_with(results)
    if wrong:
        raise InputError(
            f"{key}: {file} must hold numbers as a run writes them; {wrong}. Run it again, or give "
            "another run."
        )
    if not results.get("finished"):
        reason = (results.get("stopped") or {}).get("reason", "it was broken off")
        raise InputError(f"{key}: {str(path)!r} is not finished: {reason}.")
    config = _config(folder)
    settings = hyperparameters(config, int(results.get("seed") or 0))
    return FinishedRun(folder, name or folder.name, results, settings, config)


def _config(folder: Path) -> Mapping[str, Any]:
    try:
        found = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    if not isinstance(found, dict):
        return {}
    parts = (found.get(key) for key in ("model", "data", "trainer"))
    return found if all(part is None or isinstance(part, dict) for part in parts) else {}


def read_runs(paths: Sequence[str], key: str = "report") -> tuple[list[FinishedRun], list[str]]:
    """Read runs; what can't be read is told, and the others are given all the same.

    Args:
        paths: Folders of runs, or folders that hold some.
        key: What was asked for, for messages.

    Returns:
        The runs, named apart, and a line for each that was left out.

    Raises:
        InputError: If none can be read; with the first reason.
    """
    folders: list[Path] = []
    for path in paths:
        given = Path(path).expanduser()
        inner = sorted(one.parent for one in given.glob("*/results.json"))
        is_parent = given.is_dir() and not (given / "results.json").is_file() and inner
        folders += inner if is_parent else [given]
    folders = list(dict.fromkeys(folders))
    if not folders:
        raise InputError(f"{key}: no run was given; give folders of finished runs.")
    runs: list[FinishedRun] = []
    left_out: list[str] = []
    names = _names(folders)
    for folder in folders:
        try:
            run = read_run(folder, names[folder], key)
            _ = run.after, run.before, run.retain
        except InputError as error:
            left_out.append(str(error))
            continue
        runs.append(run)
    if not runs:
        raise InputError(left_out[0])
    return runs, left_out


def _names(folders: Sequence[Path]) -> dict[Path, str]:
    """Return the shortest ends of paths that tell folders apart."""
    parts = {folder: folder.resolve().parts for folder in folders}
    names = {}
    for folder, own in parts.items():
        others = [one for other, one in parts.items() if other != folder]
        depth = next(
            (n for n in range(1, len(own) + 1) if all(one[-n:] != own[-n:] for one in others)), 1
        )
        names[folder] = "/".join(own[-depth:])
    return names
