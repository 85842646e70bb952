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
from itertools import groupby, islice
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from etw_lightning.data.encode import Encoder
from etw_lightning.models.generation import continue_in_turn
from etw_lightning.models.loading import LabelScorer
from etw_lightning.models.positions import Extent, check_extents
from etw_lightning.schema import EvalSet, InputError
from etw_lightning.scoring.answers import (
    AnswerBatch,
    GradientBatch,
    answer_batches,
    gradient_batches,
    score_answers,
    score_gradients,
)
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
        input_ids: ``(B, T)``, padded on the left.
        attention_mask: 0 for padding and hidden tokens, ``(B, T)``.
        ids: Id of each row's example.
        max_new_tokens: Greedy tokens to generate.
        stop_strings: Where a generation is cut.
        end_ids: Tokens that end a generation, beside the tokenizer's and the model's own.
        at_once: Rows that go through the model together at most; None for all.
    """

    slots: list[Slot]
    input_ids: Tensor
    attention_mask: Tensor
    ids: list[str]
    max_new_tokens: int
    stop_strings: tuple[str, ...] = ()
    end_ids: frozenset[int] = frozenset()
    at_once: int | None = None

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


def prompt_rows(prompts: Sequence[Sequence[int]], encoder: Encoder) -> tuple[Tensor, Tensor]:
    """Stack prompts as ``pad_rows`` does, on the left; tokens that no position sees have mask 0."""
    ids, mask = pad_rows(prompts, encoder.pad_id, left=True)
    if encoder.conventions.attention_mask == "token_id":
        mask = (ids != encoder.pad_id).long()
        # There must be something to look at.
        mask[mask.sum(1) == 0, -1] = 1
    return ids, mask


def build_batches(eval_set: EvalSet, encoder: Encoder, batch_size: int) -> list[ScoreBatch]:
    """Return all that is to be scored of a set, longest rows first.

    Longest first, so that a batch that does not fit in memory fails at once.

    Args:
        eval_set: The set.
        encoder: How text becomes tokens.
        batch_size: Answers or questions at a time; those of one example stay together.

    Raises:
        InputError: If a row can't be scored: without a label, an option of a choice cut, or
            nothing to continue; names it.
    """
    batches: list[ScoreBatch] = []
    if eval_set.losses:
        batches += answer_batches(eval_set, encoder, batch_size)
    if eval_set.gradient_norm:
        batches += gradient_batches(eval_set, encoder, batch_size)
    if eval_set.max_new_tokens:
        batches += _generation_batches(eval_set, encoder, batch_size)
    return batches


def _generation_batches(eval_set: EvalSet, encoder: Encoder, batch_size: int) -> list[ScoreBatch]:
    prompts = [encoder.encode_prompt(example) for example in eval_set.examples]
    for example, prompt in zip(eval_set.examples, prompts, strict=True):
        if not prompt:
            raise InputError(
                f"Row {example.id} of {eval_set.name} can't be continued: its prompt is empty and "
                "the tokenizer puts no begin token before it. Remove the row."
            )
    order = sorted(range(len(prompts)), key=lambda number: -len(prompts[number]))
    batches: list[ScoreBatch] = []
    for start in range(0, len(order), batch_size):
        part = order[start : start + batch_size]
        ids, mask = prompt_rows([prompts[number] for number in part], encoder)
        batches.append(
            GenerationBatch(
                dataset=eval_set.name,
                slots=[Slot(number, "generation", 0) for number in part],
                input_ids=ids,
                attention_mask=mask,
                ids=[eval_set.examples[number].id for number in part],
                max_new_tokens=eval_set.max_new_tokens,
                stop_strings=eval_set.stop_strings,
                end_ids=encoder.end_ids,
            )
        )
    return batches


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
    first, width = batches[0], max(batch.input_ids.shape[1] for batch in batches)
    left = [(width - batch.input_ids.shape[1], 0) for batch in batches]
    pairs = list(zip(batches, left, strict=True))
    return replace(
        first,
        slots=[slot for batch in batches for slot in batch.slots],
        # What fills up is not looked at; it must be a token of the model.
        input_ids=torch.cat([pad(batch.input_ids, more) for batch, more in pairs]),
        attention_mask=torch.cat([pad(batch.attention_mask, more) for batch, more in pairs]),
        ids=[name for batch in batches for name in batch.ids],
        at_once=len(first.slots),
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
    ending = continue_in_turn(
        scorer.lm,
        batch.input_ids.to(device),
        batch.attention_mask.to(device),
        tokenizer,
        batch.max_new_tokens,
        batch.stop_strings,
        batch.end_ids,
        batch.at_once,
    )
    scores = (batch.slots[row].score(text) for row, text in ending)
    while some := list(islice(scores, batch.at_once)):
        yield some
