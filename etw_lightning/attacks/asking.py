"""What attacks by questions share: whose questions, what a model says of rows, numbers by row."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, cast

import numpy as np

from etw_lightning.metrics import Metric
from etw_lightning.metrics.repeated import refusal_agreement, refusal_stability, row_interval
from etw_lightning.metrics.text import rouge_values
from etw_lightning.metrics.values import Direction, Floats, mean_of
from etw_lightning.metrics.words import WordRule
from etw_lightning.models.loading import LabelScorer
from etw_lightning.schema import EvalSet, Example, InputError, Record
from etw_lightning.scoring.batches import build_batches, make_records, score_batch

if TYPE_CHECKING:
    from etw_lightning.attacks.attacked_run import AttackedRun
    from etw_lightning.attacks.interface import Subject

__all__ = [
    "Side",
    "asked",
    "batch_size_of",
    "check_questions",
    "question_set",
    "recalls",
    "refusal_constancy",
    "row_mean",
    "rows_of_side",
    "side_name",
    "with_questions",
    "words_of",
]

#: Rows that should be forgotten, or kept.
Side = Literal["forget", "retain"]


def side_name(names: Collection[str], side: Side) -> str:
    """Return which set holds the questions of a side: ``forget``, or MUSE's ``knowmem_forget``.

    Raises:
        InputError: If there is none.

    Example:
        >>> side_name(["verbmem", "knowmem_forget"], "forget")
        'knowmem_forget'
    """
    for name in (side, f"knowmem_{side}"):
        if name in names:
            return name
    raise InputError(
        f"attack: this run's data has no questions of the {side} set, which this asks; it has "
        f"{', '.join(names)}."
    )


def rows_of_side(run: AttackedRun, side: Side, *, is_open: bool = False) -> tuple[Example, ...]:
    """Return the rows of a side as the benchmark has them, before any model is loaded.

    Args:
        run: The run.
        side: Which rows.
        is_open: Their questions are to be changed, which a finished prompt can't be.

    Raises:
        InputError: If there are none, they are no questions, or finished prompts.
    """
    rows = run.examples(side_name(run.data().offered_sets, side))
    check_questions(side, rows)
    done = next((one.id for one in rows if one.verbatim), None)
    if is_open and done is not None:
        raise InputError(
            f"attack: the question of row {done} is a finished prompt, which can't be put in other "
            "words or beside others; sample and first_words take such rows."
        )
    return rows


def question_set(subject: Subject, side: Side) -> EvalSet:
    """Return the set that holds the questions of a side.

    Raises:
        InputError: If there is none, its rows are no questions, or nothing is generated of them.
    """
    found = subject.sets[side_name(subject.sets, side)]
    check_questions(found.name, found.examples)
    if not found.max_new_tokens:
        raise InputError(
            f"attack: nothing is generated of {found.name!r}; give --data.max_new_tokens, such as "
            "40."
        )
    return replace(found, losses=True, gradient_norm=False)


def check_questions(name: str, rows: Sequence[Example]) -> None:
    """Refuse rows that can't be asked.

    Args:
        name: Their set, for the error.
        rows: The rows.

    Raises:
        InputError: If one is raw text.
    """
    raw = next((one.id for one in rows if one.question is None), None)
    if raw is not None:
        raise InputError(
            f"attack: row {raw} of {name!r} is raw text, which has no question that could be "
            "asked; attacks on weights (relearn, merge, prune) take such rows."
        )


def batch_size_of(run: AttackedRun) -> int:
    """Return how many rows the run scores together."""
    return int(run.data_settings.get("eval_batch_size") or 32)


def words_of(run: AttackedRun) -> WordRule:
    """Return what counts as a word of a generated text in the run."""
    return cast(WordRule, run.data_settings.get("rouge_tokenizer") or "published")


def asked(subject: Subject, eval_set: EvalSet) -> list[Record]:
    """Return what a model says of rows: the likelihood of their answers, and its own.

    Neither paraphrased nor wrong answers are scored, which no attack reads.

    Args:
        subject: The model.
        eval_set: The rows, as they are asked.
    """
    rows = [
        replace(one, paraphrased_answer=None, perturbed_answers=()) for one in eval_set.examples
    ]
    eval_set = replace(eval_set, examples=tuple(rows))
    scorer = LabelScorer(subject.lm).eval()
    scorer.check_head(continues=eval_set.max_new_tokens > 0)
    batches = build_batches(eval_set, subject.encoder, batch_size_of(subject.run))
    scores = [one for batch in batches for one in score_batch(scorer, batch, subject.tokenizer)]
    return make_records(eval_set, scores)


def with_questions(records: Sequence[Record], rows: Sequence[Example]) -> list[Record]:
    """Return records with the questions that rows have without the attack.

    What is counted as said is not what the question holds: with other facts or the right option in
    it nothing would be left to count.

    Args:
        records: Of some of the rows.
        rows: The rows as the benchmark has them.
    """
    questions = {one.id: one.question for one in rows}
    return [replace(record, question=questions[record.id]) for record in records]


def recalls(records: Sequence[Record], run: AttackedRun) -> Floats:
    """Return the ROUGE-L recall of each generation against its answer, ``(B,)``."""
    return rouge_values(records, "rougeL_recall", words=words_of(run))


def row_mean(values: Sequence[float] | Floats, direction: Direction) -> Metric:
    """Return the mean over rows with its bootstrap interval."""
    wide = np.asarray(values, dtype=np.float64)
    return Metric(mean_of(wide), direction, len(wide), row_interval(wide))


def refusal_constancy(side: Side, records: Sequence[Record]) -> dict[str, Metric]:
    """Return how constant refusals are over several generations of each row, by number's name.

    Args:
        side: Whose rows they are.
        records: Generations, those of a row with one id.
    """
    return {
        f"{side}_refusal_stability": refusal_stability(records),
        f"{side}_refusal_agreement": refusal_agreement(records),
    }
