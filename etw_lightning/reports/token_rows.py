"""Forget answers token by token: weights, entropies and probabilities before and after."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from etw_lightning import weighting as weightings
from etw_lightning.boards.shades import hex_shade, shares
from etw_lightning.catalogue.token_weights import weights_from_records
from etw_lightning.notices import visible
from etw_lightning.reports.finished_runs import FinishedRun
from etw_lightning.schema import InputError, Record
from etw_lightning.weighting import TokenWeighting

__all__ = ["token_rows", "weighting_of"]


def weighting_of(run: FinishedRun) -> TokenWeighting | None:
    """Return the weighting a run was made with; None for one of somebody's own class, or none."""
    part = (run.config.get("model") or {}).get("weighting")
    try:
        return _weighting(part) if isinstance(part, dict) else None
    except (TypeError, ValueError):
        return None


def _weighting(part: Mapping[str, Any]) -> TokenWeighting:
    """Return the weighting that a block of a configuration names, with those inside it.

    Raises:
        TypeError: If an argument is none of the class's.
        ValueError: If it is a class of somebody's own, or an argument is out of range.
    """
    module, _, name = str(part.get("class_path", "")).rpartition(".")
    # Nothing but our own classes is built of what a folder says.
    if module != weightings.__name__ or name not in weightings.__all__:
        raise ValueError(f"{name} is no weighting of ours.")
    arguments = (part.get("init_args") or {}).items()
    given = {key: _weighting(one) if isinstance(one, dict) else one for key, one in arguments}
    found: TokenWeighting = getattr(weightings, name)(**given)
    return found


def token_rows(runs: Sequence[FinishedRun], wanted: Sequence[int]) -> list[dict[str, Any]]:
    """Return forget rows with a line of coloured tokens for each thing that is known of them.

    What is known of the model before training and of the retain model is that of the first run that
    has it; each run adds its weights, as its first step gave them and as one more step would, and
    what its model says afterwards. Lines of one quantity stand together, models side by side.

    Args:
        runs: Runs of the same rows that began with the same model.
        wanted: Row numbers, from 0.
    """
    found = []
    for row in wanted:
        first = next((run for run in runs if _row(run.before or run.after, row)), None)
        if first is None:
            continue
        known = _row(first.before or first.after, row)
        assert known is not None
        tokens, lines = _tokens(known), []
        models = {
            "before": _row(first.before, row),
            "retain model": next((r for run in runs if (r := _row(run.retain, row))), None),
            **{run.name: _row(run.after, row) for run in runs},
        }
        for title, values, largest in (
            ("probability", _probabilities, 1.0),
            ("entropy, nats", lambda one: list(one.token_entropies), None),
        ):
            said = {name: values(one) for name, one in models.items() if one is not None}
            top = largest or max((max(one, default=0.0) for one in said.values()), default=0.0)
            lines += _lines(title, said, tokens, top)
        weights: dict[str, list[float]] = {}
        for run in runs:
            for when, sets in (("first step", run.before), ("after", run.after)):
                weights |= _weights(run, row, sets, f"{run.name}, {when}")
        lines += _lines("weight", weights, tokens, None)
        found.append(
            {"row": row, "id": known.id, "question": visible(known.question or ""), "lines": lines}
        )
    return found


def _row(sets: Any, row: int) -> Record | None:
    rows = sets.get("forget", ())
    return rows[row] if row < len(rows) and rows[row].token_logps else None


def _tokens(record: Record) -> list[str]:
    spans = record.token_spans or ((0, 0),) * len(record.token_logps)
    return [visible(record.answer[left:right]) or "\u00b6" for left, right in spans]


def _probabilities(record: Record) -> list[float]:
    return [math.exp(value) for value in record.token_logps]


def _weights(run: FinishedRun, row: int, sets: Any, name: str) -> dict[str, list[float]]:
    """Return the weights that a run's weighting gives a row by what a model says of it, by name."""
    weighting, known, before = weighting_of(run), _row(sets, row), _row(run.before, row)
    if weighting is None or known is None or before is None:
        return {}
    try:
        return {name: weights_from_records(weighting, [known], [before])[0]}
    except InputError:
        # It reads what records don't hold: distributions, marks, another temperature.
        return {}


def _lines(
    title: str, said: Mapping[str, Sequence[float]], tokens: Sequence[str], largest: float | None
) -> list[dict[str, Any]]:
    """Return a line a model; coloured by the largest of all of them, or of each line alone."""
    lines = []
    for name, values in said.items():
        if len(values) != len(tokens):
            continue
        parts = [value / largest for value in values] if largest else shares(values)
        cells = [
            {"text": text, "value": f"{value:.4f}", "colour": hex_shade(min(max(part, 0.0), 1.0))}
            for text, value, part in zip(tokens, values, parts, strict=True)
        ]
        lines.append({"quantity": title, "model": name, "cells": cells})
    return lines
