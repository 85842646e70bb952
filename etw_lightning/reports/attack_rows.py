"""Attacks on a run, as ``attack`` has left them beside it: what came back, and robustness."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from etw_lightning.metrics.recovery import robustness
from etw_lightning.notices import printable
from etw_lightning.reports.finished_runs import FinishedRun

__all__ = ["READ_FIRST", "attack_rows", "read_attacks", "robustness_rows", "unread_attacks"]

#: The numbers that are read first: of forgetting, then of keeping.
READ_FIRST = (
    "forget_d_times_n",
    "neg_log10_forget_quality",
    "forget_probability",
    "forget_rougeL_recall",
    "forget_truth_ratio_closer_to_one",
    "extraction_strength",
    "exact_memorisation",
    "forget_still_said",
    "verbmem",
    "knowmem_forget",
    "privleak",
    "model_utility",
    "retain_probability",
    "retain_rougeL_recall",
    "knowmem_retain",
)

_COLUMNS = ("target", "before", "after", "recovered", "retain_before", "retain_after")
_LAST = "recovered_by_retain"


def attack_rows(runs: Sequence[FinishedRun]) -> list[dict[str, Any]]:
    """Return a row for each number that came back, or not, of each attack on each run.

    Those of a kept set are among them where they are read first: what the attack costs. A row is
    ``first`` where it is one of these, or the attack's own.

    Args:
        runs: The runs.
    """
    rows = []
    for run in runs:
        for found in read_attacks(run):
            numbers = found["numbers"]
            own = [
                name
                for name, number in numbers.items()
                # Without the attack there is none of some of its own numbers.
                if number.get("is_own") or number.get("before") is None
            ]
            first = [name for name in READ_FIRST if name in numbers]
            first += [name for name in own if name not in first]
            for name in dict.fromkeys([*first, *numbers]):
                number = numbers[name]
                if name not in first and number.get("recovered") is None:
                    continue
                rows.append(
                    {
                        "run": run.name,
                        "attack": printable(str(found["attack"])),
                        "number": name,
                        "first": name in first,
                        "cells": [_number(number.get(key), key) for key in (*_COLUMNS, _LAST)],
                        "note": "" if found.get("retain_model") else "no retain model",
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
        for found in read_attacks(run):
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


def read_attacks(run: FinishedRun) -> list[Mapping[str, Any]]:
    """Return what attacks on a run have left, as far as it can be read.

    Args:
        run: The run.
    """
    return [held for _, held in _files(run) if not isinstance(held, str)]


def unread_attacks(runs: Sequence[FinishedRun]) -> list[str]:
    """Return a line for each file among a run's attacks that no attack has left so.

    Args:
        runs: The runs.
    """
    return [
        f"report: {path} can't be read as an attack's results ({held})."
        for run in runs
        for path, held in _files(run)
        if isinstance(held, str)
    ]


def _files(run: FinishedRun) -> list[tuple[Path, Mapping[str, Any] | str]]:
    """Return what each file holds, or why it can't be used."""
    return [(path, _read(path)) for path in sorted((run.folder / "attacks").glob("*.json"))]


def _read(path: Path) -> Mapping[str, Any] | str:
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return str(error)
    if not isinstance(held, dict) or not isinstance(held.get("numbers"), dict):
        return "it holds no numbers"
    if "attack" not in held:
        return "it names no attack"
    for name, number in held["numbers"].items():
        if not isinstance(number, dict):
            return f"{name} is {number!r:.40}"
        for key, value in number.items():
            if not _is_fit(key, value):
                return f"{name} is {value!r:.40}"
    return held


def _is_fit(key: str, value: Any) -> bool:
    """Tell whether a field of a number holds what an attack writes there."""
    if key.startswith("interval_"):
        return isinstance(value, list) and len(value) == 2 and all(map(_is_number, value))
    if key == "is_own":
        return isinstance(value, bool)
    return value is None or (key == "direction" and isinstance(value, str)) or _is_number(value)


def _is_number(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value)


def _number(value: float | None, key: str) -> str:
    if value is None:
        return "\u2013"
    if key.startswith("recovered"):
        return f"{round(100 * value)} %"
    return f"{value:.2e}" if 0 < abs(value) < 1e-3 else f"{value:.4g}"
