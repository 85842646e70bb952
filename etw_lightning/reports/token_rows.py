"""Forget answers token by token: weights, entropies and probabilities before and after."""

from __future__ import annotations

import math
from collections.abc import Sequence
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
    if not isinstance(part, dict):
        return None
    module, _, name = str(part.get("class_path", "")).rpartition(".")
    # Nothing but our own classes is built of what a folder says.
    if module != weightings.__name__ or name not in weightings.__all__:
        return None
    try:
        found: TokenWeighting = getattr(weightings, name)(**(part.get("init_args") or {}))
    except (TypeError, ValueError):
        return None
    return found


def token_rows(runs: Sequence[FinishedRun], wanted: Sequence[int]) -> list[dict[str, Any]]:
    """Return forget rows with a line of coloured tokens for each thing that is known of them.

    Entropy and the probabilities before training and of the retain model are those of the first run
    that has them; each run adds its weights, as its first step gave them, and its probabilities.

    Args:
        runs: Runs of the same rows.
        wanted: Row numbers, from 0.
    """
    found = []
    for row in wanted:
        lines: list[dict[str, Any]] = []
        first = next((run for run in runs if _row(run.before or run.after, row)), None)
        if first is None:
            continue
        known = _row(first.before or first.after, row)
        assert known is not None
        tokens = _tokens(known)
        if first.before:
            _add(lines, "entropy before, nats", tokens, list(known.token_entropies))
            _add(lines, "probability before", tokens, _probabilities(known), 1.0)
        retain = next((_row(run.retain, row) for run in runs if _row(run.retain, row)), None)
        if retain is not None:
            _add(lines, "probability, retain model", tokens, _probabilities(retain), 1.0)
        for run in runs:
            weights = _weights(run, row)
            if weights is not None:
                _add(lines, f"weight, {run.name}", tokens, weights)
            mine = _row(run.after, row)
            if mine is not None:
                _add(lines, f"probability after, {run.name}", tokens, _probabilities(mine), 1.0)
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


def _weights(run: FinishedRun, row: int) -> list[float] | None:
    weighting, before = weighting_of(run), _row(run.before, row)
    if weighting is None or before is None:
        return None
    try:
        return weights_from_records(weighting, [before], [before])[0]
    except InputError:
        # It reads what records don't hold: distributions, marks, another temperature.
        return None


def _add(
    lines: list[dict[str, Any]],
    title: str,
    tokens: Sequence[str],
    values: Sequence[float],
    largest: float | None = None,
) -> None:
    if len(values) != len(tokens):
        return
    parts = [value / largest for value in values] if largest else shares(values)
    cells = [
        {"text": text, "value": f"{value:.4f}", "colour": hex_shade(min(max(part, 0.0), 1.0))}
        for text, value, part in zip(tokens, values, parts, strict=True)
    ]
    lines.append({"title": title, "cells": cells})
