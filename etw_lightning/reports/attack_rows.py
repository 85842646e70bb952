"""Attacks on a run, as ``attack`` has left them beside it: what came back, and robustness."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from etw_lightning.metrics.recovery import robustness
from etw_lightning.notices import printable
from etw_lightning.reports.finished_runs import FinishedRun

__all__ = ["attack_rows", "robustness_rows"]

_COLUMNS = ("target", "before", "after", "recovered", "retain_before", "retain_after")
_LAST = "recovered_by_retain"


def attack_rows(runs: Sequence[FinishedRun]) -> list[dict[str, Any]]:
    """Return a row for each number that came back, or not, of each attack on each run.

    Args:
        runs: The runs. A file that ``attack`` has not written is left alone.
    """
    rows = []
    for run in runs:
        for found in _of(run):
            for name, number in found["numbers"].items():
                if number.get("recovered") is None:
                    continue
                cells = [_number(number.get(key), key) for key in (*_COLUMNS, _LAST)]
                attack = printable(str(found["attack"]))
                note = "" if found.get("retain_model") else "no retain model"
                rows.append(
                    {
                        "run": run.name,
                        "attack": attack,
                        "number": name,
                        "cells": cells,
                        "note": note,
                    }
                )
    return rows


def robustness_rows(runs: Sequence[FinishedRun]) -> list[dict[str, Any]]:
    """Return R, Q and their harmonic mean, number by number, where a run has both attacks.

    The least of several attacks of one kind counts.

    Args:
        runs: The runs.
    """
    rows = []
    for run in runs:
        worst: dict[str, dict[str, float]] = {}
        for found in _of(run):
            kind = found.get("robustness")
            for name, number in found["numbers"].items():
                value = number.get("robustness")
                if kind and value is not None:
                    held = worst.setdefault(name, {})
                    held[kind] = min(value, held.get(kind, value))
        for name, held in worst.items():
            if len(held) == 2:
                both = robustness(held["relearning"], held["quantisation"])
                cells = [f"{one:.3f}" for one in (held["relearning"], held["quantisation"], both)]
                rows.append({"run": run.name, "number": name, "cells": cells})
    return rows


def _of(run: FinishedRun) -> list[Mapping[str, Any]]:
    found: list[Mapping[str, Any]] = []
    for path in sorted((run.folder / "attacks").glob("*.json")):
        try:
            held = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(held, dict) and isinstance(held.get("numbers"), dict) and "attack" in held:
            found.append(held)
    return found


def _number(value: float | None, key: str) -> str:
    if value is None:
        return "\u2013"
    if key.startswith("recovered"):
        return f"{100 * value:.0f} %"
    return f"{value:.2e}" if 0 < abs(value) < 1e-3 else f"{value:.4g}"
