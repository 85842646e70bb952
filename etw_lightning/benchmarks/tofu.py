"""TOFU: questions about fictitious authors. Also the shape of any question/answer benchmark."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from etw_lightning.benchmarks.source import (
    Source,
    check_limits,
    check_name,
    check_names,
    fields,
    read_sets,
)
from etw_lightning.benchmarks.source import field as text_of
from etw_lightning.schema import EvalSet, Example, MissingRowsError

__all__ = [
    "EVAL_SPLITS",
    "FORGET_SPLITS",
    "HOLDOUT_OF",
    "NEW_ROWS",
    "RETAIN_OF",
    "SPLITS",
    "TOFU",
    "Columns",
    "read_row",
]

#: What is left of ``full`` without the forget set.
RETAIN_OF = {"forget01": "retain99", "forget05": "retain95", "forget10": "retain90"}

#: As many questions of the same kind that no model was trained on.
HOLDOUT_OF = {"forget01": "holdout01", "forget05": "holdout05", "forget10": "holdout10"}

#: The splits that can be forgotten; each is the end of the next.
FORGET_SPLITS = tuple(RETAIN_OF)

#: What one of them adds to a smaller one, ``forget05-forget01``: the rows of a later request.
NEW_ROWS = ("forget05-forget01", "forget10-forget01", "forget10-forget05")

#: Splits that are scored beside the forget set, by their role.
EVAL_SPLITS = {
    "retain": "retain_perturbed",
    "real_authors": "real_authors_perturbed",
    "world_facts": "world_facts_perturbed",
}

#: Sets that are also scored with the question in other words.
_PARAPHRASED = ("forget", "retain")

#: All configurations of the data set on the hub; ``train`` is the only split of each.
SPLITS = (
    *FORGET_SPLITS,
    *(f"{split}_perturbed" for split in FORGET_SPLITS),
    "full",
    "holdout01",
    "holdout05",
    "holdout10",
    "real_authors",
    "real_authors_perturbed",
    "retain90",
    "retain95",
    "retain99",
    "retain_perturbed",
    "world_facts",
    "world_facts_perturbed",
)


@dataclass(frozen=True)
class Columns:
    """Names of the columns that a row is read from.

    Args:
        question: What the answer is conditioned on.
        answer: The text that is trained on and scored.
        text: Raw text, for rows without question and answer.
        paraphrased_question: The question in other words; may be missing.
        paraphrased_answer: The answer in other words; may be missing.
        perturbed_answer: A list of wrong answers; may be missing.
        alternative_answer: A second, wanted answer, for objectives that prefer one to the other;
            may be missing.
        messages: A chat as a list of ``{role, content}``, for rows without question and answer.
    """

    question: str = "question"
    answer: str = "answer"
    text: str = "text"
    paraphrased_question: str = "paraphrased_question"
    paraphrased_answer: str = "paraphrased_answer"
    perturbed_answer: str = "perturbed_answer"
    alternative_answer: str = "alternative_answer"
    messages: str = "messages"


def read_row(
    row: Mapping[str, Any],
    where: str,
    required: Collection[str] = (),
    columns: Columns = Columns(),
) -> Example:
    """Turn a question/answer row into an example.

    Args:
        row: One row as it is stored.
        where: Split and row number, ``forget10/17``: the example's id, and what errors name.
        required: Optional columns that this row must have. The others are read if they are there
            and hold something.
        columns: Names of the columns.

    Raises:
        InputError: If a column is missing or holds no text.

    Example:
        >>> read_row({"question": "Where?", "answer": "Here."}, "forget10/0").answer
        'Here.'
    """

    def wanted(key: str) -> bool:
        return key in required or row.get(key) is not None

    def optional(key: str) -> str | None:
        return text_of(row, key, where) if wanted(key) else None

    wrong = columns.perturbed_answer
    return Example(
        id=where,
        question=text_of(row, columns.question, where),
        answer=text_of(row, columns.answer, where),
        paraphrased_question=optional(columns.paraphrased_question),
        paraphrased_answer=optional(columns.paraphrased_answer),
        perturbed_answers=fields(row, wrong, where) if wanted(wrong) else (),
        alternative_answer=optional(columns.alternative_answer),
    )


@dataclass(frozen=True)
class TOFU:
    """Reads TOFU: 4000 questions about 200 fictitious authors, of which 20 to 200 are forgotten.

    Source: Maini et al. 2024, arXiv:2401.06121; rows as in ``locuslab/TOFU`` on the hub.
    Differs from it: nothing. ``retain_perturbed`` equals the first 400 rows of ``full``, so the
    retain evaluation rows are training rows; that is how the benchmark is defined.

    Args:
        source: Where the rows are. A limit on ``forgetNN`` also holds for
            ``forgetNN_perturbed``, which has the same questions row by row, unless that is
            limited by name.
        forget_split: ``forget01``, ``forget05`` or ``forget10``; or what one adds to a smaller one,
            as ``forget05-forget01``, whose rows keep their order and get numbers of their own.
        retain_split: Any split, or several joined by ``+``; empty for the rest of ``full``, which
            of ``forget05-forget01`` is what ``forget05`` leaves.
        max_new_tokens: Greedy tokens after each question of an evaluation set; 200 is the
            published setting.
    """

    source: Source = field(default_factory=Source)
    forget_split: str = "forget10"
    retain_split: str = ""
    max_new_tokens: int = 200

    name: ClassVar[str] = "tofu"
    hub: ClassVar[str | None] = "locuslab/TOFU"
    retain_of: ClassVar[Mapping[str, str]] = {
        **RETAIN_OF,
        **{name: RETAIN_OF[name.split("-")[0]] for name in NEW_ROWS},
    }
    holdout_of: ClassVar[Mapping[str, str]] = {
        **HOLDOUT_OF,
        **{name: "-".join(HOLDOUT_OF[part] for part in name.split("-")) for name in NEW_ROWS},
    }
    split_names: ClassVar[tuple[str, ...]] = (*SPLITS, *NEW_ROWS)
    EVAL_SETS: ClassVar[tuple[str, ...]] = (
        "forget",
        *EVAL_SPLITS,
        *(f"{name}_paraphrased" for name in _PARAPHRASED),
        "holdout",
    )

    def __post_init__(self) -> None:
        check_name("data.forget_split", self.forget_split, self.retain_of)
        if not self.retain_split:
            object.__setattr__(self, "retain_split", self.retain_of[self.forget_split])
        check_names("data.retain_split", self.retain_split.split("+"), self.split_names)
        check_limits(self.source.limits, self.split_names)
        twins = {f"{name}_perturbed": name for name in self.retain_of}
        source = replace(self.source, alike=twins)
        object.__setattr__(self, "source", source.at(self.name, hub=self.hub))

    def examples(self, split: str, key: str = "data.forget_split") -> list[Example]:
        """Return the rows of a split, ids ``forget10/0``, ``forget10/1``, ...

        Args:
            split: One of ``split_names``, or several joined by ``+``: ``retain90+forget10``.
            key: Configuration key that the error for an unknown split names.

        Raises:
            InputError: If there is no such split, or its rows can't be read.
        """
        parts = check_names(key, split.split("+"), self.split_names)
        return [example for part in parts for example in self._read(part)]

    def eval_sets(self, names: Collection[str] | None = None) -> dict[str, EvalSet]:
        """Return the evaluation sets: answer losses and a greedy answer to every question.

        ``forget_paraphrased`` and ``retain_paraphrased`` are the rows of ``forget`` and ``retain``
        with the paraphrased question for the question, under the same ids. ``holdout`` has gold
        answers only, so it gets no generation.

        Args:
            names: Some of ``EVAL_SETS``; None for all.

        Raises:
            InputError: If there is no such set, or its rows can't be read.
        """
        return read_sets(names, self.EVAL_SETS, self._eval_set)

    def _eval_set(self, name: str) -> EvalSet:
        if name == "holdout":
            return EvalSet(name, tuple(self._read(self.holdout_of[self.forget_split])))
        role = name.removesuffix("_paraphrased")
        split = EVAL_SPLITS.get(role, f"{self.forget_split}_perturbed")
        examples = self._read(split)
        if role != name:
            examples = [self._paraphrased(example) for example in examples]
        return EvalSet(name, tuple(examples), max_new_tokens=self.max_new_tokens)

    def _paraphrased(self, example: Example) -> Example:
        if example.paraphrased_question is None:
            raise MissingRowsError(
                f"{example.id}: no column 'paraphrased_question', which this row's "
                "paraphrased set asks; add it, or leave out the metrics of paraphrased questions."
            )
        return replace(example, question=example.paraphrased_question)

    def _read(self, split: str) -> list[Example]:
        required: tuple[str, ...] = ()
        if split.endswith("_perturbed"):
            # Without these columns the truth ratio would be missing or another number.
            fictitious = split.startswith(("forget", "retain"))
            required = ("perturbed_answer", *(("paraphrased_answer",) if fictitious else ()))
        rows = self._rows(split)
        return [read_row(row, f"{split}/{i}", required) for i, row in enumerate(rows)]

    def _rows(self, split: str) -> list[dict[str, Any]]:
        name = split.removesuffix("_perturbed")
        if "-" not in name:
            return self.source.rows(split)
        tail = split.removeprefix(name)
        whole, known = (self.source.rows(f"{part}{tail}") for part in name.split("-"))
        asked = {row.get("question") for row in known}
        return list(self.source.cut(split, (r for r in whole if r.get("question") not in asked)))
