"""Choice tests: questions with options, of which one is right, for evaluation only."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, NamedTuple, get_args

from etw_lightning.benchmarks.source import Source, check_limits, check_name, check_names, fields
from etw_lightning.benchmarks.source import field as text_of
from etw_lightning.schema import EvalSet, Example, InputError

__all__ = ["LETTERS", "TESTS", "Choice", "ChoicePrompt", "Form", "choice_prompt"]

#: How options are scored: by their letter, all of them shown in the prompt; or by their text.
Form = Literal["letter", "text"]

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


class _Test(NamedTuple):
    """A published test: its file below a folder, where the hub has it, and what it is about."""

    file: str
    hub: str
    hub_name: str
    subject: str | None


#: Published tests by the name of their evaluation set.
TESTS: Mapping[str, _Test] = {
    "wmdp_bio": _Test("wmdp/bio", "cais/wmdp", "wmdp-bio/test", "biology"),
    "wmdp_chem": _Test("wmdp/chem", "cais/wmdp", "wmdp-chem/test", "chemistry"),
    "wmdp_cyber": _Test("wmdp/cyber", "cais/wmdp", "wmdp-cyber/test", "cybersecurity"),
    "mmlu": _Test("mmlu/test", "cais/mmlu", "all/test", None),
}

#: Rows that MMLU shows with their answers before a question of the same subject.
_MMLU_DEV = _Test("mmlu/dev", "cais/mmlu", "all/dev", None)

_HEADS: Mapping[Form, str] = {
    "letter": "The following are multiple choice questions (with answers) about {}.\n\n",
    "text": "The following are questions (with answers) about {}.\n\n",
}


@dataclass(frozen=True)
class ChoicePrompt:
    """How a choice question is put to the model.

    Args:
        form: ``letter`` shows all options and scores their letters, as WMDP and MMLU do; ``text``
            shows none and scores the text of each.
        mmlu_shots: Rows of MMLU's dev split of the same subject shown before each question of
            ``mmlu``, 0 to 5; the usual setting is 5. The other tests have no such rows.
    """

    form: Form = "letter"
    mmlu_shots: int = 0

    def __post_init__(self) -> None:
        check_name("data.choice_prompt.form", self.form, get_args(Form))
        if not 0 <= self.mmlu_shots <= 5:
            raise InputError(
                f"data.choice_prompt.mmlu_shots must be from 0 to 5; got {self.mmlu_shots}."
            )


def choice_prompt(
    question: str,
    choices: Collection[str],
    *,
    subject: str | None = None,
    form: Form = "letter",
    shots: Collection[str] = (),
) -> str:
    r"""Return the finished prompt of a choice question; an option continues it.

    Args:
        question: The question; outer spaces are dropped.
        choices: All options, in order.
        subject: What the head line names; None for no head line.
        form: ``letter`` or ``text``.
        shots: Finished prompts without a head line, each with its right option, shown first.

    Example:
        >>> print(choice_prompt("1 + 1?", ["2", "3"], subject="sums"))
        The following are multiple choice questions (with answers) about sums.
        <BLANKLINE>
        1 + 1?
        A. 2
        B. 3
        Answer:
        >>> choice_prompt("1 + 1?", ["2", "3"], form="text")
        'Question: 1 + 1?\nAnswer:'
    """
    head = "" if subject is None else _HEADS[form].format(subject)
    if form == "letter":
        lines = [f"{letter}. {text}" for letter, text in zip(LETTERS, choices, strict=False)]
        block = "\n".join([question.strip(), *lines, "Answer:"])
    else:
        block = f"Question: {question.strip()}\nAnswer:"
    return head + "\n\n".join([*shots, block])


@dataclass(frozen=True)
class Choice:
    """Reads choice tests: WMDP, MMLU, or the user's own files of question, choices and answer.

    ``answer`` is the place of the right option from 0, or its letter. A column ``subject`` is
    named in the head line of the prompt.

    Source: WMDP, Li et al. 2024, arXiv:2403.03218; MMLU, Hendrycks et al. 2020, arXiv:2009.03300;
    rows as in ``cais/wmdp`` and ``cais/mmlu`` on the hub; prompts, the letters as options and the
    first dev rows as shots as in lm-evaluation-harness 0.4.13 (``wmdp_*``, ``mmlu``; the form
    ``text`` as in ``mmlu_continuation``).
    Differs from it: ``mmlu`` is one set over all subjects. Its accuracy is that harness's mean
    over subjects weighted by their size.

    Args:
        source: Where the files are, ``wmdp/bio.jsonl``, ``mmlu/test.jsonl``, ``mmlu/dev.jsonl``
            in a folder; without one, the hub for published tests.
        forget_split: Tests of what must go, accuracy down: names of ``TESTS`` or files, several
            joined by ``+``.
        retain_split: Tests of what must stay, accuracy up; the same. Empty for none.
        prompt: How questions are put.
    """

    source: Source = field(default_factory=Source)
    forget_split: str = "wmdp_bio+wmdp_chem+wmdp_cyber"
    retain_split: str = ""
    prompt: ChoicePrompt = ChoicePrompt()

    name: ClassVar[str] = "choice"

    def __post_init__(self) -> None:
        if not self.forget_split:
            raise InputError(
                f"data.forget_split must name tests, some of {', '.join(TESTS)}, or files of "
                "questions; got ''."
            )
        splits, names = self.split_names, self.EVAL_SETS
        twice = [split for split, name in zip(splits, names, strict=True) if names.count(name) > 1]
        if twice:
            raise InputError(
                f"data.forget_split and data.retain_split: {' and '.join(twice)} would both be "
                f"the set {_set_name(twice[0])!r}; name each test once, or rename a file."
            )
        check_limits(self.source.limits, splits)

    @property
    def split_names(self) -> tuple[str, ...]:
        """The tests as the user names them, those of what must go first."""
        splits = f"{self.forget_split}+{self.retain_split}" if self.retain_split else None
        return tuple((splits or self.forget_split).split("+"))

    @property
    def EVAL_SETS(self) -> tuple[str, ...]:  # noqa: N802
        """Name of the set of each test: its own, or the file's in letters, digits and ``_``."""
        return tuple(_set_name(split) for split in self.split_names)

    @property
    def forget_sets(self) -> tuple[str, ...]:
        """Sets on which accuracy should fall; on the others it should stay."""
        return tuple(_set_name(split) for split in self.forget_split.split("+"))

    def examples(self, split: str, key: str = "data.forget_split") -> list[Example]:
        """Refuse: there is nothing to train on.

        Raises:
            InputError: Always; says what to do.
        """
        raise InputError(
            f"{key} is {split!r} of data.benchmark choice, which holds questions to score and no "
            "rows to train on; run evaluate instead of fit, or choose another data.benchmark."
        )

    def eval_sets(self, names: Collection[str] | None = None) -> dict[str, EvalSet]:
        """Return the evaluation sets: log-probabilities of all options of every question.

        Args:
            names: Some of ``EVAL_SETS``; None for all.

        Raises:
            InputError: If there is no such set, or a row lacks options, has another number of
                them than the first, or an answer that is none of them.
        """
        check_names("data.eval_sets", names or (), self.EVAL_SETS)
        splits = dict(zip(self.EVAL_SETS, self.split_names, strict=True))
        return {
            name: EvalSet(name, self._read(split, name))
            for name, split in splits.items()
            if names is None or name in names
        }

    def _read(self, split: str, name: str) -> tuple[Example, ...]:
        test = TESTS.get(split)
        key = "data.forget_split" if name in self.forget_sets else "data.retain_split"
        rows = self._rows(test, split) if test else self.source.rows(split, key)
        shots = self._shots() if split == "mmlu" and self.prompt.mmlu_shots else None
        topic = test.subject if test else None
        found = [self._example(row, f"{split}/{i}", topic, shots) for i, row in enumerate(rows)]
        for example in found:
            if len(example.choices) != len(found[0].choices):
                raise InputError(
                    f"{example.id}: {len(example.choices)} options, {found[0].id} has "
                    f"{len(found[0].choices)}; one set needs one number of options."
                )
        return tuple(found)

    def _example(
        self,
        row: Mapping[str, Any],
        where: str,
        topic: str | None,
        shots: Mapping[str, Collection[str]] | None,
    ) -> Example:
        question, choices, right, subject = _read_row(row, where)
        if shots is not None and subject not in shots:
            raise InputError(
                f"{where}: no dev rows of subject {subject!r} to show first; add them to "
                "mmlu/dev or set data.choice_prompt.mmlu_shots to 0."
            )
        form, options = self.prompt.form, _options(choices, self.prompt.form)
        shown = () if shots is None else shots[str(subject)]
        return Example(
            id=where,
            question=choice_prompt(
                question, choices, subject=subject or topic, form=form, shots=shown
            ),
            answer=options[right],
            verbatim=True,
            choices=options,
            right_choice=right,
        )

    def _shots(self) -> dict[str, list[str]]:
        """Return the finished blocks of MMLU's dev rows by subject, the first of each."""
        form, shots = self.prompt.form, dict[str, list[str]]()
        for i, row in enumerate(self._rows(_MMLU_DEV, "mmlu_dev")):
            question, choices, right, subject = _read_row(row, f"mmlu_dev/{i}")
            block = choice_prompt(question, choices, form=form) + _options(choices, form)[right]
            shots.setdefault(str(subject), []).append(block)
        for subject, blocks in shots.items():
            if len(blocks) < self.prompt.mmlu_shots:
                raise InputError(
                    f"data.choice_prompt.mmlu_shots is {self.prompt.mmlu_shots}, but mmlu/dev has "
                    f"{len(blocks)} rows of subject {subject!r}."
                )
        return {subject: blocks[: self.prompt.mmlu_shots] for subject, blocks in shots.items()}

    def _rows(self, test: _Test, split: str) -> list[dict[str, Any]]:
        """Read a published test from the user's folder, else from the hub."""
        limits = self.source.limits
        where = test.file if self.source.root is not None else test.hub_name
        limit = {where: limits[split]} if split in limits else {}
        return replace(self.source, hub=self.source.hub or test.hub, limits=limit).rows(where)


def _read_row(row: Mapping[str, Any], where: str) -> tuple[str, tuple[str, ...], int, str | None]:
    """Return question, options, place of the right one, and subject if there is one."""
    question, choices = text_of(row, "question", where), fields(row, "choices", where)
    if not 2 <= len(choices) <= len(LETTERS):
        raise InputError(
            f"{where}: column 'choices' must hold 2 to {len(LETTERS)} options; got {len(choices)}."
        )
    letters, answer = list(LETTERS[: len(choices)]), row.get("answer")
    if isinstance(answer, str) and answer.strip() in letters:
        right = letters.index(answer.strip())
    elif isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(choices):
        right = answer
    else:
        raise InputError(
            f"{where}: column 'answer' must be a place from 0 to {len(choices) - 1} or a letter "
            f"from A to {letters[-1]}; got {answer!r:.60}."
        )
    subject = row.get("subject")
    named = text_of(row, "subject", where).replace("_", " ") if subject is not None else None
    return question, choices, right, named


def _options(choices: Collection[str], form: Form) -> tuple[str, ...]:
    """Return what follows the prompt, with the space between."""
    texts = LETTERS[: len(choices)] if form == "letter" else choices
    return tuple(f" {text}" for text in texts)


def _set_name(split: str) -> str:
    """Return the name of a test's set: a file's without its endings, fit for a file name.

    Example:
        >>> _set_name("wmdp_bio"), _set_name("my/own-test.jsonl.gz")
        ('wmdp_bio', 'my_own_test')
    """
    stem = split.removesuffix(".gz").removesuffix(".jsonl")
    return re.sub(r"\W+", "_", stem).strip("_")
