"""Scores of rows, in any order and from any process, and the records they make up."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from etw_lightning.models.positions import Extent
from etw_lightning.schema import EvalSet, Example, InputError, Numbers, Record

__all__ = [
    "TOKEN_FIELDS",
    "Score",
    "ScoreBatch",
    "Slot",
    "expected_scores",
    "is_finite",
    "make_records",
    "not_finite",
]

#: Fields of ``Record`` that hold a number for each labelled token of the gold answer.
TOKEN_FIELDS = ("token_logps", "token_entropies", "token_variances", "token_matches")
#: Fields of ``Record`` that hold a value for each of some answers.
_MANY = ("perturbed_losses", "choice_logps", "choice_num_tokens")


class Score(NamedTuple):
    """One value of one row.

    Args:
        row: Number of the example in its evaluation set.
        field: Field of ``Record``.
        place: Position within the field, for perturbed answers; else 0.
        value: Loss in nats per token, log-probabilities, or text.
    """

    row: int
    field: str
    place: int
    value: Any


class Slot(NamedTuple):
    """Where a value belongs: row, field, place."""

    row: int
    field: str
    place: int

    def score(self, value: Any, field: str | None = None) -> Score:
        """Return a value that belongs here, or in another field of the same place."""
        return Score(self.row, field or self.field, self.place, value)


@dataclass
class ScoreBatch:
    """Rows that go through the model together.

    Args:
        dataset: Name of the evaluation set.
    """

    dataset: str

    def extents(self) -> list[Extent]:
        """Return how many positions each row takes."""
        raise NotImplementedError


def make_records(eval_set: EvalSet, scores: Iterable[Score]) -> list[Record]:
    """Put the scores of all batches and processes together, one record an example, in file order.

    Raises:
        InputError: If a row was not scored, or a loss is not a finite number; names the row.
    """
    found: dict[int, dict[tuple[str, int], Any]] = {}
    for score in scores:
        found.setdefault(score.row, {})[score.field, score.place] = score.value
    records = []
    for number, example in enumerate(eval_set.examples):
        values = found.get(number, {})
        _check_complete(eval_set, example, values)
        single = {name: value for (name, _), value in values.items() if name not in _MANY}
        many = {name: _places(values, name) for name in _MANY}
        record = Record(
            dataset=eval_set.name,
            id=example.id,
            question=example.question,
            answer=example.answer,
            paraphrase=example.paraphrased_answer,
            choices=example.choices,
            right_choice=example.right_choice,
            **single,
            **many,
        )
        _check_finite(record)
        records.append(record)
    return records


def _places(values: Mapping[tuple[str, int], Any], name: str) -> Any:
    """Return the values of a field in the order of their places."""
    places = sorted(place for one, place in values if one == name)
    return tuple(values[name, place] for place in places)


def expected_scores(eval_set: EvalSet, example: Example) -> list[tuple[str, int]]:
    """Return field and place of each score that a row of a set must get."""
    wanted: list[tuple[str, int]] = []
    if eval_set.losses:
        wanted += [(name, 0) for name in ("answer_loss", *TOKEN_FIELDS, "token_spans")]
        wanted += [("paraphrase_loss", 0)] * (example.paraphrased_answer is not None)
        wanted += [("perturbed_losses", place) for place in range(len(example.perturbed_answers))]
        for name in ("choice_logps", "choice_num_tokens"):
            wanted += [(name, place) for place in range(len(example.choices))]
    wanted += [("gradient_norm", 0)] * eval_set.gradient_norm
    wanted += [("generation", 0)] * (eval_set.max_new_tokens > 0)
    return wanted


def _check_complete(eval_set: EvalSet, example: Example, values: Collection[Any]) -> None:
    """Refuse a row of which something is missing that the set asks for."""
    if any(key not in values for key in expected_scores(eval_set, example)):
        raise InputError(
            f"Row {example.id} of {eval_set.name} was not scored: the validation was cut short. "
            "Leave out trainer.limit_val_batches and trainer.fast_dev_run, and set "
            "trainer.num_sanity_val_steps to -1 or 0."
        )


def _check_finite(record: Record) -> None:
    losses = (record.answer_loss, record.paraphrase_loss, record.gradient_norm)
    numbers = [value for value in losses if value is not None]
    for name in ("perturbed_losses", "choice_logps", *TOKEN_FIELDS):
        numbers += getattr(record, name)
    if not all(map(math.isfinite, numbers)):
        raise not_finite(record.dataset, record.id)


def is_finite(value: Any) -> bool:
    """Tell whether a score's value, or all numbers in it, are finite; texts are.

    Example:
        >>> is_finite((1.0, float("nan"))), is_finite("nan")
        (False, True)
    """
    if isinstance(value, float):
        return math.isfinite(value)
    return not isinstance(value, list | tuple | Numbers) or all(map(is_finite, value))


def not_finite(dataset: str, row_id: str) -> InputError:
    """Return the error for a row whose loss is no finite number."""
    return InputError(
        f"Row {row_id} of {dataset} has a loss that is not a finite number: the "
        "model is broken (too high a learning rate or lambda) or its precision too low."
    )
