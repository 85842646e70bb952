"""One scoring pass over an evaluation set, giving one record an example.

Answers are scored by teacher forcing: those of an example are put into one row that feeds what they
begin with once, and rows of similar length go together. Questions are continued greedily, padded
on the left, with a key-value cache. Rows are keyed by their number in the set, so any split over
batches and processes gives the same records, but for rounding: with weights or autocast of 16 bits
the last digits depend on which rows share a batch, and so may the choice between two tokens that
are nearly as likely.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby, islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from etw_lightning.data.answer_rows import keep_prompts
from etw_lightning.data.encode import Encoder
from etw_lightning.data.stored_rows import sizes
from etw_lightning.models.generation import continue_in_turn
from etw_lightning.models.loading import LabelScorer
from etw_lightning.models.positions import Extent, check_extents
from etw_lightning.schema import EncodedRow, EvalSet, Example, InputError
from etw_lightning.scoring.answers import (
    answer_batches,
    gradient_batches,
    hidden_id,
    score_answers,
    score_gradients,
)
from etw_lightning.scoring.answers.batches import AnswerBatch
from etw_lightning.scoring.answers.gradients import GradientBatch
from etw_lightning.scoring.scores import Score, ScoreBatch, Slot, expected_scores, make_records

__all__ = [
    "AnswerBatch",
    "GenerationBatch",
    "GradientBatch",
    "Score",
    "ScoreBatch",
    "build_batches",
    "expected_scores",
    "join_generations",
    "make_records",
    "pad_rows",
    "prompt_rows",
    "score_batch",
    "score_in_turn",
]

#: Batches of questions that are continued in turn, and how few are left as they are: what is
#: broken off goes on from its last batch, or from as many rows of them.
_TOGETHER, _FEW = 8, 4


@dataclass
class GenerationBatch(ScoreBatch):
    """Questions to continue.

    Args:
        slots: What each row's text is.
        rows: The prompts of the whole set; those of a large one are read when they are asked for.
        places: Places of this batch's among them.
        pad_id: Fills the rows, on the left.
        hidden_id: Token that no position may look at, by ``Conventions.attention_mask``.
        max_new_tokens: Greedy tokens to generate.
        stop_strings: Where a generation is cut.
        end_ids: Tokens that end a generation, beside the tokenizer's and the model's own.
        at_once: Rows that go through the model together at most; None for all.
    """

    slots: list[Slot]
    rows: Sequence[EncodedRow]
    places: list[int]
    pad_id: int
    hidden_id: int | None
    max_new_tokens: int
    stop_strings: tuple[str, ...] = ()
    end_ids: frozenset[int] = frozenset()
    at_once: int | None = None

    @property
    def ids(self) -> list[str]:
        """Ids of the examples."""
        return [self.rows[place].id for place in self.places]

    @property
    def input_ids(self) -> Tensor:
        """The prompts, ``(B, T)``."""
        return self.padded()[0]

    @property
    def attention_mask(self) -> Tensor:
        """0 for padding and hidden tokens, ``(B, T)``."""
        return self.padded()[1]

    def padded(self) -> tuple[Tensor, Tensor]:
        """Return ``input_ids`` and ``attention_mask``."""
        prompts = [self.rows[place].input_ids for place in self.places]
        return prompt_rows(prompts, self.pad_id, self.hidden_id)

    def extents(self) -> list[Extent]:
        """Return how many positions each prompt and its continuation take."""
        lengths = self.attention_mask.sum(1).tolist()
        return [
            Extent(name, length, self.max_new_tokens)
            for name, length in zip(self.ids, lengths, strict=True)
        ]


def pad_rows(
    rows: Sequence[Sequence[int]], fill: int, *, left: bool = False
) -> tuple[Tensor, Tensor]:
    """Stack rows of ids to ``(B, T)``; return them with their attention mask.

    Example:
        >>> pad_rows([[5, 6], [7]], fill=0, left=True)[0]
        tensor([[5, 6],
                [0, 7]])
    """
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), fill)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for number, row in enumerate(rows):
        span = slice(width - len(row), width) if left else slice(0, len(row))
        ids[number, span] = torch.tensor(row)
        mask[number, span] = 1
    return ids, mask


def prompt_rows(
    prompts: Sequence[Sequence[int]], pad_id: int, hidden_id: int | None
) -> tuple[Tensor, Tensor]:
    """Stack prompts as ``pad_rows`` does, on the left; tokens that no position sees have mask 0."""
    ids, mask = pad_rows(prompts, pad_id, left=True)
    if hidden_id is not None:
        mask = (ids != hidden_id).long()
        # There must be something to look at.
        mask[mask.sum(1) == 0, -1] = 1
    return ids, mask


def build_batches(
    eval_set: EvalSet, encoder: Encoder, batch_size: int, rows: Sequence[int] | None = None
) -> list[ScoreBatch]:
    """Return all that is to be scored of a set, longest rows first.

    Longest first, so that a batch that does not fit in memory fails at once.

    Args:
        eval_set: The set.
        encoder: How text becomes tokens.
        batch_size: Answers or questions at a time; those of one example stay together.
        rows: Numbers of some of its examples; None for all. Scores have their places among these.

    Raises:
        InputError: If a row can't be scored: without a label, an option of a choice cut, or
            nothing to continue; names it.
    """
    batches: list[ScoreBatch] = []
    if eval_set.losses:
        batches += answer_batches(eval_set, encoder, batch_size, rows)
    if eval_set.gradient_norm:
        batches += gradient_batches(eval_set, encoder, batch_size, rows)
    if eval_set.max_new_tokens:
        batches += _generation_batches(eval_set, encoder, batch_size, rows)
    return batches


def _generation_batches(
    eval_set: EvalSet, encoder: Encoder, batch_size: int, rows: Sequence[int] | None
) -> list[ScoreBatch]:
    examples, encode = eval_set.examples, partial(_prompts, encoder, eval_set.name)
    words = f"encoding what is asked of {eval_set.name}"
    kept = keep_prompts(examples, encoder, encode, words, ("scoring.batches",))
    places = list(range(len(examples)) if rows is None else rows)
    if kept is None:
        prompts: Sequence[EncodedRow] = encode([examples[place] for place in places])
        places = list(range(len(places)))
    else:
        prompts = kept
    order = np.argsort(-sizes(prompts).num_tokens[places], kind="stable").tolist()
    batches: list[ScoreBatch] = []
    for start in range(0, len(order), batch_size):
        part = order[start : start + batch_size]
        batches.append(
            GenerationBatch(
                dataset=eval_set.name,
                slots=[Slot(number, "generation", 0) for number in part],
                rows=prompts,
                places=[places[number] for number in part],
                pad_id=encoder.pad_id,
                hidden_id=hidden_id(encoder),
                max_new_tokens=eval_set.max_new_tokens,
                stop_strings=eval_set.stop_strings,
                end_ids=encoder.end_ids,
            )
        )
    return batches


def _prompts(encoder: Encoder, name: str, examples: Sequence[Example]) -> list[EncodedRow]:
    """Return the prompts of some examples, as rows without labels."""
    found = []
    for example in examples:
        prompt = tuple(encoder.encode_prompt(example))
        if not prompt:
            raise InputError(
                f"Row {example.id} of {name} can't be continued: its prompt is empty and "
                "the tokenizer puts no begin token before it. Remove the row."
            )
        found.append(EncodedRow(example.id, prompt, ()))
    return found


def join_generations(batches: Sequence[ScoreBatch]) -> list[ScoreBatch]:
    """Put batches of questions of one set that follow one another together, some at a time.

    As many rows as before go through the model at once; rows of the next batch take the places of
    those that have ended, where a batch alone would have few left.
    """
    joined: list[ScoreBatch] = []
    for _, group in groupby(batches, lambda one: (one.dataset, isinstance(one, GenerationBatch))):
        some = list(group)
        asked = [batch for batch in some if isinstance(batch, GenerationBatch)]
        if len(asked) <= _FEW:
            joined += some
            continue
        starts = range(0, len(asked), _TOGETHER)
        joined += [_joined(asked[start : start + _TOGETHER]) for start in starts]
    return joined


def _joined(batches: Sequence[GenerationBatch]) -> GenerationBatch:
    """Put batches of questions together."""
    return replace(
        batches[0],
        slots=[slot for batch in batches for slot in batch.slots],
        places=[place for batch in batches for place in batch.places],
        at_once=len(batches[0].slots),
    )


def score_batch(scorer: LabelScorer, batch: ScoreBatch, tokenizer: Any) -> list[Score]:
    """Run the model on one batch and return its scores.

    Raises:
        InputError: If a row is longer than the model takes.
    """
    return [score for some in score_in_turn(scorer, batch, tokenizer) for score in some]


@torch.no_grad()
def score_in_turn(scorer: LabelScorer, batch: ScoreBatch, tokenizer: Any) -> Iterator[list[Score]]:
    """Give the scores of a batch as they are found, those of some rows at a time.

    Raises:
        InputError: As ``score_batch``.
    """
    check_extents(scorer.limits, type(scorer.lm).__name__, batch.extents())
    device = next(scorer.parameters()).device
    if isinstance(batch, AnswerBatch):
        yield score_answers(scorer, batch, device)
        return
    if isinstance(batch, GradientBatch):
        yield score_gradients(scorer, batch, device)
        return
    assert isinstance(batch, GenerationBatch)
    ids, mask = batch.padded()
    ending = continue_in_turn(
        scorer.lm,
        ids.to(device),
        mask.to(device),
        tokenizer,
        batch.max_new_tokens,
        batch.stop_strings,
        batch.end_ids,
        batch.at_once,
    )
    scores = (batch.slots[row].score(text) for row, text in ending)
    while some := list(islice(scores, batch.at_once)):
        yield some
