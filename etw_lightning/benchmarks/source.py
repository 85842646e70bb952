"""Where benchmark rows come from: a folder of files, or the Hugging Face hub and its cache."""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from datetime import date
from pathlib import Path
from typing import Any

from etw_lightning.benchmarks.formats import FORMATS, SUFFIXES, is_saved, iter_file, suffix_of
from etw_lightning.benchmarks.hub_rows import HUB, hub_name, read_hub
from etw_lightning.files.places import is_below
from etw_lightning.schema import EvalSet, InputError, MissingRowsError
from etw_lightning.value_checks import check_name

__all__ = [
    "Source",
    "as_list",
    "check_limits",
    "check_name",
    "check_names",
    "field",
    "fields",
    "read_sets",
]

#: Rows in both are the same rows, one packed.
_LINES = (".jsonl", ".jsonl.gz")


@dataclasses.dataclass(frozen=True)
class Source:
    """Reads the rows of a named split from a folder or from the hub, always in stored order.

    Args:
        hub: Data set on the hub, ``locuslab/TOFU``; not used where ``root`` is given.
        root: Folder that holds ``NAME.jsonl``, or NAME in another of ``formats``; a name is a whole
            path or stays in it. Without it and without ``hub``, names are files relative to the
            current folder.
        limits: How many rows to keep from the start of a split; the user's ``data.rows``.
        alike: Splits that have another one's limit unless they have their own: ``{split: other}``.
    """

    hub: str | None = None
    root: Path | None = None
    limits: Mapping[str, int] = dataclasses.field(default_factory=dict)
    alike: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def at(self, folder: str, hub: str | None) -> Source:
        """Return the same source for one benchmark.

        Args:
            folder: Folder of the benchmark under a root that holds several; used if it is there.
            hub: Data set to read when the user gave neither a folder nor a data set.
        """
        if self.root is None:
            return dataclasses.replace(self, hub=self.hub or hub)
        root = Path(self.root).expanduser()
        return dataclasses.replace(self, root=root / folder if (root / folder).is_dir() else root)

    def rows(self, name: str, key: str = "data.root") -> list[dict[str, Any]]:
        """Return the rows of a split, the first ``limits[name]`` of them if that is set.

        Args:
            name: ``forget10`` (configuration of a data set whose only split is ``train``),
                ``raw/forget`` (configuration and split), the name of a file or of a folder that
                ``save_to_disk`` has written, or ``hub:owner/name/config/split``.
            key: Configuration key that the error for a missing file names.

        Raises:
            InputError: If the split can't be found or read, or has fewer rows than its limit.
        """
        return list(self.stream(name, key))

    def stream(self, name: str, key: str = "data.root") -> Iterator[dict[str, Any]]:
        """Give the rows of ``rows`` one by one, as they are read.

        Args:
            name: As of ``rows``.
            key: As of ``rows``.

        Raises:
            InputError: As ``rows``, once it comes to the row.
        """
        return self.cut(name, self._whole(name, key))

    def _whole(self, name: str, key: str) -> Iterable[dict[str, Any]]:
        """Give all rows of a split."""
        if name.startswith(HUB):
            return read_hub(*hub_name(name))
        if self.root is None and self.hub is not None:
            return read_hub(self.hub, name)
        root = Path(self.root or "").expanduser()
        given = f"data.root is {str(root)!r}" if key == "data.root" else f"{key} is {name!r}"
        return _told(given, iter_file(_find(root, name, key)))

    def holds(self, name: str) -> bool:
        """Tell whether there is a file of this name; the hub is not asked."""
        root = Path(self.root or "").expanduser()
        return bool(_found(root, name))

    def cut(self, name: str, rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Give the rows of a split that its limit keeps.

        Raises:
            InputError: If it has fewer.
        """
        key = name if name in self.limits else self.alike.get(name, name)
        limit, count = self.limits.get(key), 0
        for row in rows:
            if count == limit:
                return
            count += 1
            yield row
        if limit is not None and limit > count:
            raise InputError(
                f"data.rows.{key} is {limit}, but {name} has {count} rows; "
                f"give at most {count} or leave it out."
            )


def _told(given: str, rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Give the rows of a file; an error in it begins with the key that named it."""
    try:
        yield from rows
    except InputError as error:
        raise InputError(f"{given}: {error}") from error


def check_limits(limits: Mapping[str, int], known: Collection[str]) -> None:
    """Check the user's ``data.rows``: split names that exist, and at least one row of each.

    Raises:
        InputError: If a name isn't in ``known`` or a number is below 1.
    """
    for name, limit in limits.items():
        check_name("each name in data.rows", name, known)
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
            raise InputError(f"data.rows.{name} must be a whole number >= 1; got {limit!r}.")


def read_sets(
    names: Collection[str] | None, known: Collection[str], read: Callable[[str], EvalSet]
) -> dict[str, EvalSet]:
    """Return evaluation sets by name, in the benchmark's order.

    Args:
        names: Those that are wanted; None for all.
        known: Those that the benchmark has.
        read: Reads one.

    Raises:
        InputError: If there is no such set.
    """
    chosen = check_names("data.eval_sets", known if names is None else names, known)
    return {name: read(name) for name in known if name in chosen}


def check_names(key: str, names: Iterable[str], known: Collection[str]) -> list[str]:
    """Return names that must be known ones; see ``check_name``.

    Example:
        >>> check_names("data.eval_sets", ["forget"], ["forget", "retain"])
        ['forget']
    """
    given = list(names)
    for name in given:
        check_name(key, name, known)
    return given


def field(row: Mapping[str, Any], key: str, where: str) -> str:
    """Return the text in a column, unchanged.

    Args:
        row: One row.
        key: Column.
        where: Split and row number, counted from 0: ``forget10/17``.

    Raises:
        InputError: If the column is missing, holds no text or only white space.
    """
    return _text(_column(row, key, where), key, where)


def fields(row: Mapping[str, Any], key: str, where: str) -> tuple[str, ...]:
    """Return the texts of a column that holds a list of them.

    Raises:
        InputError: If the column is missing, is no list, is empty or holds an empty text.
    """
    value = as_list(_column(row, key, where))
    if not isinstance(value, list) or not value:
        raise InputError(f"{where}: column {key!r} must hold a list of texts; got {value!r:.60}.")
    return tuple(_text(item, f"{key}[{i}]", where) for i, item in enumerate(value))


def as_list(value: Any) -> Any:
    """Return a list that a table's cell holds as JSON; anything else as it is.

    Example:
        >>> as_list('["no", "never"]'), as_list("never")
        (['no', 'never'], 'never')
    """
    if not isinstance(value, str) or not value.lstrip().startswith("["):
        return value
    try:
        return json.loads(value)
    except json.JSONDecodeError:
        return value


def _column(row: Mapping[str, Any], key: str, where: str) -> Any:
    if key not in row:
        raise InputError(f"{where}: no column {key!r}; its columns are {', '.join(row) or 'none'}.")
    return row[key]


def _text(value: Any, key: str, where: str) -> str:
    if isinstance(value, date):
        raise InputError(
            f"{where}: column {key!r} must hold a text; got {value!r:.60}. Libraries make dates of "
            "texts that look like some: give the file itself, in .jsonl, .json or .csv."
        )
    if not isinstance(value, str):
        raise InputError(f"{where}: column {key!r} must hold a text; got {value!r:.60}.")
    if not value.strip():
        raise InputError(f"{where}: column {key!r} is empty; fill it or take the row out.")
    return value


def _candidates(root: Path, name: str) -> list[Path]:
    """Return the files and folders that a split may be in."""
    endings = ("",) if suffix_of(name) else (*SUFFIXES, "")
    return [root / f"{name}{ending}" for ending in endings]


def _found(root: Path, name: str) -> list[Path]:
    """Return those that are there."""
    tried = _candidates(root, name)
    return [path for path in tried if (suffix_of(path.name) and path.is_file()) or is_saved(path)]


def _find(root: Path, name: str, key: str) -> Path:
    """Return the file of a split, or say which files are there."""
    if not root.is_dir():
        raise InputError(f"data.root must be a folder; {str(root)!r} is not one.")
    if root != Path() and not (Path(name).is_absolute() or is_below(name)):
        raise InputError(
            f"{'a split' if key == 'data.root' else key} must name a file in data.root "
            f"{str(root)!r}, or the whole path of one; got {name!r}."
        )
    found = _found(root, name)
    given = f"{key}: " if key == "data.root" else f"{key} is {name!r}: "
    if len(found) > 1 and suffix_of(found[0].name) not in _LINES:
        names = " and ".join(path.name for path in found)
        raise InputError(f"{given}there are {names} in {root}; name one with its ending.")
    if found:
        return found[0]
    tried = _candidates(root, name)[0]
    there = dict.fromkeys(  # the folder of the file first, each file once
        str(path.relative_to(root) if root in path.parents else path)
        for folder, pattern in ((tried.parent, "*"), (root, "*"), (root, "*/*"))
        for path in sorted(folder.glob(pattern))
        if suffix_of(path.name) or is_saved(path)
    )
    near = difflib.get_close_matches(f"{name}.jsonl", there, n=4) or list(there)[:8]
    listed = f"there: {', '.join(near)}" if near else f"no {FORMATS} there"
    further = "" if suffix_of(name) else " or another ending"
    raise MissingRowsError(f"{given}no file {tried}{further} ({listed}).")
