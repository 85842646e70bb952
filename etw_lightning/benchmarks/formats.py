"""Files and folders of rows in the formats people have; each is told by the end of its name."""

from __future__ import annotations

import csv
import functools
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from etw_lightning.files.places import is_below
from etw_lightning.schema import InputError

__all__ = [
    "FORMATS",
    "SUFFIXES",
    "is_saved",
    "iter_file",
    "read_file",
    "read_json",
    "rows_of",
    "suffix_of",
]

Rows = list[dict[str, Any]]

#: Ends of the names of files that are read, the ones looked for first in front.
SUFFIXES = (
    ".jsonl",
    ".jsonl.gz",
    ".json",
    ".json.gz",
    ".csv",
    ".csv.gz",
    ".tsv",
    ".tsv.gz",
    ".parquet",
)
#: What is read, for messages.
FORMATS = ".jsonl or .jsonl.gz, .json, .csv, .tsv, .parquet, or a folder of save_to_disk"

#: The way out where a file can't be read.
_ANEW = "copy it anew, or give another file"
#: Rows of a table that are read together.
_TOGETHER = 1000
_DICT, _STATE = "dataset_dict.json", "state.json"


def suffix_of(name: str) -> str:
    """Return which of ``SUFFIXES`` a name ends in; empty if in none.

    Example:
        >>> suffix_of("mine.jsonl.gz"), suffix_of("mine.txt")
        ('.jsonl.gz', '')
    """
    return next((end for end in sorted(SUFFIXES, key=len)[::-1] if name.endswith(end)), "")


def is_saved(path: Path) -> bool:
    """Tell whether a folder was written by ``save_to_disk``."""
    return (path / _STATE).is_file() or (path / _DICT).is_file()


def read_file(path: Path) -> Rows:
    """Return the rows of a file, or of a folder that ``save_to_disk`` has written.

    Args:
        path: As of ``iter_file``.

    Raises:
        InputError: As ``iter_file``.
    """
    return list(iter_file(path))


def iter_file(path: Path) -> Iterator[dict[str, Any]]:
    """Give the rows of a file one by one; of lines and cells, few are in memory at a time.

    Args:
        path: What ends in one of ``SUFFIXES``, or such a folder. ``.json`` holds a list of objects
            or one object a line. A cell of ``.csv`` is a text, whatever it looks like; an empty
            one counts as missing.

    Raises:
        InputError: If it can't be read or has no rows; names the file and, if it is one row's
            fault, the line.
    """
    read = _read_saved if path.is_dir() else _READERS[suffix_of(path.name).removesuffix(".gz")]
    is_empty = True
    for row in read(path):
        is_empty = False
        yield row
    if is_empty:
        raise InputError(f"{path} has no rows; give at least one.")


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """Open a file, unpacked; what can't be read of it is one line."""
    try:
        with path.open("rb") as stream:
            yield cast(BinaryIO, gzip.GzipFile(fileobj=stream)) if _is_packed(path) else stream
    except UnicodeDecodeError:
        _text(path)  # says where
        raise
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} can't be read: {error}; {_ANEW}.") from error


def _is_packed(path: Path) -> bool:
    return path.suffix == ".gz"


def _lines(path: Path) -> Iterator[str]:
    """Give the lines of a file; only a line feed ends one."""
    with _opened(path) as stream:
        for number, line in enumerate(stream):
            yield line.decode("utf-8" if number else "utf-8-sig")


def _content(path: Path) -> bytes:
    try:
        data = path.read_bytes()
        return gzip.decompress(data) if _is_packed(path) else data
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} can't be read: {error}; {_ANEW}.") from error


def _text(path: Path) -> str:
    data = _content(path)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise InputError(
            f"{path} line {line} is not UTF-8: {error.reason}; save it as UTF-8."
        ) from error


def _read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Read one JSON object a line; blank lines don't count."""
    for number, line in enumerate(_lines(path), start=1):
        if line.strip():
            where = f"{path} line {number}"
            yield _object(_parse(line, where), where)


def _read_json(path: Path) -> Iterable[dict[str, Any]]:
    """Read a list of objects, or one object a line."""
    first = next((line.lstrip() for line in _lines(path) if line.strip()), "")
    if not first.startswith("["):
        return _read_lines(path)
    return [_object(row, f"{path} row {n}") for n, row in enumerate(read_json(path))]


def read_json(path: Path) -> Any:
    """Return what a file holds that is one piece of JSON.

    Raises:
        InputError: If it can't be read or is not.
    """
    return _parse(_text(path), str(path))


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=functools.partial(_once, where))
    except json.JSONDecodeError as error:
        raise InputError(f"{where} is not JSON: {error.msg} at column {error.colno}.") from error


def _once(where: str, pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object; refuse a name that stands twice in it, of which one would not be read."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"{where} names {twice!r:.60} twice in one object; take one out.")
    return found


def _object(row: Any, where: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise InputError(f"{where} must be a JSON object with named columns; got {row!r:.60}.")
    return row


def _read_cells(path: Path) -> Iterator[dict[str, Any]]:
    """Read a table with a line of names above; every row must have as many cells as there are."""
    delimiter = "\t" if ".tsv" in path.suffixes else ","
    names: list[str] = []
    with _opened(path) as stream:
        text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
        # Not by pandas, which reads the text "NA" as nothing and moves the cells of rows too long.
        reader = csv.reader(text, delimiter=delimiter, strict=True)
        try:
            for cells in reader:
                if not cells:
                    continue
                if not names:
                    names = _names(cells, path)
                elif len(cells) != len(names):
                    raise InputError(
                        f"{path} line {reader.line_num} has {len(cells)} cells, the first line "
                        f"names {len(names)} columns; quote texts that hold {delimiter!r} or a "
                        "line's end."
                    )
                else:
                    yield {n: cell or None for n, cell in zip(names, cells, strict=True)}
        except csv.Error as error:
            raise InputError(
                f"{path} line {reader.line_num} is no line of cells: {error}."
            ) from error


def _names(cells: list[str], path: Path) -> list[str]:
    names = [cell.strip() for cell in cells]
    if "" in names or len(set(names)) < len(names):
        raise InputError(
            f"{path} line 1 must name each column once; got {', '.join(map(repr, names))}."
        )
    if len(names) == 1 and any(other in names[0] for other in ";\t|"):
        raise InputError(
            f"{path} line 1 names one column, {names[0]!r}; cells are told apart by commas in "
            ".csv and by tabs in .tsv."
        )
    return names


def _read_parquet(path: Path) -> Iterator[dict[str, Any]]:
    def load() -> Any:
        import pyarrow.parquet

        # Not by datasets, which takes the name of a file for a pattern.
        return pyarrow.parquet.read_table(path)

    return _loaded(path, load)


def _read_saved(path: Path) -> Iterator[dict[str, Any]]:
    def load() -> Any:
        from datasets import DatasetDict, load_from_disk

        _check_names(path)
        found = load_from_disk(str(path))
        if not isinstance(found, DatasetDict):
            return found.with_format("arrow")[:]
        if len(found) != 1:
            raise InputError(
                f"{path} holds {', '.join(found) or 'no split'}; name one of them behind the "
                f"folder, as in {path.name}/{next(iter(found), 'train')}."
            )
        return next(iter(found.values())).with_format("arrow")[:]

    return _loaded(path, load)


def _check_names(folder: Path) -> None:
    """Refuse a saved folder whose lists name what lies outside of it."""
    if (folder / _DICT).is_file():
        names = [*read_json(folder / _DICT)["splits"]]
    else:
        names = [one["filename"] for one in read_json(folder / _STATE)["_data_files"]]
    for name in names:
        place = folder / str(name)
        if not is_below(name) or not place.resolve().is_relative_to(folder.resolve()):
            raise InputError(
                f"{folder} names {name!r:.60}, which is not in it; give a folder that save_to_disk "
                "has written, with its own files."
            )
        if (place / _STATE).is_file():
            _check_names(place)


def _loaded(path: Path, load: Callable[[], Any]) -> Iterator[dict[str, Any]]:
    """Return the rows of the Arrow table that ``load`` gives."""
    from datasets.exceptions import DatasetsError
    from datasets.utils import logging

    shows, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity(logging.CRITICAL)
    try:
        table = load()
    except InputError:
        raise
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        DatasetsError,
    ) as error:
        cause = error.__cause__ or error
        reason = " ".join(str(cause).split())[:200] or type(cause).__name__
        raise InputError(f"{path} can't be read: {reason}; {_ANEW}.") from error
    finally:
        logging.set_verbosity(level)
        if shows:
            logging.enable_progress_bar()
    return rows_of(table)


def rows_of(table: Any) -> Iterator[dict[str, Any]]:
    """Give the rows of an Arrow table; some of them are in memory at a time."""
    for part in table.to_batches(_TOGETHER):
        yield from part.to_pylist()


_READERS: Mapping[str, Callable[[Path], Iterable[dict[str, Any]]]] = {
    ".jsonl": _read_lines,
    ".json": _read_json,
    ".csv": _read_cells,
    ".tsv": _read_cells,
    ".parquet": _read_parquet,
}
