"""Answers of an evaluation set as batches: rows of similar length go together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, overload

import numpy as np

from etw_lightning.data.answer_rows import AnswerRow, numbers_of
from etw_lightning.data.encode import Encoder
from etw_lightning.models.packing import PrefixTree, prefix_tree
from etw_lightning.models.positions import Extent
from etw_lightning.schema import EvalSet
from etw_lightning.scoring.answers.rows import Answer, hidden_id, kept_answers, last_label, lay_out
from etw_lightning.scoring.scores import Score, ScoreBatch, Slot

__all__ = ["AnswerBatch", "answer_batches"]

#: Examples whose texts go through the tokenizer together.
_TOGETHER = 128


@dataclass
class AnswerBatch(ScoreBatch):
    """Answers to score.

    Args:
        laid: Answers that share a row: of one example, its gold answer first if there. Those of a
            large set are read when they are asked for.
        pad_id: Fills the rows.
        hidden_id: Token that no position may look at, by ``Conventions.attention_mask``.
    """

    laid: Sequence[list[AnswerRow]]
    pad_id: int
    hidden_id: int | None = None

    @property
    def groups(self) -> list[list[Answer]]:
        """The rows, and where their values belong."""
        return [[Answer(_slot_of(one), one.row) for one in group] for group in self.laid]

    @property
    def known(self) -> list[Score]:
        """Scores that need no model, such as where tokens lie in their answer."""
        return [score for group in self.laid for one in group for score in _known(one)]

    @property
    def slots(self) -> list[Slot]:
        """What is scored."""
        return [answer.slot for group in self.groups for answer in group]

    def extents(self) -> list[Extent]:
        """Return how many positions each answer takes; its last label is not fed."""
        rows = [answer.row for group in self.groups for answer in group]
        return [Extent(row.id, last_label(row)) for row in rows]

    @property
    def hides_tokens(self) -> bool:
        """Whether a token of a row may not be looked at."""
        return any(self.hidden_id in one.row.input_ids for group in self.groups for one in group)

    def trees(self, *, shared: bool) -> list[PrefixTree]:
        """Return the rows, one a group, or one an answer if nothing is to be shared."""
        groups = self.groups if shared else [[one] for group in self.groups for one in group]
        return [prefix_tree([answer.row for answer in group]) for group in groups]


def _slot_of(one: AnswerRow) -> Slot:
    return Slot(one.number, one.field, one.place)


def _known(one: AnswerRow) -> list[Score]:
    """Return what can be said of an answer without a model."""
    if one.field == "answer_loss":
        spans = Score(one.number, "token_spans", 0, one.spans)
        return [spans, Score(one.number, "scored_text", 0, one.text)]
    if one.field == "choice_logps":
        return [Score(one.number, "choice_num_tokens", one.place, one.row.num_labels)]
    return []


def answer_batches(
    eval_set: EvalSet, encoder: Encoder, batch_size: int, rows: Sequence[int] | None = None
) -> list[ScoreBatch]:
    """Return the answers of a set, about ``batch_size`` at a time, longest rows first.

    More of them where they share rows, as long as no more tokens are fed than ``batch_size`` of
    the longest answers have.

    Args:
        eval_set: The set.
        encoder: How text becomes tokens.
        batch_size: Answers at a time.
        rows: Numbers of some of its examples, by whose places values are given; None for all.

    Raises:
        InputError: If an answer has no label, or an option of a choice is cut.
    """
    found = _of_set(eval_set, encoder, rows)
    widths, chains = found.firsts("width"), found.firsts("is_chain")
    counts = [stop - start for start, stop in found.bounds]
    # Rows that branch need a mask of their own, which the others are not to pay for.
    order = np.lexsort((np.arange(len(counts)), -widths, chains)).tolist()
    parts: list[_Part] = []
    # What as many of the longest answers would take is not too much for rows of several, either.
    longest = max((int(found.within(one, "last").max()) for one in order), default=0)
    for group in order:
        width, is_chain = int(widths[group]), bool(chains[group])
        if not parts or not parts[-1].takes(counts[group], is_chain=is_chain):
            parts.append(_Part(width, batch_size, batch_size * longest, is_chain=is_chain))
        parts[-1].add(group, counts[group])
    return [
        AnswerBatch(
            dataset=eval_set.name,
            laid=found.groups(part.groups),
            pad_id=encoder.pad_id,
            hidden_id=hidden_id(encoder),
        )
        for part in parts
    ]


class _Part:
    """Rows that are to make a batch.

    Args:
        width: Tokens of the first of them and the longest, to which all others are padded.
        answers_left: How many answers there is room for.
        tokens_left: How many tokens, for rows that branch.
        is_chain: Whether nothing branches in them.
    """

    def __init__(self, width: int, answers_left: int, tokens_left: int, *, is_chain: bool) -> None:
        self.groups: list[int] = []
        self.width, self.is_chain = width, is_chain
        self.answers_left, self.tokens_left = answers_left, tokens_left

    def takes(self, num_answers: int, *, is_chain: bool) -> bool:
        """Tell whether a row is of the same kind and there is room for it."""
        has_room = num_answers <= self.answers_left or (
            not is_chain and self.width <= self.tokens_left
        )
        return has_room and is_chain == self.is_chain

    def add(self, group: int, num_answers: int) -> None:
        """Put a row in."""
        self.groups.append(group)
        self.answers_left -= num_answers
        self.tokens_left -= self.width


class _Laid:
    """The answers of some examples of a set, in groups that share a row.

    Args:
        answers: Those of the whole set.
        places: Of each example of the set its place among these, -1 for none; None for all.
    """

    def __init__(self, answers: Sequence[AnswerRow], places: np.ndarray | None) -> None:
        self.answers, self.places = answers, places
        starts = numbers_of(answers, "begins").nonzero()[0].tolist()
        self.bounds: list[tuple[int, int]] = list(pairwise([*starts, len(answers)]))
        if places is not None:
            numbers = numbers_of(answers, "number")
            self.bounds = [one for one in self.bounds if places[numbers[one[0]]] >= 0]
        self._columns: dict[str, np.ndarray] = {}

    def _column(self, name: str) -> np.ndarray:
        if name not in self._columns:
            self._columns[name] = numbers_of(self.answers, name)
        return self._columns[name]

    def firsts(self, name: str) -> np.ndarray:
        """Return a number of the first answer of each group."""
        return self._column(name)[[start for start, _ in self.bounds]]

    def within(self, group: int, name: str) -> np.ndarray:
        """Return a number of each answer of a group."""
        return self._column(name)[slice(*self.bounds[group])]

    def groups(self, numbers: Sequence[int]) -> Sequence[list[AnswerRow]]:
        """Return some groups; of answers in memory a list."""
        some = _Groups(self.answers, [self.bounds[one] for one in numbers], self.places)
        return [*some] if isinstance(self.answers, list) else some


class _Groups(Sequence[list[AnswerRow]]):
    """Groups of answers that are read when they are asked for.

    Args:
        answers: Those of the whole set.
        bounds: Start and end of each group among them.
        places: As of ``_Laid``.
    """

    def __init__(
        self,
        answers: Sequence[AnswerRow],
        bounds: Sequence[tuple[int, int]],
        places: np.ndarray | None,
    ) -> None:
        self._answers, self._bounds, self._places = answers, bounds, places

    def __len__(self) -> int:
        return len(self._bounds)

    @overload
    def __getitem__(self, place: int) -> list[AnswerRow]: ...

    @overload
    def __getitem__(self, place: slice) -> list[list[AnswerRow]]: ...

    def __getitem__(self, place: int | slice) -> Any:
        if isinstance(place, slice):
            return [self[number] for number in range(len(self))[place]]
        group = self._answers[slice(*self._bounds[place])]
        if self._places is None:
            return list(group)
        return [one._replace(number=int(self._places[one.number])) for one in group]


def _of_set(eval_set: EvalSet, encoder: Encoder, rows: Sequence[int] | None) -> _Laid:
    """Return the answers of some examples of a set; of a large one from the cache."""
    examples = eval_set.examples
    kept = kept_answers(eval_set, encoder)
    if kept is None:
        chosen = examples if rows is None else [examples[row] for row in rows]
        pairs = list(enumerate(chosen))
        found: list[AnswerRow] = []
        for start in range(0, len(pairs), _TOGETHER):
            found += lay_out(encoder, pairs[start : start + _TOGETHER])
        return _Laid(found, None)
    if rows is None:
        return _Laid(kept, None)
    places = np.full(len(examples), -1)
    places[list(rows)] = np.arange(len(rows))
    return _Laid(kept, places)
