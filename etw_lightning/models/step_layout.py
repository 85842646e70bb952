"""How the rows of a training step are fed: what they share once, the rest by length.

Rows of a chat template begin with the same tokens, and rows of unequal length padded to the
longest are a quarter padding. The layout of a step says which tokens are fed; rows, labels and
losses are what they are without one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import takewhile
from typing import NamedTuple

from etw_lightning.schema import IGNORE_INDEX, EncodedRow

__all__ = ["Part", "StepLayout", "plan_layout", "shared_beginning"]

#: Tokens below which a pass of their own for a common beginning costs more than it saves.
_WORTH_SHARING = 4
#: Rows of a part; fewer have less padding, and matrix products too small for a processor.
_ROWS_OF_A_PART = 4
_MOST_PARTS = 8


class Part(NamedTuple):
    """Rows that are fed together.

    Args:
        rows: Their places in the micro-batch.
        width: Tokens of each that are fed, the common beginning included.
    """

    rows: tuple[int, ...]
    width: int


class StepLayout(NamedTuple):
    """What of a micro-batch is fed to the model.

    Args:
        shared: Tokens that all rows begin with, fed once; 0 for none.
        parts: All rows, each in one part.
    """

    shared: int
    parts: tuple[Part, ...]

    @property
    def num_positions(self) -> int:
        """Positions that are fed, padding included."""
        own = sum(len(part.rows) * (part.width - self.shared) for part in self.parts)
        return self.shared + own


def shared_beginning(rows: Iterable[EncodedRow]) -> int:
    """Return how many tokens all rows begin with that predict no label.

    Example:
        >>> labels = (-100, -100, -100, -100, -100, -100, 7)
        >>> shared_beginning([EncodedRow("", (1, 2, 3, 4, 5, n, 7), labels) for n in (6, 6)])
        5
    """
    first: tuple[int, ...] | None = None
    size = 0
    for row in rows:
        if first is None:
            first, size = row.input_ids, len(row.input_ids)
        num_silent = sum(1 for _ in takewhile(lambda label: label == IGNORE_INDEX, row.labels))
        # The token before the first label predicts it, so it is fed with the row.
        size = min(size, max(num_silent - 1, 0))
        pairs = zip(first[:size], row.input_ids, strict=False)
        size = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        if size < _WORTH_SHARING:
            return 0
    return size


def plan_layout(rows: Sequence[EncodedRow], shared: int) -> StepLayout:
    """Lay the rows of a micro-batch out, at the least positions for a number of parts.

    The number of parts follows from that of the rows alone: processes that hold a model in
    shards must call it equally often.

    Args:
        rows: At least one; each has more than ``shared + 1`` tokens.
        shared: Tokens that all of them begin with.

    Example:
        >>> rows = [EncodedRow("", (1,) * n, (-100,) * (n - 1) + (1,)) for n in (3, 9, 8, 4)]
        >>> plan_layout(rows, 0).parts
        (Part(rows=(0, 3, 2, 1), width=8),)
    """
    ends = [_num_fed(row) for row in rows]
    order = sorted(range(len(rows)), key=ends.__getitem__)
    widths = [max(ends[place], shared + 1) for place in order]
    count = min(-(-len(rows) // _ROWS_OF_A_PART), _MOST_PARTS)
    return StepLayout(
        shared,
        tuple(
            Part(tuple(order[start:end]), widths[end - 1])
            for start, end in _cuts([width - shared for width in widths], count)
        ),
    )


def _num_fed(row: EncodedRow) -> int:
    """Return the tokens before the last label; what follows predicts nothing."""
    tail = sum(1 for _ in takewhile(lambda label: label == IGNORE_INDEX, reversed(row.labels)))
    return max(len(row.labels) - tail - 1, 0)


def _cuts(widths: Sequence[int], count: int) -> list[tuple[int, int]]:
    """Cut ascending widths into runs, each as wide as its last, at the least cost.

    Returns:
        Start and end of each run.
    """
    size = len(widths)
    #: Least cost of the first ``end`` rows in the parts so far, and where the last part begins.
    costs, begins = [0.0] + [float("inf")] * size, []
    for _ in range(count):
        best = [
            min(
                ((costs[start] + (end - start) * widths[end - 1], start) for start in range(end)),
                default=(float("inf"), 0),
            )
            for end in range(size + 1)
        ]
        costs = [cost for cost, _ in best]
        begins.append([start for _, start in best])
    runs, end = [], size
    for begin in reversed(begins):
        runs.append((begin[end], end))
        end = begin[end]
    return runs[::-1]
