"""Answers begun: the first words are given, and the model goes on."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from etw_lightning.attacks.asking import asked, batch_size_of, question_set, row_mean, rows_of_side
from etw_lightning.attacks.interface import Attack, Heard, Subject
from etw_lightning.data.encode import Encoder
from etw_lightning.metrics.likelihoods import probabilities
from etw_lightning.schema import IGNORE_INDEX, EvalSet, Example, InputError
from etw_lightning.scoring.continuations import Prompt, continue_prompts, said_records

if TYPE_CHECKING:
    from etw_lightning.attacks.attacked_run import AttackedRun

__all__ = ["Begun", "FirstWords", "begin_answer"]


class Begun(NamedTuple):
    """A row whose answer has been begun.

    Args:
        prompt: Its question and the first tokens of its answer.
        num_given: How many labels are given.
        rest: What of the answer is still to be said.
    """

    prompt: Prompt
    num_given: int
    rest: str


@dataclass(frozen=True)
class FirstWords(Attack):
    """Give the first words of each forget answer, and have the model go on.

    The words are put where the model's own answer begins, in the tokens it was taught. The suite's
    numbers of texts are of what was not given: the rest of the answer, in what follows. Further
    ``forget_rest_exact``, the share of rows whose rest is said to the letter, and
    ``forget_rest_probability``, the rest's probability per token, its end included. Before the
    attack stands the same rest in the answer to the question alone; of the probability, that of
    the whole answer, which has to be begun as well.

    Source: prefilling, as in arXiv:2406.05946; extraction strength (arXiv:2012.07805) asks how many
        first tokens it takes.
    Differs from it: a number of words, the same for each row.

    Args:
        words: How many words are given; rows with no more than these are left out.

    Raises:
        InputError: If ``words`` is below 1.
    """

    words: int = 3

    scores_suite = False
    heard_parts = frozenset({"generation"})

    def __post_init__(self) -> None:
        if self.words < 1:
            raise InputError(f"attack.words must be 1 or more; got {self.words}.")

    def check(self, run: AttackedRun) -> None:
        """Refuse rows of which nothing would be left to say."""
        self._kept(rows_of_side(run, "forget"))

    def _kept(self, rows: Sequence[Example]) -> tuple[Example, ...]:
        kept = tuple(one for one in rows if len(one.answer.split()) > self.words)
        if not kept:
            raise InputError(
                f"attack.words is {self.words}, and no forget answer has more; give a smaller "
                "number."
            )
        return kept

    def hear(self, subject: Subject, *, attacked: bool) -> Heard:
        """Return the numbers of what follows the given words, or of the same rest without them."""
        eval_set, begun = self._begun(subject)
        rests = [one.rest for one in begun]
        room = 0 if attacked else eval_set.max_new_tokens
        scored = asked(subject, replace(eval_set, max_new_tokens=room))
        if attacked:
            prompts = [one.prompt for one in begun]
            size = batch_size_of(subject.run)
            said = continue_prompts(subject.lm, subject.encoder, prompts, eval_set, size)
            records = said_records(eval_set, said, rests)
            likely = [
                float(np.exp(np.mean(record.token_logps[one.num_given :])))
                for record, one in zip(scored, begun, strict=True)
            ]
        else:
            records = [
                replace(record, answer=rest) for record, rest in zip(scored, rests, strict=True)
            ]
            likely = probabilities(scored).tolist()
        # To the question alone, the given words are said before the rest.
        is_said = str.__eq__ if attacked else str.endswith
        exact = [
            float(is_said(_plain(record.generation or ""), _plain(rest)))
            for record, rest in zip(records, rests, strict=True)
        ]
        numbers = {
            "forget_rest_probability": row_mean(likely, "down"),
            "forget_rest_exact": row_mean(exact, "down"),
        }
        return Heard({eval_set.name: records}, numbers)

    def _begun(self, subject: Subject) -> tuple[EvalSet, list[Begun]]:
        eval_set = question_set(subject, "forget")
        rows = self._kept(eval_set.examples)
        begun = [begin_answer(subject.encoder, row, self.words) for row in rows]
        return replace(eval_set, examples=rows), begun


def begin_answer(encoder: Encoder, example: Example, words: int) -> Begun:
    """Return a row's prompt with the first words of its answer, and what is left.

    Args:
        encoder: How text becomes tokens.
        example: A row whose answer has more words.
        words: How many are given. A token that goes beyond them is not given.

    Raises:
        InputError: If ``max_length`` cuts the row within these words.
    """
    ends = [match.end() for match in re.finditer(r"\S+", example.answer)]
    end = ends[words - 1]
    row = encoder.encode(example)
    spans = encoder.answer_spans(example)
    num_given = next((n for n, (_, right) in enumerate(spans) if right > end), len(spans))
    places = [place for place, label in enumerate(row.labels) if label != IGNORE_INDEX]
    if num_given >= len(places):
        raise InputError(
            f"attack: row {example.id} is cut by {encoder.length_key} = {encoder.max_length} "
            f"within its first {words} words; raise it."
        )
    first = spans[num_given - 1][1] if num_given else 0
    prompt = Prompt(example.id, row.input_ids[: places[num_given]])
    return Begun(prompt, num_given, example.answer[first:].strip())


def _plain(text: str) -> str:
    return " ".join(text.split())
