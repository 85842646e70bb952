"""Rows that are in memory already, read as the rows of files are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from os import PathLike
from typing import Any, cast

from etw_lightning.benchmarks.source import Source
from etw_lightning.schema import InputError, MissingRowsError

__all__ = ["GivenSource", "Rows", "as_rows", "is_path"]

#: Rows as Python has them: a list of texts or of rows by column, a ``datasets.Dataset``, a pandas
#: frame; or the path of a file.
Rows = Iterable[Any] | str | PathLike[str]


@dataclass(frozen=True)
class GivenSource(Source):
    """Reads splits that are in memory; any other name is a file, as of ``Source``.

    Args:
        given: Splits by name; None for one that was left out, whatever files there are.
    """

    given: Mapping[str, list[dict[str, Any]] | None] = field(default_factory=dict)

    def stream(self, name: str, key: str = "data.root") -> Iterator[dict[str, Any]]:
        """Give the rows of a split.

        Raises:
            MissingRowsError: If it was left out.
        """
        if name in self.given:
            rows = self.given[name]
            if rows is None:
                raise MissingRowsError(f"{name} must be given: rows, or the path of a file.")
            return self.cut(name, rows)
        return super().stream(name, key)

    def holds(self, name: str) -> bool:
        """Tell whether a split of this name is there."""
        return name in self.given or super().holds(name)


def is_path(given: Rows) -> bool:
    """Tell whether rows are in a file."""
    return isinstance(given, str | PathLike)


def as_rows(given: Rows, key: str, text: str = "text") -> list[dict[str, Any]]:
    """Return rows by column of whatever they are given as.

    Args:
        given: Texts, rows by column, a ``datasets.Dataset`` or a pandas frame.
        key: Argument that errors name.
        text: Column that texts are put into.

    Raises:
        InputError: If they are none of these, or none at all.

    Example:
        >>> as_rows(["A town.", {"question": "Where?", "answer": "Here."}], "forget")
        [{'text': 'A town.'}, {'question': 'Where?', 'answer': 'Here.'}]
    """
    if hasattr(given, "to_list") and hasattr(given, "column_names"):
        given = given.to_list()
    elif hasattr(given, "to_dict") and hasattr(given, "columns"):
        given = given.to_dict("records")
    if isinstance(given, Mapping):
        raise InputError(
            f"{key} must be a list of texts or rows, a Dataset or a path; got one "
            f"{type(given).__name__} with {', '.join(map(repr, list(given)[:4])) or 'nothing'}: "
            "put a row into a list, and take one split of a DatasetDict."
        )
    rows: list[dict[str, Any]] = []
    for place, row in enumerate(cast(Iterable[Any], given)):
        if isinstance(row, str):
            rows.append({text: row})
        elif isinstance(row, Mapping):
            rows.append(dict(row))
        else:
            raise InputError(
                f"{key}[{place}] must be a text, or a row such as {{'question': ..., 'answer': "
                f"...}}; got {row!r:.60}."
            )
    if not rows:
        raise InputError(f"{key} holds no rows; give at least one.")
    return rows
