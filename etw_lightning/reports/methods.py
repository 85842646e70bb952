"""Runs by method: those of equal settings but for the seed, and what a method is called."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from etw_lightning.reports.finished_runs import FinishedRun

__all__ = ["Method", "by_method"]


@dataclass(frozen=True)
class Method:
    """Runs of equal settings but for the seed.

    Args:
        name: What it is called, with the numbers it was run with that differ among the methods.
        line: The same without lambda: what it is called where it is drawn over lambda.
        weight: Lambda; None where none is known.
        runs: Its runs, in the order given.
    """

    name: str
    line: str
    weight: float | None
    runs: tuple[FinishedRun, ...]


def by_method(runs: Sequence[FinishedRun]) -> list[Method]:
    """Return the methods in the order in which their first runs are given.

    Args:
        runs: The runs.
    """
    groups: dict[str, list[FinishedRun]] = {}
    for run in runs:
        groups.setdefault(_label(run), []).append(run)
    names = _names([group[0] for group in groups.values()])
    found = []
    for (name, line), group in zip(names, groups.values(), strict=True):
        weight = group[0].settings.get("lambda")
        found.append(Method(name, line, None if weight is None else float(weight), tuple(group)))
    return found


def _names(runs: Sequence[FinishedRun]) -> list[tuple[str, str]]:
    """Return what methods are called, with and without lambda: by the settings they differ in.

    Args:
        runs: One of each method.
    """
    keys = {key for run in runs for key in run.settings}
    same = [key for key in keys if len({run.settings.get(key, "") for run in runs} - {""}) < 2]
    short = [_label(run, *same) for run in runs]
    if len(set(short)) < len(runs):
        same = []
        short = [_label(run) for run in runs]
    return [(name, _label(run, *same, "lambda")) for name, run in zip(short, runs, strict=True)]


def _label(run: FinishedRun, *left_out: str) -> str:
    """Return a method with its settings but for the seed."""
    shown = [key for key in run.settings if key not in ("seed", "weighting", "forget", *left_out)]
    method = "-".join(str(run.settings.get(key, "")) for key in ("weighting", "forget")).strip("-")
    return " ".join([method, *(f"{key}={run.settings[key]}" for key in shown)])
