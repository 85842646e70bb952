"""MUSE: raw news or book text to forget; verbatim, knowledge and privacy evaluation sets."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import ClassVar, Literal, get_args

from etw_lightning.benchmarks.source import Source, check_limits, check_name, check_names, read_sets
from etw_lightning.benchmarks.source import field as text_of
from etw_lightning.schema import EvalSet, Example, InputError

__all__ = ["EVAL_SPLITS", "KNOWMEM_STOPS", "MUSE", "TEXT_SPLITS", "Corpus", "few_shot_prompt"]

Corpus = Literal["news", "books"]

#: Splits of raw text, as ``configuration/split`` of the data set on the hub.
TEXT_SPLITS = (
    "raw/forget",
    "raw/retain1",
    "raw/retain2",
    "raw/holdout",
    *(f"sust/forget_{i}" for i in range(1, 5)),
    *(f"scal/forget_{i}" for i in range(1, 5)),
    "train/forget",
    "train/retain1",
    "train/retain2",
    "privleak/forget",
    "privleak/retain",
    "privleak/holdout",
)

#: The split behind each evaluation set.
EVAL_SPLITS = {
    "verbmem": "verbmem/forget",
    "knowmem_forget": "knowmem/forget_qa",
    "knowmem_retain": "knowmem/retain_qa",
    "privleak_forget": "privleak/forget",
    "privleak_holdout": "privleak/holdout",
    "privleak_retain": "privleak/retain",
}

#: A knowmem answer ends before the first of these, as in the published evaluation.
KNOWMEM_STOPS = ("\n\n", "\nQuestion", "Question:")

_VERBMEM_TOKENS = 128
_KNOWMEM_TOKENS = 32
_LIMITED = (*TEXT_SPLITS, *(split for split in EVAL_SPLITS.values() if split not in TEXT_SPLITS))


def few_shot_prompt(shots: Collection[tuple[str, str]], question: str) -> str:
    r"""Return the finished prompt of a knowledge question.

    Args:
        shots: Questions with their answers, shown first.
        question: The question that the model is to answer.

    Returns:
        The prompt; it ends in a space after ``Answer:``, as in the published evaluation.

    Example:
        >>> few_shot_prompt([("Who?", "She.")], "Where?")
        'Question: Who?\nAnswer: She.\n\nQuestion: Where?\nAnswer: '
    """
    blocks = [f"Question: {asked}\nAnswer: {answer}" for asked, answer in (*shots, (question, ""))]
    return "\n\n".join(blocks)


@dataclass(frozen=True)
class MUSE:
    """Reads MUSE-News or MUSE-Books.

    Source: Shi et al. 2024, arXiv:2407.06460; rows as in ``muse-bench/MUSE-News`` and
    ``muse-bench/MUSE-Books`` on the hub, prompts and stop strings as in the published logs.
    Differs from it: empty rows of raw text are dropped (one of the 889 of News ``raw/forget``).
    Repeated rows are kept (31 of them there): they were trained on as often.
    A space joins prompt and continuation of a verbatim passage, as in open-unlearning; the rows
    don't say what stood there. It did in 62 of News' 100, in 37 nothing did.

    Args:
        source: Where the rows are: ``raw/forget.jsonl.gz`` and so on in a folder, or the hub. A
            limit counts rows before empty ones are dropped.
        corpus: ``news`` or ``books``.
        forget_split: Raw text to forget; several splits are joined by ``+``.
        retain_split: Raw text that must stay; the same.
    """

    source: Source = field(default_factory=Source)
    corpus: Corpus = "news"
    forget_split: str = "raw/forget"
    retain_split: str = "raw/retain1"

    split_names: ClassVar[tuple[str, ...]] = TEXT_SPLITS
    EVAL_SETS: ClassVar[tuple[str, ...]] = tuple(EVAL_SPLITS)

    def __post_init__(self) -> None:
        check_name("data.corpus", self.corpus, get_args(Corpus))
        for key, split in (
            ("data.forget_split", self.forget_split),
            ("data.retain_split", self.retain_split),
        ):
            check_names(key, split.split("+"), TEXT_SPLITS)
        check_limits(self.source.limits, _LIMITED)
        hub = f"muse-bench/MUSE-{self.corpus.title()}"
        object.__setattr__(self, "source", self.source.at(self.name, hub=hub))

    @property
    def name(self) -> str:
        """``muse_news`` or ``muse_books``."""
        return f"muse_{self.corpus}"

    def examples(self, split: str, key: str = "data.forget_split") -> list[Example]:
        """Return the texts of a split that aren't empty, ids ``raw/forget/0`` and so on.

        Args:
            split: One of ``TEXT_SPLITS``, or several joined by ``+``.
            key: Configuration key that the error for an unknown split names.

        Raises:
            InputError: If there is no such split, its rows can't be read, or all are empty.
        """
        parts = check_names(key, split.split("+"), TEXT_SPLITS)
        return [example for part in parts for example in self._texts(part)]

    def eval_sets(self, names: Collection[str] | None = None) -> dict[str, EvalSet]:
        """Return the evaluation sets; a file that is missing for one of them is an error.

        Args:
            names: Some of ``EVAL_SETS``; None for all.

        Raises:
            InputError: If there is no such set, or its rows can't be read.
        """
        return read_sets(names, EVAL_SPLITS, self._eval_set)

    def _eval_set(self, name: str) -> EvalSet:
        split = EVAL_SPLITS[name]
        if name == "verbmem":
            passages = self._passages(split)
            return EvalSet(name, passages, max_new_tokens=_VERBMEM_TOKENS)
        if name.startswith("knowmem"):
            return EvalSet(
                name,
                self._questions(split),
                losses=False,
                max_new_tokens=_KNOWMEM_TOKENS,
                stop_strings=KNOWMEM_STOPS,
            )
        return EvalSet(name, self._texts(split))

    def _texts(self, split: str) -> tuple[Example, ...]:
        found = []
        for i, row in enumerate(self.source.rows(split)):
            text = row.get("text")
            if not isinstance(text, str) or text.strip():
                found.append(Example(f"{split}/{i}", text_of(row, "text", f"{split}/{i}")))
        if not found:
            raise InputError(f"{split} holds empty rows only; give rows with a text.")
        return tuple(found)

    def _passages(self, split: str) -> tuple[Example, ...]:
        return tuple(
            Example(
                id=f"{split}/{i}",
                question=text_of(row, "prompt", f"{split}/{i}"),
                answer=" " + text_of(row, "gt", f"{split}/{i}"),
                verbatim=True,
            )
            for i, row in enumerate(self.source.rows(split))
        )

    def _questions(self, split: str) -> tuple[Example, ...]:
        shots = self._pairs(f"{split}_icl")
        return tuple(
            Example(
                id=f"{split}/{i}",
                question=few_shot_prompt(shots, question),
                answer=answer,
                verbatim=True,
            )
            for i, (question, answer) in enumerate(self._pairs(split))
        )

    def _pairs(self, split: str) -> list[tuple[str, str]]:
        return [
            (text_of(row, "question", f"{split}/{i}"), text_of(row, "answer", f"{split}/{i}"))
            for i, row in enumerate(self.source.rows(split))
        ]
