"""Answers of an evaluation set as batches, and what a model says of them.

All answers of an example go into one row, which feeds what they begin with once; rows of similar
length go together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple, overload

import numpy as np
import torch
from torch import Tensor

from etw_lightning.data.answer_rows import AnswerRow, Numbered, keep_answers, numbers_of
from etw_lightning.data.encode import Encoder
from etw_lightning.kernels.head import LinearStatistics
from etw_lightning.models.loading import LabelScorer
from etw_lightning.models.packed_attention import moved
from etw_lightning.models.packing import PrefixTree, pack_rows, prefix_tree
from etw_lightning.models.positions import Extent
from etw_lightning.models.step_layout import cost_of_a_part, pack
from etw_lightning.schema import IGNORE_INDEX, EncodedRow, EvalSet, Example, InputError, Numbers
from etw_lightning.scoring.scores import TOKEN_FIELDS, Score, ScoreBatch, Slot

__all__ = [
    "AnswerBatch",
    "GradientBatch",
    "answer_batches",
    "answers_of",
    "gradient_batches",
    "hidden_id",
    "kept_answers",
    "lay_out",
    "score_answers",
    "score_gradients",
]

#: Tokens of a row above which the answers of an example go into rows of their own: attention in
#: a row costs its length squared.
_MAX_WIDTH = 2048
#: Examples whose texts go through the tokenizer together.
_TOGETHER = 128
#: Modules that decide, beside those that encode, how the answers of a set are laid out.
_CODE = ("data.answer_rows", "models.packing", "scoring.answers")


class _Answer(NamedTuple):
    """A labelled row and where its value belongs."""

    slot: Slot
    row: EncodedRow


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
    def groups(self) -> list[list[_Answer]]:
        """The rows, and where their values belong."""
        return [[_Answer(_slot_of(one), one.row) for one in group] for group in self.laid]

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
        return [Extent(row.id, _last_label(row)) for row in rows]

    @property
    def hides_tokens(self) -> bool:
        """Whether a token of a row may not be looked at."""
        return any(self.hidden_id in one.row.input_ids for group in self.groups for one in group)

    def trees(self, *, shared: bool) -> list[PrefixTree]:
        """Return the rows, one a group, or one an answer if nothing is to be shared."""
        groups = self.groups if shared else [[one] for group in self.groups for one in group]
        return [prefix_tree([answer.row for answer in group]) for group in groups]


@dataclass
class GradientBatch(ScoreBatch):
    """Gold answers the gradients of whose losses are measured, one by one.

    Args:
        answers: The rows; those of a large set are read when they are asked for.
        hidden_id: As of ``AnswerBatch``.
        of_each: As of ``LabelScorer.gradient_norm``.
    """

    answers: Sequence[_Answer]
    hidden_id: int | None
    of_each: bool

    @property
    def slots(self) -> list[Slot]:
        """What is scored."""
        return [answer.slot for answer in self.answers]

    def extents(self) -> list[Extent]:
        """Return how many positions each answer takes."""
        return [Extent(answer.row.id, len(answer.row.input_ids)) for answer in self.answers]


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


def kept_answers(eval_set: EvalSet, encoder: Encoder) -> Sequence[AnswerRow] | None:
    """Return the answers of a large set, from the cache; None of a small one.

    Args:
        eval_set: The set.
        encoder: How text becomes tokens.

    Raises:
        InputError: As ``answer_batches``.
    """
    words = f"encoding what is scored of {eval_set.name}"
    return keep_answers(eval_set.examples, encoder, partial(lay_out, encoder), words, _CODE)


def lay_out(encoder: Encoder, pairs: Sequence[Numbered]) -> list[AnswerRow]:
    """Return the answers of some examples, those together that share a row."""
    texts = [(example, text) for _, example in pairs for _, _, text in answers_of(example)]
    found: list[AnswerRow] = []
    with encoder.ahead(texts):
        for number, example in pairs:
            answers = _answers(number, example, encoder)
            tree = prefix_tree([answer.row for answer in answers])
            if len(tree.ids) <= _MAX_WIDTH or tree.is_chain:
                groups = [(tree, answers)]
            else:
                groups = [(prefix_tree([answer.row]), [answer]) for answer in answers]
            found += [
                _laid_out(answer, example, encoder, tree, begins=not place)
                for tree, group in groups
                for place, answer in enumerate(group)
            ]
    return found


def _laid_out(
    answer: _Answer, example: Example, encoder: Encoder, tree: PrefixTree, *, begins: bool
) -> AnswerRow:
    """Return an answer with what is known of it without a model."""
    is_gold = answer.slot.field == "answer_loss"
    return AnswerRow(
        *answer.slot,
        row=answer.row,
        spans=tuple(encoder.answer_spans(example)) if is_gold else None,
        text=encoder.scored_text(example) if is_gold else None,
        begins=int(begins),
        width=len(tree.ids),
        is_chain=int(tree.is_chain),
        last=_last_label(answer.row),
    )


def _slot_of(one: AnswerRow) -> Slot:
    return Slot(one.number, one.field, one.place)


def answers_of(example: Example) -> list[tuple[str, int, str]]:
    """Return field, place and text of each answer of an example, the gold one first."""
    texts = [("answer_loss", 0, example.answer)]
    if example.paraphrased_answer is not None:
        texts.append(("paraphrase_loss", 0, example.paraphrased_answer))
    texts += [
        ("perturbed_losses", place, text) for place, text in enumerate(example.perturbed_answers)
    ]
    return texts + [("choice_logps", place, text) for place, text in enumerate(example.choices)]


def _answers(number: int, example: Example, encoder: Encoder) -> list[_Answer]:
    """Return the rows of an example, the gold answer's first."""
    answers = [
        _Answer(Slot(number, name, place), encoder.encode(example, text))
        for name, place, text in answers_of(example)
    ]
    for slot, row in answers:
        if slot.field == "choice_logps" and row.is_cut:
            raise InputError(
                f"Row {example.id}: option {slot.place + 1} of {len(example.choices)} is cut by "
                f"{encoder.length_key} = {encoder.max_length}; options of which a part is "
                f"scored can't be compared. Raise {encoder.length_key}."
            )
    return answers


def _known(one: AnswerRow) -> list[Score]:
    """Return what can be said of an answer without a model."""
    if one.field == "answer_loss":
        spans = Score(one.number, "token_spans", 0, one.spans)
        return [spans, Score(one.number, "scored_text", 0, one.text)]
    if one.field == "choice_logps":
        return [Score(one.number, "choice_num_tokens", one.place, one.row.num_labels)]
    return []


def _last_label(row: EncodedRow) -> int:
    return max(place for place, label in enumerate(row.labels) if label != IGNORE_INDEX)


def hidden_id(encoder: Encoder) -> int | None:
    """Return the token that no position may look at, by the conventions; None for none."""
    return encoder.pad_id if encoder.conventions.attention_mask == "token_id" else None


def gradient_batches(
    eval_set: EvalSet, encoder: Encoder, batch_size: int, rows: Sequence[int] | None = None
) -> list[ScoreBatch]:
    """Return the gold answers of a set for ``score_gradients``, longest first.

    Args:
        eval_set: The set.
        encoder: How text becomes tokens.
        batch_size: Answers at a time.
        rows: As of ``answer_batches``.
    """
    conventions, examples = encoder.conventions, eval_set.examples
    numbers = range(len(examples)) if rows is None else rows
    row_of: Callable[[int], EncodedRow]
    kept = kept_answers(eval_set, encoder)
    if kept is None:
        gold = [encoder.encode(examples[row]) for row in numbers]
        lengths, row_of = np.array([len(row.input_ids) for row in gold]), gold.__getitem__
    else:
        # Of the answers of an example the gold one comes first.
        firsts = np.searchsorted(numbers_of(kept, "number"), np.asarray(numbers))
        lengths = numbers_of(kept, "num_tokens")[firsts]
        row_of = partial(_row_at, kept, firsts)
    order = np.argsort(-lengths, kind="stable").tolist()
    batches: list[ScoreBatch] = []
    for start in range(0, len(order), batch_size):
        some = _Gradients(row_of, order[start : start + batch_size], conventions.last_label)
        batches.append(
            GradientBatch(
                dataset=eval_set.name,
                answers=[*some] if kept is None else some,
                hidden_id=hidden_id(encoder),
                of_each=conventions.gradient_norm == "tensor_mean",
            )
        )
    return batches


def _row_at(answers: Sequence[AnswerRow], places: np.ndarray, number: int) -> EncodedRow:
    return answers[int(places[number])].row


class _Gradients(Sequence[_Answer]):
    """Gold answers that are read when they are asked for.

    Args:
        row_of: Gives the row of an example by its number.
        numbers: Of the examples.
        last_label: As of ``Conventions``.
    """

    def __init__(
        self, row_of: Callable[[int], EncodedRow], numbers: Sequence[int], last_label: str
    ) -> None:
        self._row_of, self._numbers = row_of, numbers
        self._drops_last = last_label == "left_out"

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, place: int) -> _Answer: ...

    @overload
    def __getitem__(self, place: slice) -> list[_Answer]: ...

    def __getitem__(self, place: int | slice) -> Any:
        if isinstance(place, slice):
            return [self[one] for one in range(len(self))[place]]
        number = self._numbers[place]
        row = self._row_of(number)
        if self._drops_last and row.num_labels > 1:
            last = _last_label(row)
            labels = (*row.labels[:last], *[IGNORE_INDEX] * (len(row.labels) - last))
            row = EncodedRow(row.id, row.input_ids, labels)
        return _Answer(Slot(number, "gradient_norm", 0), row)


def score_answers(scorer: LabelScorer, batch: AnswerBatch, device: torch.device) -> list[Score]:
    """Return losses, log-probabilities of options, and what is kept of a gold answer's tokens."""
    is_packed = not scorer.in_shards and not batch.hides_tokens and scorer.takes_packed
    score = _score_packed if is_packed else _score_trees
    picks, logps, statistics = score(scorer, batch, device)
    logps = logps.cpu()
    found = [part.cpu() for part in statistics[1:]]
    scores = list(batch.known)
    for slot, pick in zip(batch.slots, picks, strict=True):
        scores.append(slot.score(_value(slot, logps[pick])))
        if slot.field == "answer_loss":
            parts = [part[: len(pick)] for part in found]
            found = [part[len(pick) :] for part in found]
            for name, part in zip(TOKEN_FIELDS, (logps[pick], *parts), strict=True):
                scores.append(slot.score(_plain(part), name))
    return scores


#: Of each answer its labels among those that are scored; their log-probabilities; gold answers'
#: statistics.
_Found = tuple[list[list[int]], Tensor, LinearStatistics]


def _score_packed(scorer: LabelScorer, batch: AnswerBatch, device: torch.device) -> _Found:
    """Score all answers in one row, in which what any of them begin with alike is fed once."""
    rows = [answer.row for group in batch.groups for answer in group]
    fed = [row.input_ids[: _last_label(row)] for row in rows]
    packed, places = pack(fed, cost_of_a_part())
    where = iter(places.tolist())
    sources: list[int] = []
    labels: list[int] = []
    picks: list[list[int]] = []
    for group in batch.groups:
        # Two answers to a question that go on alike are predicted once.
        numbers: dict[tuple[int, int], int] = {}
        first = len(labels)
        for answer, at in zip(group, where, strict=False):
            edges = [
                (at[place - 1], label)
                for place, label in enumerate(answer.row.labels)
                if label != IGNORE_INDEX
            ]
            picks.append([first + numbers.setdefault(edge, len(numbers)) for edge in edges])
        sources += (source for source, _ in numbers)
        labels += (label for _, label in numbers)
    packed = moved(packed._replace(sources=torch.tensor(sources)), device)
    is_detailed = _detailed(batch, picks, len(labels)).to(device)
    return picks, *scorer.score_packed(packed, torch.tensor(labels, device=device), is_detailed)


def _score_trees(scorer: LabelScorer, batch: AnswerBatch, device: torch.device) -> _Found:
    """Score the answers to each question in one row; of models that can't, each in its own."""
    trees = batch.trees(shared=True)
    if not all(tree.is_chain for tree in trees) and not scorer.takes_trees:
        trees = batch.trees(shared=False)
    rows = pack_rows(trees, batch.pad_id, batch.hidden_id).to(device)
    first, picks = 0, []
    for tree in trees:
        picks += [[first + edge for edge in edges] for edges in tree.edges]
        first += len(tree.labels)
    return picks, *scorer.score_edges(rows, _detailed(batch, picks, first).to(device))


def _detailed(batch: AnswerBatch, picks: list[list[int]], count: int) -> Tensor:
    """Tell which labels are gold answers', bool, ``(count,)``."""
    is_detailed = torch.zeros(count, dtype=torch.bool)
    for slot, pick in zip(batch.slots, picks, strict=True):
        if slot.field == "answer_loss":
            is_detailed[pick] = True
    return is_detailed


def _value(slot: Slot, logps: Tensor) -> float:
    """Return a row's value; in float64, as the sum of many float32 numbers is not one."""
    wide = logps.double()
    return float(wide.sum() if slot.field == "choice_logps" else -wide.mean())


def _plain(values: Tensor) -> Numbers:
    """Return numbers as short as they can be written without changing them."""
    if values.dtype == torch.bool:
        return Numbers(values.int().tolist())
    if values.dtype == torch.float64:
        return Numbers(values.tolist())
    return Numbers(float(f"{value:.9g}") for value in values.tolist())


def score_gradients(scorer: LabelScorer, batch: GradientBatch, device: torch.device) -> list[Score]:
    """Return the norm of each answer's gradient."""
    scores = []
    for slot, row in batch.answers:
        ids, labels = (torch.tensor([part]).to(device) for part in (row.input_ids, row.labels))
        mask = torch.ones_like(ids)
        if batch.hidden_id is not None:
            mask = (ids != batch.hidden_id).long()
            mask[:, 0] = 1
        norm = scorer.gradient_norm(ids, mask, labels, of_each=batch.of_each)
        scores.append(slot.score(norm))
    return scores
