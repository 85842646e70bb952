"""Labels that ``data.max_length`` cuts off rows, and forget rows that repeat others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from etw_lightning.data.stored_rows import sizes
from etw_lightning.notices import warn_first
from etw_lightning.schema import EncodedRow, Example

__all__ = ["LostLabels", "Repeats", "percent", "said_by", "tell_lost", "tell_repeats"]

#: Rows that are named.
_NAMED = 5


@dataclass(frozen=True)
class LostLabels:
    """What a stream has lost.

    Args:
        labels: Number of labels that were cut off.
        share: Of all labels the rows would have, 0 to 1.
        rows: Number of rows that lost some.
        of_rows: Number of rows there are.
        first: Ids of the first of them.
    """

    labels: int
    share: float
    rows: int
    of_rows: int
    first: tuple[str, ...]

    @classmethod
    def of(cls, rows: Sequence[EncodedRow]) -> LostLabels | None:
        """Return what rows have lost; None for nothing.

        Example:
            >>> row = (1, 2), (-100, 2)
            >>> LostLabels.of([EncodedRow("a/0", *row, num_lost=3), EncodedRow("a/1", *row)])
            LostLabels(labels=3, share=0.6, rows=1, of_rows=2, first=('a/0',))
        """
        found, numbers = sizes(rows), np.arange(len(rows))
        return cls.counted(found.num_lost, found.num_labels, numbers, _Ids(rows))

    @classmethod
    def counted(
        cls, num_lost: np.ndarray, num_labels: np.ndarray, numbers: np.ndarray, ids: Sequence[str]
    ) -> LostLabels | None:
        """Return what examples have lost, of which each may have several rows; None for nothing.

        Args:
            num_lost: Labels that each row has lost, ``(rows,)``.
            num_labels: Those it has, ``(rows,)``.
            numbers: Number of its example, ``(rows,)``.
            ids: Ids of the examples.
        """
        lost = int(num_lost.sum())
        if not lost:
            return None
        cut = np.unique(numbers[num_lost > 0]).tolist()
        named = tuple(ids[number] for number in cut[:_NAMED])
        return cls(lost, lost / (lost + int(num_labels.sum())), len(cut), len(ids), named)

    def to_json(self) -> dict[str, Any]:
        """Return the fields, ready for ``json.dumps``."""
        return {**asdict(self), "first": list(self.first)}


class _Ids(Sequence[str]):
    """Ids of rows that are read when they are asked for."""

    def __init__(self, rows: Sequence[EncodedRow]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, place: Any) -> Any:
        return self._rows[place].id


def tell_lost(stream: str, rows: Sequence[EncodedRow], max_length: int) -> LostLabels | None:
    """Return what a stream has lost, and warn of it.

    Args:
        stream: ``forget``, ``retain`` or ``alternative``.
        rows: Its rows.
        max_length: ``data.max_length``.
    """
    lost = LostLabels.of(rows)
    if lost is not None:
        further = ", ..." if lost.rows > len(lost.first) else ""
        warn_first(
            f"{lost.rows} of {lost.of_rows} {stream} rows lose {lost.labels} labels "
            f"({percent(lost.share)} %) to data.max_length = {max_length}: "
            f"{', '.join(lost.first)}{further}. What is cut off is not trained on; raise it, or "
            "have --data.truncation error refuse such rows."
        )
    return lost


def percent(share: float) -> str:
    """Return a share in percent as it is read: two digits, all that stand before the point.

    Example:
        >>> percent(0.0234), percent(0.5), percent(0.999)
        ('2.3', '50', '99.9')
    """
    return f"{100 * share:.{3 if share > 0.99 else 2}g}"


def said_by(example: Example) -> tuple[object, ...]:
    """Return all that a row says."""
    return example.turns, example.question, example.lead, example.answer


@dataclass(frozen=True)
class Repeats:
    """Forget rows that say what an earlier one says.

    Args:
        rows: Number of them.
        of_rows: Number of rows there are.
        first: The first of them, each with the row it repeats.
    """

    rows: int
    of_rows: int
    first: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the fields, ready for ``json.dumps``."""
        return {**asdict(self), "first": list(self.first)}


def tell_repeats(examples: Sequence[Example]) -> Repeats | None:
    """Return which forget rows say what an earlier one says, and warn of them; None for none."""
    first: dict[tuple[object, ...], str] = {}
    repeats = []
    for example in examples:
        earlier = first.setdefault(said_by(example), example.id)
        if earlier != example.id:
            repeats.append(f"{example.id} as {earlier}")
    if not repeats:
        return None
    further = ", ..." if len(repeats) > _NAMED else ""
    warn_first(
        f"{len(repeats)} rows of data.forget_split say the same as an earlier one: "
        f"{', '.join(repeats[:_NAMED])}{further}. They count as often as they stand there; "
        "take them out if that is not meant."
    )
    return Repeats(len(repeats), len(examples), tuple(repeats[:_NAMED]))
