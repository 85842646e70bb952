"""``results.json``, written whole or not at all, and the lines that point to it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from etw_lightning.schema import InputError
from etw_lightning.scoring.retain_results import write_atomically

__all__ = ["left_out_line", "precision_lines", "write_results"]

#: So many metrics that could not be had are named on the line that tells of them.
_NAMED = 3


def write_results(path: str | Path, payload: Mapping[str, Any]) -> None:
    """Write JSON, whole or not at all; a NaN or infinity is an InputError that names its place."""
    place = _find_non_finite(payload, "")
    if place:
        raise InputError(f"{Path(path).name}: {place} is NaN or infinite; nothing was written.")
    text = json.dumps(payload, ensure_ascii=False, indent=2, allow_nan=False) + "\n"
    write_atomically(path, text.encode("utf-8"))


def _find_non_finite(value: Any, place: str) -> str:
    """Return the dotted path of the first NaN or infinity, or an empty text."""
    if isinstance(value, float):
        return "" if math.isfinite(value) else place or "the payload"
    if isinstance(value, Mapping):
        items = [(str(key), item) for key, item in value.items()]
    elif isinstance(value, list | tuple):
        items = [(str(index), item) for index, item in enumerate(value)]
    else:
        return ""
    found = (_find_non_finite(item, f"{place}.{key}".lstrip(".")) for key, item in items)
    return next((name for name in found if name), "")


def precision_lines(others: Mapping[Any, str]) -> list[str]:
    """Return a line for each other model whose numbers were made in another precision.

    Example:
        >>> precision_lines({"retain": "dtype 'float64', this run has 'float32'"})
        ["retain was scored with dtype 'float64', this run has 'float32': rounding differs"]
    """
    return [f"{role} was scored with {said}: rounding differs" for role, said in others.items()]


def left_out_line(left_out: Mapping[str, str]) -> str:
    """Return the line that tells of metrics which could not be had; ``results.json`` says why.

    Example:
        >>> left_out_line({"gibberish": "only evaluate computes it"})
        'left out (results.json says why): gibberish'
        >>> left_out_line(dict.fromkeys("abcd", "needs data.annotations"))
        'left out: 4 metrics that need more than this run has (results.json says which and what)'
    """
    if len(left_out) <= _NAMED:
        return f"left out (results.json says why): {', '.join(left_out)}"
    return (
        f"left out: {len(left_out)} metrics that need more than this run has "
        "(results.json says which and what)"
    )
