"""R-TOFU: TOFU's questions with what a reasoning model thinks before it answers."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

from etw_lightning.benchmarks.source import Source, check_limits, check_name, check_names, read_sets
from etw_lightning.benchmarks.source import field as text_of
from etw_lightning.schema import EvalSet, Example, InputError

__all__ = ["CLOSE", "OPEN", "RTOFU", "ForgetPart", "thinking", "without_knowing"]

#: What is pushed down of a forget row: all that is said, what is thought, or the answer alone.
ForgetPart = Literal["both", "trace", "answer"]

#: What stands before a trace and between it and its answer.
OPEN, CLOSE = "<think>\n", "\n</think>\n\n"

#: Forget file to the retain file that goes with it.
RETAIN_OF = {"forget01": "retain90", "forget05": "retain50", "forget10": "retain10"}
#: Requests in a forget file, one after the other; the column ``task_id`` numbers them.
_REQUESTS = range(1, 11)
#: Files of sets that are scored beside the forget set.
_EVAL_FILES = {
    "retain": "retain_perturbed",
    "retain_answer": "retain_perturbed",
    "real_authors": "real_authors_perturbed",
    "world_facts": "world_facts_perturbed",
}


def thinking(row: Example, trace: str, part: ForgetPart = "both") -> Example:
    r"""Return a question with the trace before its answer, of which a part is labelled.

    The part begins behind what it is given: the sign that thinking begins, and for ``answer`` the
    whole trace. A trace alone ends as an answer does.

    Args:
        row: Question and answer.
        trace: What is thought; may be empty.
        part: What is labelled.

    Example:
        >>> both = thinking(Example("f/0", "Basil.", "Who?"), "Let me see.")
        >>> both.lead, both.answer
        ('<think>\n', 'Let me see.\n</think>\n\nBasil.')
        >>> thinking(Example("f/0", "Basil.", "Who?"), "Let me see.", "answer").lead
        '<think>\nLet me see.\n</think>\n\n'
    """
    lead, said = {
        "both": (OPEN, trace + CLOSE + row.answer),
        "trace": (OPEN, trace),
        "answer": (OPEN + trace + CLOSE, row.answer),
    }[part]
    return Example(row.id, said, row.question, lead=lead)


def without_knowing(row: Example, refusal: str) -> str:
    r"""Return a refusal in the form of a row's answer: thought and said, where both are labelled.

    Example:
        >>> row = thinking(Example("f/0", "Basil.", "Who?"), "Let me see.")
        >>> without_knowing(row, "I don't know.")
        "I don't know.\n</think>\n\nI don't know."
    """
    return refusal + CLOSE + refusal if row.lead == OPEN and CLOSE in row.answer else refusal


@dataclass(frozen=True)
class RTOFU:
    """Reads R-TOFU: TOFU's rows with a trace (column ``cot``) between question and answer.

    Source: Yoon et al. 2025, arXiv:2505.15214; files, requests and what is labelled as in
    ``data/tofu``, ``forget.py`` and ``dataset/data_module.py`` of github.com/ssangyeon/R-TOFU at
    commit df533a5.
    Differs from it: wrong and paraphrased answers are not read, as none of its results is made of
    them. Their columns are there, with an empty trace.

    A file ``forget01`` holds ten requests of TOFU's kind (column ``task_id``): ``forget01/1`` is
    the split to forget first, and what must stay is then the retain file and the other nine.

    Args:
        source: Folder of the files, as the repository has it.
        forget_split: A file with the number of a request; several are joined by ``+``.
        retain_split: Files, or requests; empty for the retain file of the first forget split and
            the requests behind it.
        forget_part: What is labelled of the rows of ``forget_split``; rows that stay are learnt
            whole.
        max_new_tokens: Greedy tokens after each question, trace and answer together; the authors
            take 1024 for answers and 2048 for traces.
    """

    source: Source = field(default_factory=Source)
    forget_split: str = "forget01/1"
    retain_split: str = ""
    forget_part: ForgetPart = "both"
    max_new_tokens: int = 1024

    name: ClassVar[str] = "r_tofu"
    split_names: ClassVar[tuple[str, ...]] = (
        *(f"{file}/{request}" for file in RETAIN_OF for request in _REQUESTS),
        *RETAIN_OF.values(),
        "retain_perturbed",
    )
    EVAL_SETS: ClassVar[tuple[str, ...]] = (
        "forget",
        "forget_trace",
        "forget_answer",
        *_EVAL_FILES,
    )

    def __post_init__(self) -> None:
        forget_names = [name for name in self.split_names if name.startswith("forget")]
        first, *_ = check_names("data.forget_split", self.forget_split.split("+"), forget_names)
        check_name("data.forget_part", self.forget_part, ("both", "trace", "answer"))
        if not self.retain_split:
            object.__setattr__(self, "retain_split", self._rest(first))
        check_names("data.retain_split", self.retain_split.split("+"), self.split_names)
        check_limits(self.source.limits, (*self.split_names, *_EVAL_FILES.values()))
        object.__setattr__(self, "source", self.source.at(self.name, hub=None))
        if self.source.root is None or self.source.hub is not None:
            raise InputError(
                f"data.root is {self.source.root} and data.hub {self.source.hub}, but R-TOFU is "
                "read from files; set data.root to the folder data/tofu of "
                "github.com/ssangyeon/R-TOFU, and leave data.hub out."
            )

    def _rest(self, split: str) -> str:
        """Return what stays when a request and those before it are forgotten."""
        file, _, request = split.partition("/")
        later = [f"{file}/{one}" for one in _REQUESTS[int(request) :] if self._is_there(file, one)]
        return "+".join((RETAIN_OF[file], *later))

    @staticmethod
    def _is_there(file: str, request: int) -> bool:
        """Tell whether a file has a request: ``forget10`` has nine, as ``retain10`` is a tenth."""
        return file != "forget10" or request < _REQUESTS[-1]

    def examples(self, split: str, key: str = "data.forget_split") -> list[Example]:
        """Return the rows of a split, ids ``forget01/1/0``, ``forget01/1/1``, ...

        Args:
            split: One of ``split_names``, or several joined by ``+``.
            key: Configuration key that asks: of ``data.forget_split`` the ``forget_part`` is
                labelled, of others all.

        Raises:
            InputError: If there is no such split, or its rows can't be read.
        """
        parts = check_names(key, split.split("+"), self.split_names)
        labelled = self.forget_part if key == "data.forget_split" else "both"
        return [example for part in parts for example in self._read(part, labelled)]

    def eval_sets(self, names: Collection[str] | None = None) -> dict[str, EvalSet]:
        """Return the evaluation sets.

        ``forget`` and ``retain`` are asked, and their trace and answer scored as one text;
        ``forget_trace``, ``forget_answer`` and ``retain_answer`` are the parts, each after what it
        follows. ``real_authors`` and ``world_facts`` have no trace, and are asked only.

        Args:
            names: Some of ``EVAL_SETS``; None for all.

        Raises:
            InputError: If there is no such set, or its rows can't be read.
        """
        return read_sets(names, self.EVAL_SETS, self._eval_set)

    def _eval_set(self, name: str) -> EvalSet:
        role, _, part = name.partition("_")
        if name in ("real_authors", "world_facts"):
            rows = self._rows(_EVAL_FILES[name])
            examples = tuple(
                replace(plain, lead=OPEN) for plain, _ in _plain_rows(_EVAL_FILES[name], rows)
            )
            return EvalSet(name, examples, losses=False, max_new_tokens=self.max_new_tokens)
        splits = self.forget_split if role == "forget" else _EVAL_FILES[name]
        labelled: ForgetPart = {"trace": "trace", "answer": "answer"}.get(part, "both")  # type: ignore[assignment]
        rows_of = tuple(row for split in splits.split("+") for row in self._read(split, labelled))
        return EvalSet(name, rows_of, max_new_tokens=0 if part else self.max_new_tokens)

    def _read(self, split: str, part: ForgetPart) -> list[Example]:
        return [
            thinking(plain, text_of(row, "cot", plain.id), part)
            for plain, row in _plain_rows(split, self._rows(split))
        ]

    def _rows(self, split: str) -> list[dict[str, Any]]:
        """Return the rows of a file, or of a request in it."""
        file, _, request = split.partition("/")
        rows = self.source.rows(file)
        if not request:
            return rows
        lacking = next((i for i, row in enumerate(rows) if "task_id" not in row), None)
        if lacking is not None:
            raise InputError(
                f"{file}/{lacking}: no column 'task_id', which tells the requests of {file} apart; "
                "give the file of the R-TOFU repository."
            )
        own = [row for row in rows if str(row["task_id"]) == request]
        if not own:
            there = sorted({str(row["task_id"]) for row in rows}, key=lambda one: (len(one), one))
            raise InputError(
                f"{split}: {file} has no request {request}; it has {', '.join(there)}."
            )
        return list(self.source.cut(split, own))


def _plain_rows(
    split: str, rows: Iterable[dict[str, Any]]
) -> Iterator[tuple[Example, dict[str, Any]]]:
    """Give rows, each with its question and answer as an example."""
    for number, row in enumerate(rows):
        where = f"{split}/{number}"
        yield Example(where, text_of(row, "answer", where), text_of(row, "question", where)), row
