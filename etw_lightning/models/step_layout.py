"""How the rows of a training step are fed: what rows begin with alike once, and no padding.

Rows of a chat template begin with the same tokens, two answers to one question with the same
question, and rows padded to the longest are a quarter padding. A layout lays the tokens of a step
out as stretches one behind the other: what several rows begin with is one stretch, which their own
ones follow. Rows, labels and losses are what they are without one.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise, takewhile
from typing import NamedTuple

import torch
from torch import Tensor

from etw_lightning.schema import IGNORE_INDEX, EncodedRow

__all__ = [
    "Packed",
    "Part",
    "StepLayout",
    "Stretch",
    "cost_of_a_part",
    "num_distinct",
    "pack",
    "plan_layout",
]

#: Positions that take as long as it takes to attend to one more part, on a processor.
PART_COST = 8
#: The same on a GPU, where positions cost little and kernels have to be launched; not measured.
PART_COST_GPU = 128


class Stretch(NamedTuple):
    """Tokens of a row, or of all rows that begin alike.

    Args:
        row: One of the rows.
        first: Position of its first token.
        last: Position behind its last one.
        path: Numbers of the stretches that it follows, from the first token on.
    """

    row: int
    first: int
    last: int
    path: tuple[int, ...]


class Part(NamedTuple):
    """Stretches that follow the same ones, fed side by side.

    Args:
        num: Stretches.
        width: Positions of each, those that fill it up included.
        path: What they follow, from the first token on: part, place in it, and tokens.
        mask: Which positions of path and stretch each position looks at, bool,
            ``(width, path + width)``; None if no path is followed.
        unread: Positions that each stretch begins with of which no label is asked.
    """

    num: int
    width: int
    path: Sequence[Sequence[int]]
    mask: Tensor | None
    unread: int = 0


class Packed(NamedTuple):
    """The tokens of some rows, each distinct one once but for what fills parts up.

    Args:
        input_ids: Part by part, ``(1, P)``.
        position_ids: Places in their rows, ``(1, P)``.
        sources: Of each label, the position that predicts it, ``(N,)``.
        parts: In the order of ``input_ids``; what a part follows comes before it.
        read: Positions that predict any label, ascending, ``(R,)``; empty for all.
    """

    input_ids: Tensor
    position_ids: Tensor
    sources: Tensor
    parts: Sequence[Part]
    read: Tensor

    def with_sources(self, sources: Tensor) -> Packed:
        """Return the same with the positions that predict labels, ``(N,)``."""
        read = sources.unique()
        parts, start = [], 0
        for part in self.parts:
            end = start + part.num * part.width
            columns = (read[(read >= start) & (read < end)] - start) % part.width
            unread = int(columns.min()) if len(columns) else part.width
            parts.append(part._replace(unread=unread))
            start = end
        return self._replace(sources=sources, parts=tuple(parts), read=read)


class StepLayout(NamedTuple):
    """Where the labels of a micro-batch stand, and what of it is fed to the model.

    Args:
        labels: Row by row, ``(N,)``.
        rows: Row of each, ascending, ``(N,)``.
        places: Position of the padded rows that predicts each, ``row * T + t``, ``(N,)``.
        offsets: Where the labels of each row begin, and where those of the last end.
        widths: Tokens of each row up to the last that predicts a label; empty to feed whole rows.
        packed: What is fed; None to feed rows by length, or whole.
    """

    labels: Tensor
    rows: Tensor
    places: Tensor
    offsets: Sequence[int]
    widths: Sequence[int]
    packed: Packed | None

    @property
    def parts_by_length(self) -> list[list[int]]:
        """Rows that are fed together where beginnings are not shared, each padded."""
        order = sorted(range(len(self.widths)), key=self.widths.__getitem__)
        widths = [max(self.widths[row], 1) for row in order]
        # A pass of its own costs far more than a part of one.
        return [order[start:end] for start, end in _cuts(widths, 4 * PART_COST)]


def plan_layout(
    rows: Sequence[EncodedRow], labels: Tensor, part_cost: float | None = None
) -> StepLayout:
    """Lay the rows of a micro-batch out.

    Args:
        rows: At least one.
        labels: Their labels, right-padded, ``(B, T)``.
        part_cost: Positions that take as long as one more part; None for those of the machine.

    Example:
        >>> rows = [EncodedRow("", (5, 6, n), (-100, -100, n)) for n in (7, 8)]
        >>> layout = plan_layout(rows, torch.tensor([row.labels for row in rows]))
        >>> layout.labels, layout.rows, layout.offsets, layout.widths
        (tensor([7, 8]), tensor([0, 1]), (0, 1, 2), (2, 2))
    """
    if part_cost is None:
        part_cost = cost_of_a_part()
    is_label = labels[:, 1:] != IGNORE_INDEX
    numbers, columns = is_label.nonzero(as_tuple=True)
    offsets = [0, *is_label.sum(1).cumsum(0).tolist()]
    widths = tuple(_num_fed(row) for row in rows)
    fed = [row.input_ids[:width] for row, width in zip(rows, widths, strict=True)]
    packed, places = pack(fed, part_cost)
    return StepLayout(
        labels=labels[numbers, columns + 1],
        rows=numbers,
        places=numbers * labels.shape[1] + columns,
        offsets=tuple(offsets),
        widths=widths,
        packed=packed.with_sources(places[numbers, columns]),
    )


def cost_of_a_part() -> float:
    """Return how many positions take as long as one more part on this machine."""
    return PART_COST_GPU if torch.cuda.is_available() else PART_COST


def pack(rows: Sequence[Sequence[int]], part_cost: float) -> tuple[Packed, Tensor]:
    """Lay token sequences out; what several begin with is fed once where that is worth it.

    Args:
        rows: Tokens; a row may have none.
        part_cost: Positions that take as long as one more part.

    Returns:
        What is fed, without ``sources``; position of each token there, ``(B, T)``, -1 behind
        the ends of rows.

    Example:
        >>> packed, places = pack([(1, 2, 3, 7), (1, 2, 3, 8, 9)], part_cost=0)
        >>> packed.input_ids, packed.position_ids
        (tensor([[1, 2, 3, 7, 8, 9]]), tensor([[0, 1, 2, 3, 3, 4]]))
        >>> places
        tensor([[ 0,  1,  2,  3, -1],
                [ 0,  1,  2,  4,  5]])
    """
    stretches, paths = _stretches(rows, part_cost)
    groups: dict[tuple[int, ...], list[int]] = {}
    for number, stretch in enumerate(stretches):
        groups.setdefault(stretch.path, []).append(number)
    parts: list[Part] = []
    ids: list[int] = []
    positions: list[int] = []
    #: Part of each stretch, place in it, and where it begins in what is fed.
    found: dict[int, tuple[int, int, int]] = {}
    # What is followed has been found before what follows it, and so is laid out before.
    for path, numbers in groups.items():
        numbers.sort(key=lambda number: _length(stretches[number]))
        lengths = [_length(stretches[number]) for number in numbers]
        for start, end in _cuts(lengths, part_cost):
            width = lengths[end - 1]
            for place, number in enumerate(numbers[start:end]):
                row, first, last, _ = stretches[number]
                found[number] = (len(parts), place, len(ids))
                tokens = rows[row][first:last]
                ids += [*tokens, *[0] * (width - len(tokens))]
                positions += range(first, first + width)
            before = tuple((*found[one][:2], _length(stretches[one])) for one in path)
            mask = _mask(sum(size for _, _, size in before), width)
            parts.append(Part(end - start, width, before, mask))
    places = torch.full((len(rows), max(1, *map(len, rows))), -1)
    for row, path in enumerate(paths):
        for number in path:
            _, first, last, _ = stretches[number]
            start = found[number][2]
            places[row, first:last] = torch.arange(start, start + last - first)
    none = torch.empty(0, dtype=torch.long)
    return Packed(torch.tensor([ids]), torch.tensor([positions]), none, (*parts,), none), places


def num_distinct(rows: Sequence[EncodedRow]) -> int:
    """Return the positions that must be fed at least: each beginning of rows once.

    Example:
        >>> num_distinct([EncodedRow("", (1, 2, n, 4), (-100, -100, n, 4)) for n in (3, 5)])
        4
    """
    fed = sorted(row.input_ids[: _num_fed(row)] for row in rows)
    return sum(map(len, fed)) - sum(_num_same(*pair) for pair in pairwise(fed))


def _length(stretch: Stretch) -> int:
    return stretch.last - stretch.first


def _mask(num_before: int, width: int) -> Tensor | None:
    if not num_before:
        return None
    return torch.ones(width, num_before + width, dtype=torch.bool).tril(num_before)


def _num_fed(row: EncodedRow) -> int:
    """Return the tokens before the last label; what follows predicts nothing."""
    tail = sum(1 for _ in takewhile(lambda label: label == IGNORE_INDEX, reversed(row.labels)))
    return max(len(row.labels) - tail - 1, 0)


def _num_same(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many tokens two sequences begin with alike."""
    shorter = min(len(one), len(other))
    if one[:shorter] == other[:shorter]:
        return shorter
    return next(n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)


def _stretches(
    rows: Sequence[Sequence[int]], part_cost: float
) -> tuple[list[Stretch], list[tuple[int, ...]]]:
    """Return stretches, each behind those that it follows, and the numbers of each row's."""
    order = sorted(range(len(rows)), key=lambda row: tuple(rows[row]))
    same = [0, *(_num_same(rows[a], rows[b]) for a, b in pairwise(order))]
    stretches: list[Stretch] = []
    paths: list[tuple[int, ...]] = [()] * len(rows)
    #: Rows that begin alike as places in the order, how much of them is laid out, and as what.
    todo: list[tuple[int, int, int, tuple[int, ...]]] = [(0, len(order), 0, ())]
    while todo:
        start, stop, done, path = todo.pop()
        row = order[start]
        if stop - start == 1:
            if len(rows[row]) > done:
                stretches.append(Stretch(row, done, len(rows[row]), path))
                path = (*path, len(stretches) - 1)
            paths[row] = path
            continue
        common = min(same[start + 1 : stop])
        # The shared stretch is a part, and what follows it can't be in one with others.
        if (stop - start - 1) * (common - done) > 2 * part_cost:
            stretches.append(Stretch(row, done, common, path))
            path, done = (*path, len(stretches) - 1), common
        cuts = [n for n in range(start + 1, stop) if same[n] == common]
        todo += [(a, b, done, path) for a, b in pairwise((start, *cuts, stop))][::-1]
    if not stretches:
        # A model that other processes wait for is run, even if nothing is asked of it.
        return [Stretch(0, 0, 1, ())], paths
    return stretches, paths


def _cuts(widths: Sequence[int], cost: float) -> list[tuple[int, int]]:
    """Cut ascending widths into runs, each as wide as its last.

    Args:
        widths: At least one.
        cost: What one more run costs, in positions.

    Returns:
        Start and end of each run; positions and costs together are the least.
    """
    #: Least cost of the first ``end`` widths, and where their last run begins.
    costs, begins = [0.0], [0]
    for end in range(1, len(widths) + 1):
        width = widths[end - 1]
        least, begin = min((costs[at] + (end - at) * width, at) for at in range(end))
        costs.append(least + cost)
        begins.append(begin)
    runs, end = [], len(widths)
    while end:
        runs.append((begins[end], end))
        end = begins[end]
    return runs[::-1]
