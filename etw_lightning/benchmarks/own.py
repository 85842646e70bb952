"""A benchmark of the user's own, given by the path of its reader's class."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

from etw_lightning.benchmarks.given_rows import as_rows
from etw_lightning.benchmarks.jsonl import JSONL
from etw_lightning.benchmarks.source import Source
from etw_lightning.files.class_paths import telling
from etw_lightning.schema import EvalSet, Example, InputError

__all__ = ["OwnBenchmark"]


class OwnBenchmark(ABC):
    """Reads rows of any kind; a subclass says what the rows of a split are, the rest follows.

    Rows are as those of files: ``question`` and ``answer`` (with ``paraphrased_answer``,
    ``perturbed_answer`` and so on), ``text``, or ``messages``. The forget split and the retain
    split are also the evaluation sets ``forget`` and ``retain``; a subclass with sets of other
    names gives ``EVAL_SETS`` and ``eval_sets``.
    """

    #: Whose metrics it offers: ``own``, or ``tofu`` where it has TOFU's sets and columns.
    family: ClassVar[str] = "own"
    #: Splits that are read where ``data.forget_split`` and ``data.retain_split`` name none.
    forget: ClassVar[str] = "forget"
    retain: ClassVar[str] = "retain"
    #: ``data.root``, where the user gave it.
    root: Path | None = None
    _files: JSONL
    _kept: dict[str, list[dict[str, Any]]]

    @abstractmethod
    def read(self, split: str) -> Iterable[Mapping[str, Any] | str]:
        """Return the rows of a split, always in one order; asked once for each.

        Args:
            split: ``data.forget_split``, ``data.retain_split``, or another name that the user gave.
        """

    def begin(
        self, source: Source, splits: Mapping[str, str], settings: Mapping[str, Any]
    ) -> OwnBenchmark:
        """Take the settings of a run; called before anything is read.

        Args:
            source: Its root and limits are used.
            splits: ``forget_split`` and ``retain_split`` as far as the user gave them.
            settings: Further arguments of ``JSONL``.
        """
        self.root = source.root
        vars(self).setdefault("_kept", {})
        given = {"forget_split": self.forget, "retain_split": self.retain, **splits}
        asked = _Asked(root=source.root, limits=source.limits, reader=self)
        self._files = JSONL(asked, **{**settings, **given})
        return self

    @property
    def EVAL_SETS(self) -> tuple[str, ...]:  # noqa: N802
        """Every name that ``eval_sets`` takes."""
        return self._files.EVAL_SETS

    @property
    def name(self) -> str:
        """Label in reports: the class's name."""
        return type(self).__name__

    @property
    def forget_split(self) -> str:
        """Split whose influence must go."""
        return self._files.forget_split

    @property
    def retain_split(self) -> str:
        """Split that must stay."""
        return self._files.retain_split

    @property
    def split_names(self) -> tuple[str, ...]:
        """Every split that ``data.rows`` takes."""
        return self._files.split_names

    def examples(self, split: str, key: str = "data.forget_split") -> list[Example]:
        """Return the rows of a split; ``key`` is the configuration key that errors name."""
        return self._files.examples(split, key)

    def stream(self, split: str, key: str = "data.forget_split") -> Iterator[Example]:
        """Give the rows of ``examples`` one by one."""
        return self._files.stream(split, key)

    def eval_sets(self, names: Collection[str] | None = None) -> dict[str, EvalSet]:
        """Return the evaluation sets of these names, or all of them."""
        return self._files.eval_sets(names)


@dataclass(frozen=True)
class _Asked(Source):
    """Asks a reader for the rows of a split.

    Args:
        reader: The reader.
    """

    reader: Any = None

    def stream(self, name: str, key: str = "data.root") -> Iterator[dict[str, Any]]:
        """Give what the reader has, the first of them if there is a limit."""
        kept = self.reader._kept
        if name not in kept:
            kept[name] = self._read(name, key)
        return self.cut(name, kept[name])

    def _read(self, name: str, key: str) -> list[dict[str, Any]]:
        kind = type(self.reader).__name__
        with telling(type(self.reader), f"data.benchmark {kind}.read({name!r}) failed"):
            read = self.reader.read(name)
            if isinstance(read, Iterator):
                read = list(read)
        if not isinstance(read, Iterable) or isinstance(read, str | Mapping):
            raise InputError(
                f"data.benchmark {kind}.read({name!r}) must return rows: a list of dicts or texts; "
                f"got {read!r:.60}."
            )
        where = f"{key} {name!r}, as data.benchmark {kind} reads it,"
        return as_rows(cast(Any, read), where)

    def holds(self, name: str) -> bool:
        """Names are the reader's own; only it can tell."""
        return "+" not in name
