"""Hints in the prompt: other facts of the same subject, and options to choose from."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

from etw_lightning.attacks.asking import asked, question_set, row_mean, rows_of_side, with_questions
from etw_lightning.attacks.interface import Attack, Heard, Subject
from etw_lightning.metrics import choice_accuracy
from etw_lightning.metrics.sanity import refusal_values
from etw_lightning.schema import Example, InputError, Turn

if TYPE_CHECKING:
    from etw_lightning.attacks.attacked_run import AttackedRun

__all__ = ["Options", "SameSubject"]


@dataclass(frozen=True)
class SameSubject(Attack):
    """Put questions and answers about the same subject before each forget question.

    The suite's numbers of the forget rows and ``forget_refusals`` are with these facts before the
    question; before the attack, without. They name the subject and often say in which pattern
    answers are made, which helps any model: compare with the retain model's.

    Source: relearning in context, among the tests of arXiv:2402.16835.
    Differs from it: the facts are other rows of the forget set.

    Args:
        facts: How many other rows are shown, at most.
        rows_per_subject: As many rows in a row of the set are about one subject: 20 in TOFU, 8 in
            the quickstart. null takes rows whose question names the same person or thing, by
            capital letters.

    Raises:
        InputError: If a number is below 1.
    """

    facts: int = 3
    rows_per_subject: int | None = None

    scores_suite = False

    def __post_init__(self) -> None:
        if self.facts < 1:
            raise InputError(f"attack.facts must be 1 or more; got {self.facts}.")
        if self.rows_per_subject is not None and self.rows_per_subject < 2:
            raise InputError(
                f"attack.rows_per_subject must be 2 or more, or null; got {self.rows_per_subject}."
            )

    def check(self, run: AttackedRun) -> None:
        """Refuse rows of which none shares its subject with another."""
        self._with_facts(rows_of_side(run, "forget", is_open=True), is_plain=False)

    def hear(self, subject: Subject, *, attacked: bool) -> Heard:
        """Return what is said with the facts in front, or without them."""
        eval_set = question_set(subject, "forget")
        is_plain = subject.encoder.template == "plain"
        rows = self._with_facts(eval_set.examples, is_plain=is_plain)
        kept = {row.id for row in rows}
        if not attacked:
            rows = [one for one in eval_set.examples if one.id in kept]
        said = asked(subject, replace(eval_set, examples=tuple(rows)))
        records = with_questions(said, eval_set.examples)
        refused = row_mean(refusal_values(records), "none")
        return Heard({eval_set.name: records}, {"forget_refusals": refused})

    def _with_facts(self, rows: Sequence[Example], *, is_plain: bool) -> list[Example]:
        """Return the rows that share their subject with others, with facts before the question."""
        groups = self._groups(rows)
        found = []
        for number, (row, group) in enumerate(zip(rows, groups, strict=True)):
            others = [rows[n] for n in group if n != number][: self.facts]
            if others:
                found.append(_told(row, others, is_plain=is_plain))
        if not found:
            raise InputError(
                "attack.rows_per_subject: no two forget rows name the same subject in their "
                "questions; say how many rows in a row are about one, such as 20."
            )
        return found

    def _groups(self, rows: Sequence[Example]) -> list[list[int]]:
        """Return the rows about the subject of each row, its own among them."""
        if self.rows_per_subject is not None:
            size = self.rows_per_subject
            starts = [number - number % size for number in range(len(rows))]
            return [list(range(start, min(start + size, len(rows)))) for start in starts]
        named = [_names(row.question or "") for row in rows]
        return [[number for number, theirs in enumerate(named) if mine & theirs] for mine in named]


_WORD = re.compile(r"[^\W\d_][\w'\u2019-]*")


def _names(question: str) -> frozenset[str]:
    """Return the pairs of neighbours in a question that both begin with a capital letter.

    Pairs, because a sentence's first word may stand before a name.

    Example:
        >>> sorted(_names("Did Mara Venn's father live in New Quillmere?"))
        ['Did Mara', 'Mara Venn', 'New Quillmere']
    """
    words = list(_WORD.finditer(question))
    return frozenset(
        " ".join(re.sub(r"['\u2019]s$", "", one.group()) for one in (first, second))
        for first, second in pairwise(words)
        if first.group()[0].isupper()
        and second.group()[0].isupper()
        and question[first.end() : second.start()].isspace()
    )


def _told(row: Example, others: Sequence[Example], *, is_plain: bool) -> Example:
    """Return a row with others' questions and answers before its own."""
    if is_plain:
        # What the plain template makes of several questions and answers.
        said = [f"{one.question}\nAnswer: {one.answer}\n\nQuestion: " for one in others]
        return replace(row, question="".join(said) + (row.question or ""))
    turns = tuple(
        Turn(role, text)
        for one in others
        for role, text in (("user", one.question or ""), ("assistant", one.answer))
    )
    return replace(row, turns=(*row.turns, *turns))


@dataclass(frozen=True)
class Options(Attack):
    """Offer answers to choose from, the right one among them.

    Wrong ones are the row's own wrong answers (TOFU's perturbed ones), then answers of other forget
    rows. ``forget_choice_accuracy`` is the share of rows whose right answer is the likeliest of the
    options, per token, with the options written into the question; before the attack, without. The
    suite's numbers of the forget rows are of the same questions: the model can now copy.

    Source: choice questions, as WMDP's (arXiv:2403.03218).
    Differs from it: all of an option is compared, not its letter.

    Args:
        options: How many are offered, the right one included; from 2 to 26.

    Raises:
        InputError: If ``options`` is out of range.
    """

    options: int = 4

    scores_suite = False

    def __post_init__(self) -> None:
        if not 2 <= self.options <= 26:
            raise InputError(f"attack.options must be from 2 to 26; got {self.options}.")

    def check(self, run: AttackedRun) -> None:
        """Refuse data with fewer different answers than are to be offered."""
        self._offered(rows_of_side(run, "forget", is_open=True), 0)

    def hear(self, subject: Subject, *, attacked: bool) -> Heard:
        """Return what is said with the options in the question, or to the question alone."""
        eval_set = question_set(subject, "forget")
        rows = self._offered(eval_set.examples, subject.run.seed)
        if attacked:
            rows = [replace(one, question=_listed(one)) for one in rows]
        said = asked(subject, replace(eval_set, examples=tuple(rows)))
        records = with_questions(said, eval_set.examples)
        accuracy = choice_accuracy(records, "tokens", "down")
        return Heard({eval_set.name: records}, {"forget_choice_accuracy": accuracy})

    def _offered(self, rows: Sequence[Example], seed: int) -> list[Example]:
        """Return the rows with their options, in an order drawn from seed and id."""
        found = []
        for row in rows:
            rng = random.Random(f"{seed}\n{row.id}")
            answers = dict.fromkeys(one.answer for one in rows)
            others = rng.sample(list(answers), len(answers))
            every = dict.fromkeys((*row.perturbed_answers, *others))
            wrong = [one for one in every if one != row.answer][: self.options - 1]
            if len(wrong) < self.options - 1:
                raise InputError(
                    f"attack.options is {self.options}, and row {row.id} has {len(wrong)} wrong "
                    f"answers, those of other rows included; give {len(wrong) + 1} or less."
                )
            place = rng.randrange(self.options)
            choices = (*wrong[:place], row.answer, *wrong[place:])
            found.append(replace(row, choices=choices, right_choice=place))
        return found


def _listed(row: Example) -> str:
    """Return a row's question with its options, each behind a letter."""
    lines = [f"{chr(ord('A') + place)}. {text}" for place, text in enumerate(row.choices)]
    return "\n".join([row.question or "", *lines])
