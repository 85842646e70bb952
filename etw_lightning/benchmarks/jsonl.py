"""The user's own rows: files with question and answer, with raw text, or with chats."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from etw_lightning.benchmarks.chat import WhichTurns, read_chat, turn_by_turn
from etw_lightning.benchmarks.formats import FORMATS
from etw_lightning.benchmarks.source import Source, check_limits, check_names
from etw_lightning.benchmarks.source import field as text_of
from etw_lightning.benchmarks.tofu import Columns, read_row
from etw_lightning.schema import EvalSet, Example, InputError, MissingRowsError

__all__ = ["JSONL"]


@dataclass(frozen=True)
class JSONL:
    """Reads a forget and a retain file of the user's own.

    A split is a file, relative to ``data.root`` (without it, to the current folder) or absolute;
    the end of its name (``.jsonl``, ``.csv``, ``.parquet``, ... of ``formats``) may be left out.
    Several files are joined by ``+``, unless there is one file of that name. A row with the text
    column is raw text, one with the messages column a chat, every other row needs question and
    answer.

    Args:
        source: Where the files are, and how many rows to keep of each.
        forget_split: File of the forget set, or several.
        retain_split: File of the retain set, or several.
        columns: Names of the columns.
        which_turns: Of chats, whether the assistant's last turn or all of them are labelled; in an
            evaluation set each labelled turn is a row.
        max_new_tokens: Greedy tokens after each question of an evaluation set; raw text gets
            none.
        holdout_split: File of rows like the forget set's that no model was trained on, or several;
            empty for none.
    """

    source: Source
    forget_split: str
    retain_split: str
    columns: Columns = field(default_factory=Columns)
    which_turns: WhichTurns = "last"
    max_new_tokens: int = 200
    holdout_split: str = ""

    name: ClassVar[str] = "jsonl"
    EVAL_SETS: ClassVar[tuple[str, ...]] = ("forget", "retain", "holdout")

    def __post_init__(self) -> None:
        for key, split in (("forget", self.forget_split), ("retain", self.retain_split)):
            if not split:
                raise InputError(f"data.{key}_split must name a file ({FORMATS}); got ''.")
        check_limits(self.source.limits, self.split_names)

    @property
    def split_names(self) -> tuple[str, ...]:
        """The files of the sets as the user names them."""
        splits = filter(None, (self.forget_split, self.retain_split, self.holdout_split))
        return tuple(file for split in splits for file in self._files(split))

    def _files(self, split: str) -> tuple[str, ...]:
        """Return the files that a split joins."""
        return (split,) if self.source.holds(split) else tuple(split.split("+"))

    def examples(self, split: str, key: str = "data.forget_split") -> list[Example]:
        """Return the rows of one or several files, ids ``mine.jsonl/0``, ``mine.jsonl/1``, ...

        Args:
            split: File, relative to the root or absolute, or several joined by ``+``.
            key: Configuration key that the error for a missing file names.

        Raises:
            InputError: If the file can't be read, or a row has neither kind of columns.
        """
        return list(self.stream(split, key))

    def stream(self, split: str, key: str = "data.forget_split") -> Iterator[Example]:
        """Give the rows of ``examples`` one by one, as they are read.

        Args:
            split: As of ``examples``.
            key: As of ``examples``.

        Raises:
            InputError: As ``examples``, once it comes to the row.
        """
        files = self._files(split)
        twice = next((file for file in files if files.count(file) > 1), None)
        if twice is not None:
            raise InputError(
                f"{key} is {split!r}, which names {twice!r} twice: its rows would count twice "
                "under the same ids. Name each file once."
            )
        for file in files:
            for i, row in enumerate(self.source.stream(file, key=key)):
                yield self._read(row, f"{file}/{i}")

    def eval_sets(self, names: Collection[str] | None = None) -> dict[str, EvalSet]:
        """Return the evaluation sets: losses, and greedy answers where there are questions.

        Of ``holdout``, which is there if its file is given, losses only.

        Args:
            names: Some of ``EVAL_SETS``; None for all.

        Raises:
            InputError: If there is no such set, its file can't be read, or it holds raw text
                beside questions.
        """
        check_names("data.eval_sets", names or (), self.EVAL_SETS)
        splits = {"forget": self.forget_split, "retain": self.retain_split}
        if self.holdout_split:
            splits["holdout"] = self.holdout_split
        elif names is not None and "holdout" in names:
            raise MissingRowsError(
                "data.holdout_split is missing: membership compares the forget rows with rows "
                "that no model was trained on; give a file of them."
            )
        return {
            name: self._eval_set(name, split)
            for name, split in splits.items()
            if names is None or name in names
        }

    def _eval_set(self, name: str, split: str) -> EvalSet:
        read = self.examples(split, f"data.{name}_split")
        examples = tuple(turn for example in read for turn in turn_by_turn(example))
        asked = {example.question is not None for example in examples}
        if len(asked) > 1:
            raise InputError(
                f"data.{name}_split is {split!r}, which mixes questions and raw text; "
                "what is scored together must be of one kind, so split the file."
            )
        continues = asked == {True} and name != "holdout"
        return EvalSet(name, examples, max_new_tokens=self.max_new_tokens if continues else 0)

    def _read(self, row: Mapping[str, Any], where: str) -> Example:
        text, question, answer = self.columns.text, self.columns.question, self.columns.answer
        pair = [key for key in (question, answer) if row.get(key) is not None]
        if row.get(self.columns.messages) is not None:
            others = [key for key in (*pair, text) if row.get(key) is not None]
            if others:
                raise self._unclear(where, self.columns.messages, others[0])
            return read_chat(row, where, self.columns, self.which_turns)
        if row.get(text) is None:
            if not pair:
                raise InputError(
                    f"{where}: neither {text!r} nor {question!r} and {answer!r}, nor "
                    f"{self.columns.messages!r}; its columns are "
                    f"{', '.join(row) or 'none'}. Name the right ones in data.columns."
                )
            for key in (question, answer):
                if key not in row:
                    raise InputError(
                        f"{where}: no column {key!r}; its columns are {', '.join(row)}. Name the "
                        "right ones in data.columns, as by data.columns.question NAME."
                    )
            return read_row(row, where, columns=self.columns)
        if pair:
            raise self._unclear(where, text, pair[0])
        return Example(where, text_of(row, text, where))

    def _unclear(self, where: str, one: str, other: str) -> InputError:
        """Say that a row has columns of two kinds."""
        field = "messages" if one == self.columns.messages else "text"
        return InputError(
            f"{where}: both {one!r} and {other!r}, so it is unclear which to learn from; "
            f"name an unused column in data.columns.{field}, or drop one of them."
        )
