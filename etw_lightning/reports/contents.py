"""What a report shows of its runs: the table, texts with what changed, cards with commands."""

from __future__ import annotations

import difflib
import shlex
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from etw_lightning.catalogue.suite import explain
from etw_lightning.judging.judgement import shown
from etw_lightning.judging.numbers import LINES, forget_and_retain
from etw_lightning.notices import printable
from etw_lightning.reports.finished_runs import FinishedRun
from etw_lightning.reports.methods import by_method
from etw_lightning.schema import InputError

__all__ = ["cards", "columns", "medians", "table", "texts"]

#: Characters of a generation that are shown.
_SHOWN = 600


def columns(runs: Sequence[FinishedRun]) -> list[dict[str, str]]:
    """Return the columns that any model has a number in, each with its page.

    Args:
        runs: The runs.
    """
    found = []
    for key, line in LINES.items():
        if all(model.get(key) is None for run in runs for model in run.models.values()):
            continue
        try:
            whole = explain(line.metric)
        except InputError:
            whole = line.label
        page = " ".join(" ".join(whole.split("\n\n")[1:3]).split())[:400]
        found.append({"key": key, "label": line.label, "metric": line.metric, "page": page,
                      "whole": whole})  # fmt: skip
    return found


def table(runs: Sequence[FinishedRun], keys: Sequence[Mapping[str, str]]) -> list[dict[str, Any]]:
    """Return a row for each run, and those of the target and retain models where they differ.

    Args:
        runs: The runs.
        keys: ``columns`` of them.
    """
    rows: list[dict[str, Any]] = []
    for role in ("target", "start"):
        rows += _others(runs, role, keys)
    rows += [_row(run.name, run.own, keys, is_other=False) for run in runs]
    return rows + _others(runs, "retain", keys)


def medians(runs: Sequence[FinishedRun], keys: Sequence[Mapping[str, str]]) -> list[dict[str, Any]]:
    """Return a row for each method that was run with several seeds: medians, lowest to highest.

    Args:
        runs: The runs.
        keys: ``columns`` of them.
    """
    rows = []
    for method in by_method(runs):
        if len(method.runs) < 2:
            continue
        cells = []
        for one in keys:
            key = one["key"]
            known = [run.own for run in method.runs if _is_whole(key, run.own)]
            values = sorted(v for model in known if (v := model.get(key)) is not None)
            cell = {"key": key, "text": "\u2013", "range": "", "title": one["label"]}
            if values:
                middle, *ends = (
                    shown(key, {**known[0], key: value})
                    for value in (statistics.median(values), values[0], values[-1])
                )
                cell |= {"text": middle, "range": " to ".join(ends)}
            cells.append(cell)
        rows.append({"name": method.name, "n": len(method.runs), "cells": cells})
    return rows


def _others(
    runs: Sequence[FinishedRun], role: str, keys: Sequence[Mapping[str, str]]
) -> list[dict[str, Any]]:
    """Return one row of a model that runs have in common; named by its runs where there are more.

    By their seed, where each seed has a model of its own.
    """
    found: dict[tuple[str, ...], list[FinishedRun]] = {}
    for run in runs:
        if role in run.models:
            # The same model scored in batches of other shapes differs in the last digits.
            cells = tuple(f"{run.models[role].get(one['key']) or 0:.6g}" for one in keys)
            found.setdefault(cells, []).append(run)
    seeds = [{run.settings.get("seed") for run in some} for some in found.values()]
    by_seed = len(set().union(*seeds)) == len(found) and all(len(some) == 1 for some in seeds)
    rows = []
    for some in found.values():
        names = f"{role} of {', '.join(run.name for run in some)}"
        name = f"{role}, seed {some[0].settings.get('seed')}" if by_seed else names
        model = some[0].models[role]
        rows.append(_row(role if len(found) == 1 else name, model, keys, is_other=True))
    return rows


def _row(
    name: str, model: Mapping[str, Any], keys: Sequence[Mapping[str, str]], *, is_other: bool
) -> dict[str, Any]:
    cells = []
    for one in keys:
        key = one["key"]
        value = model.get(key)
        text = shown(key, model) if _is_whole(key, model) else "\u2013"
        cells.append({"key": key, "value": value, "text": text,
                      "title": f"{one['label']}: {value}. {one['page']}"})  # fmt: skip
    return {"name": name, "cells": cells, "is_other": is_other}


def _is_whole(key: str, model: Mapping[str, Any]) -> bool:
    """Whether a number has all that it is shown with."""
    form = LINES[key].form
    if form == "count":
        return model.get("n") is not None
    if form == "share":
        n = "items" if key == "still_said" else f"{key.split('_')[0]}_n"
        return model.get(n) is not None
    return True


def texts(runs: Sequence[FinishedRun], cells: int) -> tuple[list[dict[str, Any]], str]:
    """Return what was said of forget and retain rows, and what was left out of them.

    Args:
        runs: Runs of the same rows that began with the same model.
        cells: Generations that are shown at most.
    """
    said = [forget_and_retain(run.after) for run in runs]
    before = next((forget_and_retain(run.before) for run in runs if run.before), {})
    retain = next((forget_and_retain(run.retain) for run in runs if run.retain), {})
    rows: list[dict[str, Any]] = []
    total, most = 0, max(cells // max(len(runs), 1) // 2, 10)
    for name in ("forget", "retain"):
        first = next((one[name] for one in said if name in one), ())
        total += len(first)
        for place, record in enumerate(first[:most]):
            then = _said(before.get(name, ()), place, record.id)
            now = [_said(one.get(name, ()), place, record.id) for one in said]
            rows.append(
                {
                    "set": name,
                    "row": place,
                    "question": _text(record.question),
                    "truth": _text(record.answer),
                    "before": _text(then),
                    "after": [changes(_text(then) if then else None, _text(one)) for one in now],
                    "retain": _text(_said(retain.get(name, ()), place, record.id)),
                }
            )
    cut = f"The first {len(rows)} of {total} rows; records/ of each run has all."
    return rows, cut if len(rows) < total else ""


def _said(rows: Any, place: int, name: str) -> str | None:
    fits = place < len(rows) and rows[place].id == name
    return rows[place].generation if fits else None


def _text(text: str | None) -> str:
    return printable((text or "")[:_SHOWN])


def changes(before: str | None, after: str) -> list[tuple[str, str]]:
    """Return the words of a text as ``same``, ``new`` or ``lost`` against an earlier one.

    Args:
        before: The earlier text; None where it is not known, and all is the same.
        after: The text.

    Example:
        >>> changes("He lives in Rome.", "He lived in Rome.")
        [('same', 'He'), ('lost', 'lives'), ('new', 'lived'), ('same', 'in Rome.')]
    """
    if before is None:
        return [("same", after)]
    old, new = before.split(), after.split()
    found = []
    for tag, a, b, c, d in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if tag == "equal":
            found.append(("same", " ".join(new[c:d])))
            continue
        found += [("lost", " ".join(old[a:b]))] * (b > a) + [("new", " ".join(new[c:d]))] * (d > c)
    return found


def cards(runs: Sequence[FinishedRun]) -> list[dict[str, Any]]:
    """Return each run with its verdict, the command that repeats it, and how it was made.

    Args:
        runs: The runs.
    """
    found = []
    for run in runs:
        results = run.results
        made = {
            **run.settings,
            "commit": results.get("git_commit"),
            "seconds": results.get("seconds"),
            "steps": results.get("steps"),
            "configuration": results.get("config_hash"),
            **{f"version of {name}": one for name, one in (results.get("versions") or {}).items()},
        }
        config = shlex.quote(str(run.folder / "config.yaml"))
        found.append(
            {
                "name": run.name,
                "verdict": run.judgement.get("verdict"),
                "findings": run.judgement.get("findings") or [],
                "command": f"etw {results['command']} --config {config}",
                "card": [(key, str(value)) for key, value in made.items() if value is not None],
            }
        )
    return found
