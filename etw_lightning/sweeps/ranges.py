"""Ranges that a search draws a setting from, read and checked."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from etw_lightning.schema import InputError

__all__ = ["Range", "read_range"]

_HINT = "LOW..HIGH or log:LOW..HIGH, as log:0.01..1, or {low: 0.01, high: 1, log: true}"
_TEXT = re.compile(r"(?P<log>log:)?(?P<low>[^:]+?)\.\.(?P<high>[^:]+)")
#: Digits of a number that is drawn: what tells two runs apart can be read, and typed again.
_DIGITS = 4


@dataclass(frozen=True)
class Range:
    """All numbers from one to another.

    Args:
        low: The lowest.
        high: The highest.
        log: Whether equal factors are equally likely; else equal differences.
        is_whole: Whole numbers only.
    """

    low: float
    high: float
    log: bool = False
    is_whole: bool = False

    def rounded(self, value: float) -> float | int:
        """Return a number that was drawn as it is run with: to four digits, within the ends.

        Example:
            >>> Range(0.01, 1.0, log=True).rounded(0.123456)
            0.1235
        """
        if self.is_whole:
            return int(value)
        return min(max(float(f"{value:.{_DIGITS}g}"), self.low), self.high)

    @property
    def ends(self) -> tuple[float | int, float | int]:
        """The lowest and the highest number."""
        return (int(self.low), int(self.high)) if self.is_whole else (self.low, self.high)

    def __str__(self) -> str:
        low, high = self.ends
        return f"{'log:' * self.log}{low}..{high}"


def read_range(place: str, given: Any) -> Range | None:
    """Return the range that a value of a sweep's file is; None of what is none.

    Args:
        place: Key of the value, for messages.
        given: A text ``[log:]LOW..HIGH`` or a mapping with ``low``, ``high`` and ``log``. Ends
            without a point are whole numbers, and so is what is drawn between them.

    Raises:
        InputError: If it is meant for a range, and is no good one.

    Example:
        >>> read_range("grid.model.lr", "log:1e-5..1e-3")
        Range(low=1e-05, high=0.001, log=True, is_whole=False)
    """
    if isinstance(given, str):
        found = _TEXT.fullmatch(given.strip())
        if found is None:
            return None
        parts: Mapping[str, Any] = {**found.groupdict(), "log": bool(found["log"])}
    elif isinstance(given, dict):
        parts = given
    else:
        return None
    unknown = [key for key in parts if key not in ("low", "high", "log")]
    lacking = [key for key in ("low", "high") if key not in parts]
    if unknown or lacking:
        what = f"got {unknown[0]!r}" if unknown else f"{lacking[0]} is missing"
        raise InputError(f"{place} must be a range, {_HINT}; {what}.")
    ends = [_number(place, parts[key]) for key in ("low", "high")]
    low, high = (float(end) for end in ends)
    log = parts.get("log", False)
    if not isinstance(log, bool):
        raise InputError(f"{place}.log must be true or false; got {log!r}.")
    if not low < high:
        raise InputError(f"{place} must go from low to high; got {given!r}.")
    if log and low <= 0:
        raise InputError(f"{place} must begin above 0, as equal factors are drawn; got {given!r}.")
    return Range(low, high, log, all(isinstance(end, int) for end in ends))


def _number(place: str, given: Any) -> float | int:
    """Return an end of a range; YAML takes 1e-4, which lacks a point, for a text."""
    if isinstance(given, str):
        text = given.strip()
        try:
            given = int(text) if re.fullmatch(r"[+-]?\d+", text) else float(text)
        except ValueError:
            raise InputError(f"{place} must be a range, {_HINT}; got {text!r}.") from None
    is_number = isinstance(given, int | float) and not isinstance(given, bool)
    if not is_number or not math.isfinite(given):
        raise InputError(f"{place} must be a range, {_HINT}; got {given!r}.")
    number: float | int = given
    return number
