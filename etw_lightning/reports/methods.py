"""Runs by method: those of equal settings but for the seed, and what a method is called."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from etw_lightning.reports.finished_runs import FinishedRun

__all__ = ["Method", "by_method"]

#: Settings that ``hyperparameters`` gives of a run already.
_NAMED = (
    *("weighting", "forget", "retain", "forget_weight", "retain_weight", "lr", "schedule"),
    *("weight_decay", "optimizer", "forget_split", "batch_size", "max_epochs"),
)
#: Settings of a trainer that decide what comes out.
_OF_TRAINERS = (
    *("accumulate_grad_batches", "gradient_clip_algorithm", "gradient_clip_val", "max_steps"),
    *("limit_train_batches", "max_time", "precision"),
)
#: Settings of a model and its data that decide how something is done, where it lies, or what a
#: run is held against.
_OF_NO_NUMBER = (
    *("attention", "chunk_size", "gradient_checkpointing", "share_beginnings", "cache_references"),
    *("root", "hub", "num_workers", "eval_batch_size", "seed", "tokenizer"),
    *("retain_model", "retain_results", "target_model", "target_results"),
)


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
    settled: dict[str, FinishedRun] = {}
    for run, told in zip(runs, _told_apart(runs), strict=True):
        label = _label(told)
        groups.setdefault(label, []).append(run)
        settled.setdefault(label, told)
    firsts = list(settled.values())
    found = []
    for (name, line), group in zip(_names(firsts), groups.values(), strict=True):
        weight = group[0].settings.get("lambda")
        found.append(Method(name, line, None if weight is None else float(weight), tuple(group)))
    return found


def _told_apart(runs: Sequence[FinishedRun]) -> list[FinishedRun]:
    """Return copies of runs with what else they differ in among their settings.

    What is not among these otherwise is the same nearly always, and would only make names long;
    where it is not, runs that differ in it are no seeds of one method.
    """
    found = [_decisive(run.config) for run in runs]
    names = [name for one in found for name in one]
    told = [
        name
        for name in dict.fromkeys(names)
        if len({json.dumps(one[name], sort_keys=True) for one in found if name in one}) > 1
    ]
    return [
        replace(run, settings={**run.settings, **{n: one[n] for n in told if n in one}})
        for run, one in zip(runs, found, strict=True)
    ]


def _decisive(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that decide what a run comes to, but for those that it is named by."""
    found = {}
    for group, names in (("model", None), ("data", None), ("trainer", _OF_TRAINERS)):
        for name, value in (config.get(group) or {}).items():
            if name not in _NAMED and (name in names if names else name not in _OF_NO_NUMBER):
                found[f"{group}.{name}"] = value
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
    """Return a method with its settings but for the seed; even weights need no name."""
    shown = [key for key in run.settings if key not in ("seed", "weighting", "forget", *left_out)]
    parts = [str(run.settings.get(key, "")) for key in ("weighting", "forget")]
    if parts[0] == "Uniform" and parts[1]:
        parts[0] = ""
    method = "-".join(filter(None, parts))
    return " ".join([method, *(f"{key}={run.settings[key]}" for key in shown)])
