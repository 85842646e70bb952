"""Answers that begin alike, fed to a model once: rows of token sequences as prefix trees.

The answers to one question share its tokens and often their own first words. Put into one row as
a tree, with positions by depth and attention along each branch, they are scored as if each stood
alone, but for rounding. Scores belong to the tree's edges: the token at its lower end, predicted
from its upper one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import NamedTuple

import torch
from torch import Tensor

from etw_lightning.schema import IGNORE_INDEX, EncodedRow

__all__ = ["PackedRows", "PrefixTree", "pack_rows", "prefix_tree"]


class PrefixTree(NamedTuple):
    """Some token sequences as one row; tokens nothing follows are predicted but not fed.

    Args:
        ids: Fed tokens, every one right before what is below it.
        depths: Position of each in its own sequence.
        ends: Last fed token below each; itself for the last of a branch.
        sources: Of each labelled edge, the fed token that predicts it.
        labels: Of each labelled edge, the token.
        edges: Of each sequence, its labelled edges in order.
    """

    ids: list[int]
    depths: list[int]
    ends: list[int]
    sources: list[int]
    labels: list[int]
    edges: list[list[int]]

    @property
    def is_chain(self) -> bool:
        """Whether all sequences are beginnings of one, so that nothing has to be hidden."""
        return all(end == len(self.ids) - 1 for end in self.ends)


def prefix_tree(rows: Sequence[EncodedRow]) -> PrefixTree:
    """Return the tree of some rows; edges are numbered in the order of the rows.

    Args:
        rows: Each with a label. What follows the last label is left out.

    Example:
        >>> tree = prefix_tree(
        ...     [EncodedRow("0", (5, 6, 7), (-100, 6, 7)), EncodedRow("1", (5, 6, 8), (-100, 6, 8))]
        ... )
        >>> tree.ids, tree.sources, tree.labels, tree.edges
        ([5, 6], [0, 1, 1], [6, 7, 8], [[0, 1], [0, 2]])
    """
    tokens, depths, parents, paths = _nodes([_labelled_part(row) for row in rows])
    is_fed = [False] * len(tokens)
    last_below = list(range(len(tokens)))
    for node in range(len(tokens) - 1, -1, -1):
        if depths[node]:
            is_fed[parents[node]] = True
            last_below[parents[node]] = max(last_below[parents[node]], last_below[node])
    fed = [node for node, is_one in enumerate(is_fed) if is_one]
    place, count = [0] * len(tokens), -1
    for node, is_one in enumerate(is_fed):
        count += is_one
        place[node] = count
    numbers: dict[int, int] = {}
    edges = [
        [
            numbers.setdefault(node, len(numbers))
            for node, label in zip(path, row.labels, strict=False)
            if label != IGNORE_INDEX
        ]
        for path, row in zip(paths, rows, strict=True)
    ]
    return PrefixTree(
        ids=[tokens[node] for node in fed],
        depths=[depths[node] for node in fed],
        ends=[place[last_below[node]] for node in fed],
        sources=[place[parents[node]] for node in numbers],
        labels=[tokens[node] for node in numbers],
        edges=edges,
    )


def _labelled_part(row: EncodedRow) -> tuple[int, ...]:
    """Return the ids of a row up to its last label."""
    tail = sum(1 for _ in takewhile(lambda label: label == IGNORE_INDEX, reversed(row.labels)))
    return row.input_ids[: len(row.input_ids) - tail]


def _nodes(
    sequences: list[tuple[int, ...]],
) -> tuple[list[int], list[int], list[int], list[list[int]]]:
    """Return token, depth and parent of each node, and each sequence's nodes.

    In sorted order a sequence shares most with the one before it, and every branch is finished
    before the next begins.
    """
    tokens: list[int] = []
    depths: list[int] = []
    parents: list[int] = []
    paths: list[list[int]] = [[]] * len(sequences)
    before: tuple[int, ...] = ()
    path: list[int] = []
    for number in sorted(range(len(sequences)), key=sequences.__getitem__):
        sequence = sequences[number]
        pairs = zip(sequence, before, strict=False)
        same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        first = len(tokens)
        path = [*path[:same], *range(first, first + len(sequence) - same)]
        tokens += sequence[same:]
        depths += range(same, len(sequence))
        parents += [path[depth - 1] if depth else -1 for depth in range(same, len(sequence))]
        paths[number], before = path, sequence
    return tokens, depths, parents, paths


@dataclass(frozen=True)
class PackedRows:
    """Trees as tensors, right-padded.

    Args:
        input_ids: ``(B, T)``.
        visible: 1 for tokens that may be looked at, 0 for padding and hidden ones, ``(B, T)``.
        depths: Position ids, ``(B, T)``.
        ends: Last token that may look at each; before itself for hidden ones, ``(B, T)``.
        sources: Of each labelled edge of all rows, the place ``b * T + t`` that predicts it.
        labels: Of each labelled edge, the token.
        is_chain: No row branches.
    """

    input_ids: Tensor
    visible: Tensor
    depths: Tensor
    ends: Tensor
    sources: Tensor
    labels: Tensor
    is_chain: bool

    def to(self, device: torch.device) -> PackedRows:
        """Return the same on a device."""
        moved = {
            name: value.to(device)
            for name, value in vars(self).items()
            if isinstance(value, Tensor)
        }
        return PackedRows(**moved, is_chain=self.is_chain)

    def attention_mask(self) -> Tensor:
        """Return whether query ``i`` may look at key ``j``, ``(B, 1, T, T)``."""
        place = torch.arange(self.ends.shape[1], device=self.ends.device)
        is_before = place[:, None] >= place[None]
        return (is_before & (place[:, None] <= self.ends[:, None, :]))[:, None]


def pack_rows(trees: Sequence[PrefixTree], pad_id: int, hidden_id: int | None = None) -> PackedRows:
    """Stack trees.

    Args:
        trees: One a row.
        pad_id: Fills the rows.
        hidden_id: Token that nothing may look at, itself included; the first of a row always is
            looked at, or there would be nothing for it to see.
    """
    width = max(len(tree.ids) for tree in trees)
    shape = (len(trees), width)
    input_ids, depths = torch.full(shape, pad_id), torch.zeros(shape, dtype=torch.long)
    # Padding looks at itself: a softmax over nothing is not a number.
    ends = torch.arange(width).repeat(len(trees), 1)
    visible = torch.zeros(shape, dtype=torch.long)
    sources: list[int] = []
    for number, tree in enumerate(trees):
        length = len(tree.ids)
        input_ids[number, :length] = torch.tensor(tree.ids)
        depths[number, :length] = torch.tensor(tree.depths)
        ends[number, :length] = torch.tensor(tree.ends)
        visible[number, :length] = 1
        sources += [number * width + source for source in tree.sources]
    if hidden_id is not None:
        is_hidden = (input_ids == hidden_id) & (depths > 0)
        visible[is_hidden] = 0
        ends = torch.where(is_hidden, -1, ends)
    return PackedRows(
        input_ids=input_ids,
        visible=visible,
        depths=depths,
        ends=ends,
        sources=torch.tensor(sources),
        labels=torch.tensor([label for tree in trees for label in tree.labels]),
        is_chain=all(tree.is_chain for tree in trees),
    )
