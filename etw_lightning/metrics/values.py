"""What all metrics share: the number with its direction, and the checks of records."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from etw_lightning.schema import Conventions, InputError, Record

__all__ = [
    "TINY",
    "Direction",
    "Floats",
    "Metric",
    "check_rows",
    "check_same_rows",
    "column",
    "finite",
    "harmonic_mean",
    "labelled",
    "mean_of",
    "number",
    "pairs_in_order",
    "present",
    "scored_tokens",
    "where",
]

#: Which way is better: up, down, as near as possible to zero or to the retain model's own number;
#: none for what is no score.
Direction = Literal["up", "down", "zero", "retain", "none"]
Floats = NDArray[np.float64]

#: Added to denominators by the widely used code; kept, or its numbers would not come out.
TINY = 1e-10


@dataclass(frozen=True)
class Metric:
    """One number, and how to read it.

    Args:
        value: The number, in the unit of the function that made it.
        direction: Which way is better.
        n: Rows it was computed from.
        interval: Lower and upper end of a confidence interval of 95 %, where one is computed.

    Example:
        >>> Metric.mean([1.0, 0.0], "up").value
        0.5
    """

    value: float
    direction: Direction
    n: int
    interval: tuple[float, float] | None = None

    @classmethod
    def mean(cls, values: Sequence[float] | Floats, direction: Direction) -> Metric:
        """Return the mean of a value per row, in its unit."""
        return cls(mean_of(values), direction, len(values))


def harmonic_mean(values: Sequence[float]) -> float:
    """Harmonic mean: high only where every value is.

    Formula: n / sum(1 / v); 0 where a value is 0.
    Unit: that of the values.
    Range: between the smallest and the largest value, which must be >= 0.
    Direction: that of the values.
    Empty input: InputError.
    Source: textbook; TOFU, arXiv:2401.06121, takes it for model utility.
    Differs from widely used code: nothing; scipy's ``hmean``, which that calls, gives 0 too.

    Args:
        values: The numbers, ``(N,)``.

    Raises:
        InputError: If there is none, or one is negative.

    Example:
        >>> harmonic_mean([1.0, 0.5])
        0.6666666666666666
    """
    if not values or min(values) < 0:
        raise InputError(f"harmonic mean: needs values >= 0, got {list(values)}.")
    return 0.0 if min(values) == 0 else len(values) / sum(1 / value for value in values)


def mean_of(values: Sequence[float] | Floats) -> float:
    """Return the mean; no values, NaN and infinity are an InputError."""
    if len(values) == 0:
        raise InputError("metrics: no rows to average; the set is empty.")
    mean = float(np.mean(values))
    if not math.isfinite(mean):
        raise InputError(f"metrics: the mean of {len(values)} values is {mean}; check the records.")
    return mean


def pairs_in_order(lower: Floats, higher: Floats) -> float:
    """Area under the ROC curve: share of the pairs whose first value is below the second.

    Formula: (R - m (m + 1) / 2) / (n m), R the sum of the ranks of the m second values among all,
    equal values at their mean rank; so ties count half. Exact but for the division.
    Range: 0 to 1.
    Source: Mann and Whitney 1947; Hanley and McNeil 1982 for the area.

    Args:
        lower: The values that should be lower, ``(n,)``, n >= 1, finite.
        higher: The values that should be higher, ``(m,)``, m >= 1, finite.

    Example:
        >>> pairs_in_order(np.array([1.0, 3.0]), np.array([2.0, 3.0]))
        0.625
    """
    from scipy.stats import rankdata

    n, m = len(lower), len(higher)
    ranks = rankdata(np.concatenate((lower, higher)))
    return float((ranks[n:].sum() - m * (m + 1) / 2) / (n * m))


def check_rows(records: Sequence[Record]) -> None:
    """Refuse an empty set."""
    if len(records) == 0:
        raise InputError("metrics: no rows to score; the set is empty.")


def where(record: Record, row: int) -> str:
    """Name a row as errors do: set, place, id."""
    return f"set {record.dataset!r}, row {row} ({record.id})"


def present(record: Record, row: int, name: str) -> Any:
    """Return a field of a record; InputError where it was not scored."""
    value = getattr(record, name)
    if value is None or value == ():
        raise InputError(f"{where(record, row)}: {name} is missing; score the set with it.")
    return value


def finite(value: float | None, record: Record, row: int, name: str) -> float:
    """Return a value; InputError where it is missing, NaN or infinite."""
    if value is None or not math.isfinite(value):
        raise InputError(f"{where(record, row)}: {name} must be finite, got {value}.")
    return value


def number(record: Record, row: int, name: str) -> float:
    """Return a field that must hold a finite number."""
    return finite(present(record, row, name), record, row, name)


def column(records: Sequence[Record], name: str) -> Floats:
    """Return a field of all rows, ``(B,)``, float64."""
    check_rows(records)
    return np.array([number(record, row, name) for row, record in enumerate(records)])


def scored_tokens(record: Record, row: int, name: str) -> Floats:
    """Return a field with one number a labelled token, ``(N,)``; each must be finite."""
    values = np.asarray(present(record, row, name), dtype=np.float64)
    if not np.isfinite(values).all():
        bad = int(np.flatnonzero(~np.isfinite(values))[0])
        raise InputError(
            f"{where(record, row)}: {name} must be finite, got {values[bad]} at token {bad}."
        )
    return values


def labelled(values: Floats, record: Record, row: int, conventions: Conventions) -> Floats:
    """Return what ``conventions.last_label`` keeps of one number a labelled token."""
    kept = values if conventions.last_label == "kept" else values[:-1]
    if len(kept) == 0:
        raise InputError(
            f"{where(record, row)}: has one labelled token, which conventions.last_label "
            f"'left_out' leaves out; use 'kept', or drop the row."
        )
    return kept


def check_same_rows(records: Sequence[Record], retain_records: Sequence[Record]) -> None:
    """Refuse retain records of other rows: another number, another id, another answer."""
    check_rows(records)
    check_rows(retain_records)
    if len(records) != len(retain_records):
        raise InputError(
            f"data.retain_results: its set {retain_records[0].dataset!r} holds "
            f"{len(retain_records)} rows, this run's {records[0].dataset!r} {len(records)}: it was "
            f"made for another forget split; give the one made for this split."
        )
    for row, (ours, theirs) in enumerate(zip(records, retain_records, strict=True)):
        has_ids = all(record.id != f"{record.dataset}/{row}" for record in (ours, theirs))
        texts = ["".join(record.answer.split()) for record in (ours, theirs)]
        if (has_ids and ours.id != theirs.id) or (all(texts) and texts[0] != texts[1]):
            raise InputError(
                f"data.retain_results: row {row} is {theirs.id} ({theirs.answer!r:.60}), this "
                f"run's is {ours.id} ({ours.answer!r:.60}); both must score the same rows."
            )
