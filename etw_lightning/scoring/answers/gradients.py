"""Gold answers whose losses' gradients are measured, one by one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, overload

import numpy as np
import torch

from etw_lightning.data.answer_rows import AnswerRow, numbers_of
from etw_lightning.data.encode import Encoder
from etw_lightning.models.loading import LabelScorer
from etw_lightning.models.positions import Extent
from etw_lightning.schema import IGNORE_INDEX, EncodedRow, EvalSet
from etw_lightning.scoring.answers.rows import Answer, hidden_id, kept_answers, last_label
from etw_lightning.scoring.scores import Score, ScoreBatch, Slot

__all__ = ["GradientBatch", "gradient_batches", "score_gradients"]


@dataclass
class GradientBatch(ScoreBatch):
    """Gold answers the gradients of whose losses are measured, one by one.

    Args:
        answers: The rows; those of a large set are read when they are asked for.
        hidden_id: As of ``AnswerBatch``.
        of_each: As of ``LabelScorer.gradient_norm``.
    """

    answers: Sequence[Answer]
    hidden_id: int | None
    of_each: bool

    @property
    def slots(self) -> list[Slot]:
        """What is scored."""
        return [answer.slot for answer in self.answers]

    def extents(self) -> list[Extent]:
        """Return how many positions each answer takes."""
        return [Extent(answer.row.id, len(answer.row.input_ids)) for answer in self.answers]


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


class _Gradients(Sequence[Answer]):
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
    def __getitem__(self, place: int) -> Answer: ...

    @overload
    def __getitem__(self, place: slice) -> list[Answer]: ...

    def __getitem__(self, place: int | slice) -> Any:
        if isinstance(place, slice):
            return [self[one] for one in range(len(self))[place]]
        number = self._numbers[place]
        row = self._row_of(number)
        if self._drops_last and row.num_labels > 1:
            last = last_label(row)
            labels = (*row.labels[:last], *[IGNORE_INDEX] * (len(row.labels) - last))
            row = EncodedRow(row.id, row.input_ids, labels)
        return Answer(Slot(number, "gradient_norm", 0), row)


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
