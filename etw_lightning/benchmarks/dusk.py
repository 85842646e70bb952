"""DUSK: one style of biographies to forget, whose facts partly stand in the other styles too."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import ClassVar

from etw_lightning.benchmarks.muse import KNOWMEM_STOPS, few_shot_prompt
from etw_lightning.benchmarks.source import Source, check_limits, check_names, read_sets
from etw_lightning.benchmarks.source import field as text_of
from etw_lightning.schema import EvalSet, Example, InputError, MissingRowsError

__all__ = ["DUSK", "QUESTIONS", "STYLES"]

#: The five styles, each a file ``STYLE.txt`` of 120 biographies; the first is what is forgotten.
STYLES = ("Chronological", "Interview", "Feature_Story", "Inverted_Pyramid", "Listicle")

#: The file behind each set of questions, in ``eval/``.
QUESTIONS = {
    "knowmem_forget": "SpecificForgetQA",
    "knowmem_shared": "GeneralQA",
    "knowmem_retain": "SpecificRetainQA",
}

_HOLDOUT, _SHOTS = "holdout", "icl"
#: Files of rows, without their folder.
_ROWS = ("verbatim", *QUESTIONS.values(), _SHOTS)
_PRIVACY = ("privleak_forget", "privleak_holdout", "privleak_retain")
_VERBATIM_TOKENS, _ANSWER_TOKENS = 128, 32
#: Sets that ask for what ``Chronological`` alone says, or goes on with.
_OF_THE_FIRST = ("verbmem", "knowmem_forget", "knowmem_retain")
#: What a biography begins with; together with the blank line before it nothing of a file is lost.
_BORDER = re.compile(r"\n\n(?=Title: )")
_REPOSITORY = "the folder data/Prof of github.com/AI-ISL/DUSK"


@dataclass(frozen=True)
class DUSK:
    """Reads DUSK: 120 biographies of made-up professors in five styles, one of them to forget.

    Source: Jeung et al. 2025, arXiv:2505.15209; files, prompts and numbers of tokens as in
    ``data/Prof`` and ``metrics`` of github.com/AI-ISL/DUSK at commit 129a0a5.
    Differs from it: membership is asked of each biography (120 of a style, 120 of the holdout, 480
    of the rest) where the authors cut each file into rows of 1024 tokens. The last row of a style
    that is trained on is as short as what is left, where theirs is filled up with its first.

    Args:
        source: Folder of the files, as the repository has it.
        forget_split: Style to forget; several are joined by ``+``. The questions of the benchmark
            but ``knowmem_shared`` are there for ``Chronological`` alone.
        retain_split: Styles that must stay; empty for all others.
    """

    source: Source = field(default_factory=Source)
    forget_split: str = STYLES[0]
    retain_split: str = ""

    name: ClassVar[str] = "dusk"
    split_names: ClassVar[tuple[str, ...]] = STYLES
    EVAL_SETS: ClassVar[tuple[str, ...]] = ("verbmem", *QUESTIONS, *_PRIVACY)

    def __post_init__(self) -> None:
        forgotten = check_names("data.forget_split", self.forget_split.split("+"), STYLES)
        if not self.retain_split:
            kept = [style for style in STYLES if style not in forgotten]
            object.__setattr__(self, "retain_split", "+".join(kept))
        check_names("data.retain_split", self.retain_split.split("+"), STYLES)
        check_limits(self.source.limits, (*STYLES, _HOLDOUT, *_ROWS))
        object.__setattr__(self, "source", self.source.at(self.name, hub=None))
        if self.source.hub is not None:
            raise InputError(
                f"data.hub is {self.source.hub!r}, but DUSK is read from files; set data.root to "
                f"{_REPOSITORY}, and leave data.hub out."
            )

    def examples(self, split: str, key: str = "data.forget_split") -> list[Example]:
        """Return the biographies of styles, ids ``Chronological/0`` and so on.

        Joined by blank lines they are the text of the file.

        Args:
            split: One of ``STYLES``, or several joined by ``+``.
            key: Configuration key that the error for an unknown style names.

        Raises:
            InputError: If there is no such style, or its file can't be read.
        """
        styles = check_names(key, split.split("+"), STYLES)
        return [example for style in styles for example in self._biographies(style, style)]

    def eval_sets(self, names: Collection[str] | None = None) -> dict[str, EvalSet]:
        """Return the evaluation sets.

        ``verbmem``: passages of the forgotten style to go on with. ``knowmem_forget``: what it
        alone says; ``knowmem_shared``: what all styles say; ``knowmem_retain``: what others say and
        it does not. ``privleak_...``: whole biographies.

        Args:
            names: Some of ``EVAL_SETS``; None for all.

        Raises:
            InputError: If there is no such set, or its rows can't be read.
        """
        return read_sets(names, self.EVAL_SETS, self._eval_set)

    def _eval_set(self, name: str) -> EvalSet:
        if name in _OF_THE_FIRST and self.forget_split != STYLES[0]:
            raise MissingRowsError(
                f"{name}: DUSK has questions of this kind for data.forget_split {STYLES[0]} alone; "
                f"got {self.forget_split!r}. Leave out the metrics that read them."
            )
        if name == "verbmem":
            return EvalSet(name, self._passages(), max_new_tokens=_VERBATIM_TOKENS)
        if name in QUESTIONS:
            return EvalSet(
                name,
                self._asked(QUESTIONS[name]),
                losses=False,
                max_new_tokens=_ANSWER_TOKENS,
                stop_strings=KNOWMEM_STOPS,
            )
        split = {"privleak_forget": self.forget_split, "privleak_retain": self.retain_split}
        if name in split:
            return EvalSet(name, tuple(self.examples(split[name])))
        return EvalSet(name, tuple(self._biographies(_HOLDOUT, f"eval/{_HOLDOUT}")))

    def _biographies(self, split: str, file: str) -> list[Example]:
        rows = [{"text": text} for text in _BORDER.split(self._text(file))]
        return [
            Example(f"{split}/{i}", text_of(row, "text", f"{split}/{i}"))
            for i, row in enumerate(self.source.cut(split, rows))
        ]

    def _text(self, file: str) -> str:
        root = self.source.root
        if root is None:
            raise InputError(f"data.root is missing: DUSK is read from {_REPOSITORY}.")
        path = root / f"{file}.txt"
        try:
            return path.read_text("utf-8")
        except FileNotFoundError as error:
            raise MissingRowsError(
                f"data.root: no file {path}; give {_REPOSITORY} as it is there."
            ) from error
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"data.root: {path} can't be read: {error}; copy it anew.") from error

    def _rows(self, file: str) -> list[dict[str, object]]:
        return list(self.source.cut(file, self.source.rows(f"eval/{file}")))

    def _passages(self) -> tuple[Example, ...]:
        return tuple(
            Example(
                id=f"verbatim/{i}",
                question=text_of(row, "prompt", f"verbatim/{i}"),
                # The passage goes on without a space of ours: 31 of the 47 begin with one.
                answer=text_of(row, "gt", f"verbatim/{i}"),
                verbatim=True,
            )
            for i, row in enumerate(self._rows("verbatim"))
        )

    def _asked(self, file: str) -> tuple[Example, ...]:
        shots = self._pairs(_SHOTS)
        return tuple(
            Example(f"{file}/{i}", answer, few_shot_prompt(shots, question), verbatim=True)
            for i, (question, answer) in enumerate(self._pairs(file))
        )

    def _pairs(self, file: str) -> list[tuple[str, str]]:
        return [
            (text_of(row, "question", f"{file}/{i}"), text_of(row, "answer", f"{file}/{i}"))
            for i, row in enumerate(self._rows(file))
        ]
