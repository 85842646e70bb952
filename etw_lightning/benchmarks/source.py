"""Where benchmark rows come from: a folder of JSON lines, or the Hugging Face hub and its cache."""

from __future__ import annotations

import dataclasses
import difflib
import gzip
import json
import zlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from etw_lightning.files.hub import hub_answers
from etw_lightning.files.places import is_below
from etw_lightning.schema import InputError, MissingRowsError

__all__ = [
    "Source",
    "check_limits",
    "check_name",
    "field",
    "fields",
]

_SUFFIXES = (".jsonl", ".jsonl.gz")


@dataclasses.dataclass(frozen=True)
class Source:
    """Reads the rows of a named split from a folder or from the hub, always in stored order.

    Args:
        hub: Data set on the hub, ``locuslab/TOFU``; not used where ``root`` is given.
        root: Folder that holds ``NAME.jsonl`` or ``NAME.jsonl.gz``; a name is a whole path or
            stays in it. Without it and without ``hub``, names are files relative to the current
            folder.
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
                ``raw/forget`` (configuration and split) or the name of a file.
            key: Configuration key that the error for a missing file names.

        Raises:
            InputError: If the split can't be found or read, or has fewer rows than its limit.
        """
        if self.root is None and self.hub is not None:
            rows = _read_hub(self.hub, name)
        else:
            root = Path(self.root or "").expanduser()
            rows = _read_lines(_find(root, name, key))
        return self.cut(name, rows)

    def holds(self, name: str) -> bool:
        """Tell whether there is a file of this name; the hub is not asked."""
        root = Path(self.root or "").expanduser()
        return any(path.is_file() for path in _candidates(root, name))

    def cut(self, name: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the rows of a split that its limit keeps.

        Raises:
            InputError: If it has fewer.
        """
        key = name if name in self.limits else self.alike.get(name, name)
        limit = self.limits.get(key, len(rows))
        if limit > len(rows):
            raise InputError(
                f"data.rows.{key} is {limit}, but {name} has {len(rows)} rows; "
                f"give at most {len(rows)} or leave it out."
            )
        return rows[:limit]


def check_limits(limits: Mapping[str, int], known: Collection[str]) -> None:
    """Check the user's ``data.rows``: split names that exist, and at least one row of each.

    Raises:
        InputError: If a name isn't in ``known`` or a number is below 1.
    """
    for name, limit in limits.items():
        check_name("each name in data.rows", name, known)
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
            raise InputError(f"data.rows.{name} must be a whole number >= 1; got {limit!r}.")


def check_name(key: str, name: str, known: Collection[str]) -> None:
    """Check that a name is one of the known ones.

    Args:
        key: Configuration key as the user types it.
        name: What the user gave.
        known: What is allowed, in the order the message lists it.

    Raises:
        InputError: If it isn't; the message suggests the nearest name.

    Example:
        >>> check_name("data.forget_split", "forget11", ["forget01", "forget10"])
        Traceback (most recent call last):
        ...
        etw_lightning.schema.InputError: data.forget_split must be forget01 or forget10; \
got 'forget11'. Did you mean 'forget10'?
    """
    if name in known:
        return
    *most, last = known
    allowed = f"{', '.join(most)} or {last}" if most else last
    # The last of equally near names: a typo in forgetNN is nearest to the usual forget10.
    near = difflib.get_close_matches(str(name), list(known)[::-1], n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise InputError(f"{key} must be {allowed}; got {name!r}.{hint}")


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
    value = _column(row, key, where)
    if not isinstance(value, list) or not value:
        raise InputError(f"{where}: column {key!r} must hold a list of texts; got {value!r:.60}.")
    return tuple(_text(item, f"{key}[{i}]", where) for i, item in enumerate(value))


def _column(row: Mapping[str, Any], key: str, where: str) -> Any:
    if key not in row:
        raise InputError(f"{where}: no column {key!r}; its columns are {', '.join(row) or 'none'}.")
    return row[key]


def _text(value: Any, key: str, where: str) -> str:
    if not isinstance(value, str):
        raise InputError(f"{where}: column {key!r} must hold a text; got {value!r:.60}.")
    if not value.strip():
        raise InputError(f"{where}: column {key!r} is empty; fill it or take the row out.")
    return value


def _candidates(root: Path, name: str) -> list[Path]:
    """Return the files that a split may be in."""
    endings = ("",) if name.endswith(_SUFFIXES) else _SUFFIXES
    return [root / f"{name}{ending}" for ending in endings]


def _find(root: Path, name: str, key: str) -> Path:
    """Return the file of a split, or say which files are there."""
    if not root.is_dir():
        raise InputError(f"data.root must be a folder; {str(root)!r} is not one.")
    if root != Path() and not (Path(name).is_absolute() or is_below(name)):
        raise InputError(
            f"{'a split' if key == 'data.root' else key} must name a file in data.root "
            f"{str(root)!r}, or the whole path of one; got {name!r}."
        )
    tried = _candidates(root, name)
    for path in tried:
        if path.is_file():
            return path
    there = dict.fromkeys(  # the folder of the file first, each file once
        str(path.relative_to(root) if root in path.parents else path)
        for folder, pattern in ((tried[0].parent, "*"), (root, "*"), (root, "*/*"))
        for path in sorted(folder.glob(pattern))
        if path.name.endswith(_SUFFIXES)
    )
    near = difflib.get_close_matches(f"{name}.jsonl", there, n=4) or list(there)[:8]
    found = f"there: {', '.join(near)}" if near else "no .jsonl or .jsonl.gz file there"
    given = f"{key}: " if key == "data.root" else f"{key} is {name!r}: "
    raise MissingRowsError(f"{given}no file {' or '.join(map(str, tried))} ({found}).")


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """Read one JSON object a line; blank lines don't count."""
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if path.suffix == ".gz" else data
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} can't be read: {error}.") from error
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8"))
        except json.JSONDecodeError as error:
            reason = f"{error.msg} at column {error.colno}"
            raise InputError(f"{path} line {number} is not JSON: {reason}.") from error
        except UnicodeDecodeError as error:
            raise InputError(f"{path} line {number} is not UTF-8: {error.reason}.") from error
        if not isinstance(row, dict):
            raise InputError(
                f"{path} line {number} must be a JSON object with named columns; got {row!r:.60}."
            )
        rows.append(row)
    if not rows:
        raise InputError(f"{path} has no rows; give one JSON object a line.")
    return rows


def _read_hub(hub: str, name: str) -> list[dict[str, Any]]:
    """Read a split from the hub; without a connection from what an earlier run has stored."""
    import datasets
    from datasets.exceptions import DatasetsError

    config, _, split = name.partition("/")
    split = split or "train"
    online = Path(hub).is_dir() or (not datasets.config.HF_HUB_OFFLINE and hub_answers())
    try:
        if online:
            return datasets.load_dataset(hub, config, split=split).to_list()
        with _without_network():
            return _read_cache(hub, config, split)
    # A RuntimeError: the data set comes with a script, which is not run.
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        reason = " ".join(str(error).split())[:200] if online else "no connection, no stored copy"
        raise InputError(
            f"{hub} (configuration {config!r}, split {split!r}) can't be read from the hub "
            f"({reason}). Give a folder that holds {name}.jsonl or {name}.jsonl.gz: --data.root DIR"
        ) from error


def _read_cache(hub: str, config: str, split: str) -> list[dict[str, Any]]:
    """Read what `load_dataset` has prepared, else a snapshot that was only downloaded."""
    import datasets
    from huggingface_hub import snapshot_download

    try:
        return datasets.load_dataset(hub, config, split=split).to_list()
    except (OSError, ValueError):
        folder = snapshot_download(hub, repo_type="dataset", local_files_only=True)
        return datasets.load_dataset(folder, config, split=split).to_list()


@contextmanager
def _without_network() -> Iterator[None]:
    """Keep `datasets` from its five retries (23 s a split) when there is no connection."""
    import datasets

    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before
