"""Answers of an evaluation set as batches, and what a model says of them.

All answers of an example go into one row, which feeds what they begin with once; rows of similar
length go together.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from etw_lightning.data.encode import Encoder
from etw_lightning.kernels.head import LinearStatistics
from etw_lightning.models.loading import LabelScorer
from etw_lightning.models.packed_attention import moved
from etw_lightning.models.packing import PrefixTree, pack_rows, prefix_tree
from etw_lightning.models.positions import Extent
from etw_lightning.models.step_layout import cost_of_a_part, pack
from etw_lightning.schema import IGNORE_INDEX, EncodedRow, EvalSet, Example, InputError
from etw_lightning.scoring.scores import TOKEN_FIELDS, Score, ScoreBatch, Slot

__all__ = [
    "AnswerBatch",
    "GradientBatch",
    "answer_batches",
    "answers_of",
    "gradient_batches",
    "score_answers",
    "score_gradients",
]

#: Tokens of a row above which the answers of an example go into rows of their own: attention in
#: a row costs its length squared.
_MAX_WIDTH = 2048
#: Examples whose texts go through the tokenizer together.
_TOGETHER = 128


class _Answer(NamedTuple):
    """A labelled row and where its value belongs."""

    slot: Slot
    row: EncodedRow


@dataclass
class AnswerBatch(ScoreBatch):
    """Answers to score.

    Args:
        groups: Answers that share a row: of one example, its gold answer first if there.
        pad_id: Fills the rows.
        hidden_id: Token that no position may look at, by ``Conventions.attention_mask``.
        known: Scores that need no model, such as where tokens lie in their answer.
    """

    groups: list[list[_Answer]]
    pad_id: int
    hidden_id: int | None = None
    known: list[Score] = field(default_factory=list)

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
        answers: The rows.
        hidden_id: As of ``AnswerBatch``.
        of_each: As of ``LabelScorer.gradient_norm``.
    """

    answers: list[_Answer]
    hidden_id: int | None
    of_each: bool

    @property
    def slots(self) -> list[Slot]:
        """What is scored."""
        return [answer.slot for answer in self.answers]

    def extents(self) -> list[Extent]:
        """Return how many positions each answer takes."""
        return [Extent(answer.row.id, len(answer.row.input_ids)) for answer in self.answers]


def answer_batches(eval_set: EvalSet, encoder: Encoder, batch_size: int) -> list[ScoreBatch]:
    """Return the answers of a set, about ``batch_size`` at a time, longest rows first.

    More of them where they share rows, as long as no more tokens are fed than ``batch_size`` of
    the longest answers have.

    Raises:
        InputError: If an answer has no label, or an option of a choice is cut.
    """
    groups: list[tuple[PrefixTree, list[_Answer]]] = []
    known: dict[Slot, list[Score]] = {}
    for answers in _laid_out(eval_set, encoder, known):
        tree = prefix_tree([answer.row for answer in answers])
        if len(tree.ids) <= _MAX_WIDTH or tree.is_chain:
            groups.append((tree, answers))
        else:
            groups += [(prefix_tree([answer.row]), [answer]) for answer in answers]
    # Rows that branch need a mask of their own, which the others are not to pay for.
    groups.sort(key=lambda group: (group[0].is_chain, -len(group[0].ids)))
    if not groups:
        return []
    parts: list[_Part] = []
    # What as many of the longest answers would take is not too much for rows of several, either.
    longest = max(_last_label(one.row) for _, group in groups for one in group)
    for tree, answers in groups:
        if not parts or not parts[-1].takes(tree, answers):
            parts.append(_Part(tree, batch_size, batch_size * longest))
        parts[-1].add(answers)
    return [
        AnswerBatch(
            dataset=eval_set.name,
            groups=part.groups,
            pad_id=encoder.pad_id,
            hidden_id=_hidden_id(encoder),
            known=[score for group in part.groups for one in group for score in known[one.slot]],
        )
        for part in parts
    ]


class _Part:
    """Rows that are to make a batch.

    Args:
        tree: The first of them and the longest, to which all others are padded.
        answers_left: How many answers there is room for.
        tokens_left: How many tokens, for rows that branch.
    """

    def __init__(self, tree: PrefixTree, answers_left: int, tokens_left: int) -> None:
        self.groups: list[list[_Answer]] = []
        self.width, self.is_chain = len(tree.ids), tree.is_chain
        self.answers_left, self.tokens_left = answers_left, tokens_left

    def takes(self, tree: PrefixTree, answers: list[_Answer]) -> bool:
        """Tell whether a row is of the same kind and there is room for it."""
        has_room = len(answers) <= self.answers_left or (
            not tree.is_chain and self.width <= self.tokens_left
        )
        return has_room and tree.is_chain == self.is_chain

    def add(self, answers: list[_Answer]) -> None:
        """Put a row in."""
        self.groups.append(answers)
        self.answers_left -= len(answers)
        self.tokens_left -= self.width


def _laid_out(
    eval_set: EvalSet, encoder: Encoder, known: dict[Slot, list[Score]]
) -> Iterator[list[_Answer]]:
    """Give the rows of each example; ``known`` comes to hold what needs no model."""
    for start in range(0, len(eval_set.examples), _TOGETHER):
        some = list(enumerate(eval_set.examples[start : start + _TOGETHER], start))
        pairs = [(example, text) for _, example in some for _, _, text in answers_of(example)]
        with encoder.ahead(pairs):
            for number, example in some:
                answers = _answers(number, example, encoder)
                known |= {answer.slot: _known(answer, example, encoder) for answer in answers}
                yield answers


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


def _known(answer: _Answer, example: Example, encoder: Encoder) -> list[Score]:
    """Return what can be said of an answer without a model."""
    slot, row = answer
    if slot.field == "answer_loss":
        spans = tuple(encoder.answer_spans(example))
        text = encoder.scored_text(example)
        return [slot.score(spans, "token_spans"), slot.score(text, "scored_text")]
    if slot.field == "choice_logps":
        return [slot.score(row.num_labels, "choice_num_tokens")]
    return []


def _last_label(row: EncodedRow) -> int:
    return max(place for place, label in enumerate(row.labels) if label != IGNORE_INDEX)


def _hidden_id(encoder: Encoder) -> int | None:
    return encoder.pad_id if encoder.conventions.attention_mask == "token_id" else None


def gradient_batches(eval_set: EvalSet, encoder: Encoder, batch_size: int) -> list[ScoreBatch]:
    """Return the gold answers of a set for ``score_gradients``, longest first."""
    conventions = encoder.conventions
    answers = []
    for number, example in enumerate(eval_set.examples):
        row = encoder.encode(example)
        if conventions.last_label == "left_out" and row.num_labels > 1:
            last = _last_label(row)
            labels = (*row.labels[:last], *[IGNORE_INDEX] * (len(row.labels) - last))
            row = EncodedRow(row.id, row.input_ids, labels)
        answers.append(_Answer(Slot(number, "gradient_norm", 0), row))
    answers.sort(key=lambda answer: -len(answer.row.input_ids))
    return [
        GradientBatch(
            dataset=eval_set.name,
            answers=answers[start : start + batch_size],
            hidden_id=_hidden_id(encoder),
            of_each=conventions.gradient_norm == "tensor_mean",
        )
        for start in range(0, len(answers), batch_size)
    ]


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


def _plain(values: Tensor) -> tuple[float, ...]:
    """Return numbers as short as they can be written without changing them."""
    if values.dtype == torch.bool:
        return tuple(values.int().tolist())
    if values.dtype == torch.float64:
        return tuple(values.tolist())
    return tuple(float(f"{value:.9g}") for value in values.tolist())


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
