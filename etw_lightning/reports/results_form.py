"""Whether a ``results.json`` has the form in which a run writes it, before it is read."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["wrong_with"]

#: What holds pairs, where it is there.
_PAIRS = ("metrics", "table", "judgement", "provenance", "versions", "stopped")


def wrong_with(results: Mapping[str, Any]) -> str:
    """Return what of a run's results is no such thing as a run writes, in words; empty if nothing.

    Args:
        results: What the file holds.

    Example:
        >>> wrong_with({"metrics": {"privleak": {"value": None}}})
        'metrics.privleak.value is None'
        >>> wrong_with({"metrics": {"privleak": {"value": 3.5}}, "seed": 0})
        ''
    """
    return next(_wrong(results), "")


def _wrong(results: Mapping[str, Any]) -> Iterator[str]:
    for key in _PAIRS:
        given = results.get(key)
        if given is not None and not isinstance(given, Mapping):
            yield f"{key} is {given!r:.60}"
            return
    seed = results.get("seed")
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
        yield f"seed is {seed!r:.60}"
    yield from _numbers("metrics", results.get("metrics"))
    yield from _table("table", results.get("table"))
    judgement = results.get("judgement") or {}
    yield from _table("judgement.models", judgement.get("models"))
    findings = judgement.get("findings")
    if findings is not None and not isinstance(findings, list):
        yield f"judgement.findings is {findings!r:.60}"
    history = results.get("history")
    if history is not None and not isinstance(history, list):
        yield f"history is {history!r:.60}"
        return
    for place, entry in enumerate(history or ()):
        if not isinstance(entry, Mapping) or not _is_number(entry.get("epoch")):
            yield f"history.{place} is {entry!r:.60}"
            return
        yield from _numbers(f"history.{place}.metrics", entry.get("metrics"))


def _numbers(key: str, given: Any) -> Iterator[str]:
    """Give what is wrong with numbers by name, each with what belongs to it."""
    if given is not None and not isinstance(given, Mapping):
        yield f"{key} is {given!r:.60}"
        return
    for name, one in (given or {}).items():
        if not isinstance(one, Mapping):
            yield f"{key}.{name} is {one!r:.60}"
        elif not _is_number(one.get("value")):
            yield f"{key}.{name}.value is {one.get('value')!r:.60}"


def _table(key: str, given: Any) -> Iterator[str]:
    """Give what is wrong with the numbers of models, None for one that a model lacks."""
    if given is not None and not isinstance(given, Mapping):
        yield f"{key} is {given!r:.60}"
        return
    for model, numbers in (given or {}).items():
        if not isinstance(numbers, Mapping):
            yield f"{key}.{model} is {numbers!r:.60}"
            continue
        for name, one in numbers.items():
            if one is not None and not _is_number(one):
                yield f"{key}.{model}.{name} is {one!r:.60}"


def _is_number(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value)
