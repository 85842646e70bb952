"""Encoded rows in an Arrow file, which is mapped: a row is in memory while somebody looks at it."""

from __future__ import annotations

import bisect
import json
import zlib
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, overload

import numpy as np

from etw_lightning.schema import EncodedRow

__all__ = [
    "ROW_KINDS",
    "Kind",
    "Sizes",
    "Stored",
    "StoredRows",
    "columns_of",
    "longest",
    "rows_in",
    "sizes",
    "write_rows",
    "write_stored",
]

#: What a column holds of each item.
Kind = Literal["text", "number", "numbers"]
_Item = TypeVar("_Item")

_ROWS, _ABOUT = "rows.arrow", "about.json"
#: Rows that are written, and read, together.
_TOGETHER = 512


class Sizes(NamedTuple):
    """Numbers of each of some rows, ``(rows,)``.

    Args:
        num_tokens: Tokens.
        num_labels: Labelled tokens.
        num_lost: Labels lost to ``max_length``.
    """

    num_tokens: np.ndarray
    num_labels: np.ndarray
    num_lost: np.ndarray


#: The columns of rows.
ROW_KINDS: Mapping[str, Kind] = {
    "id": "text",
    "input_ids": "numbers",
    "labels": "numbers",
    **dict.fromkeys(Sizes._fields, "number"),
}


class Stored(Sequence[_Item]):
    """Items of a folder that ``write_stored`` has written.

    The file is an Arrow stream, as ``datasets.Dataset.from_file`` reads it too.

    Args:
        folder: The folder.

    Raises:
        ValueError: If it was not written whole, or has changed since.
        OSError: If it can't be read.
    """

    def __init__(self, folder: Path) -> None:
        import pyarrow as pa

        self.folder = folder
        about = json.loads((folder / _ABOUT).read_bytes())
        if not isinstance(about, dict) or about.get("checksum") != _checksum(folder / _ROWS):
            raise ValueError("its checksum is another")
        #: What was said of the items when they were written.
        self.said: dict[str, Any] = about["said"]
        with pa.memory_map(str(folder / _ROWS)) as source:
            self._batches = pa.ipc.open_stream(source).read_all().to_batches()
        ends = np.cumsum([batch.num_rows for batch in self._batches]).tolist()
        self._starts = [0, *ends]

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.folder,)

    def __len__(self) -> int:
        return int(self._starts[-1])

    @overload
    def __getitem__(self, place: int) -> _Item: ...

    @overload
    def __getitem__(self, place: slice) -> list[_Item]: ...

    def __getitem__(self, place: int | slice) -> _Item | list[_Item]:
        if isinstance(place, slice):
            return [self[number] for number in range(len(self))[place]]
        number = range(len(self))[place]
        batch = bisect.bisect_right(self._starts, number) - 1
        return self._some(batch, number - self._starts[batch], 1)[0]

    def __iter__(self) -> Iterator[_Item]:
        for number, batch in enumerate(self._batches):
            yield from self._some(number, 0, batch.num_rows)

    def _some(self, batch: int, start: int, count: int) -> list[_Item]:
        part = self._batches[batch].slice(start, count)
        return self._made({name: part.column(name).to_pylist() for name in part.schema.names})

    @abstractmethod
    def _made(self, columns: Mapping[str, list[Any]]) -> list[_Item]:
        """Return the items that some columns hold."""

    def numbers(self, name: str) -> np.ndarray:
        """Return a column of numbers, read without the others, ``(items,)``."""
        parts = [np.zeros(0, np.int32), *(batch.column(name) for batch in self._batches)]
        return np.concatenate(parts)


class StoredRows(Stored[EncodedRow]):
    """Rows of a folder that ``write_rows`` has written."""

    def _made(self, columns: Mapping[str, list[Any]]) -> list[EncodedRow]:
        return rows_in(columns)

    @property
    def sizes(self) -> Sizes:
        """Numbers of each row, read without the rows."""
        return Sizes(*map(self.numbers, Sizes._fields))


def rows_in(columns: Mapping[str, list[Any]]) -> list[EncodedRow]:
    """Return the rows that the columns of ``columns_of`` hold."""
    found = (columns[name] for name in ("id", "input_ids", "labels", "num_lost"))
    return [
        EncodedRow(name, tuple(ids), tuple(labels), num)
        for name, ids, labels, num in zip(*found, strict=True)
    ]


def columns_of(rows: Sequence[EncodedRow]) -> dict[str, Any]:
    """Return rows as columns, of the kinds of ``ROW_KINDS``."""
    return {
        "id": [row.id for row in rows],
        "input_ids": [row.input_ids for row in rows],
        "labels": [row.labels for row in rows],
        **sizes(rows)._asdict(),
    }


def write_rows(folder: Path, rows: Iterable[EncodedRow], said: dict[str, Any]) -> None:
    """Write rows as they come.

    Args:
        folder: An empty folder.
        rows: At least one.
        said: As of ``write_stored``.
    """
    write_stored(folder, ROW_KINDS, rows, columns_of, said)


def write_stored(
    folder: Path,
    kinds: Mapping[str, Kind],
    items: Iterable[_Item],
    as_columns: Callable[[Sequence[_Item]], Mapping[str, Any]],
    said: dict[str, Any],
) -> None:
    """Write items as they come.

    Args:
        folder: An empty folder.
        kinds: Names of the columns, and what each holds.
        items: At least one.
        as_columns: Makes columns of some of them.
        said: To be kept beside them, as JSON; read when the last one has been written.
    """
    import pyarrow as pa

    types = {"text": pa.string(), "number": pa.int32(), "numbers": pa.list_(pa.int32())}
    schema = pa.schema({name: types[kind] for name, kind in kinds.items()})
    with pa.OSFile(str(folder / _ROWS), "wb") as sink, pa.ipc.new_stream(sink, schema) as stream:
        for some in _together(items):
            columns = as_columns(some)
            arrays = [pa.array(columns[one.name], one.type) for one in schema]
            stream.write_batch(pa.record_batch(arrays, schema=schema))
    about = {"said": said, "checksum": _checksum(folder / _ROWS)}
    (folder / _ABOUT).write_bytes(json.dumps(about).encode())


def sizes(rows: Sequence[EncodedRow]) -> Sizes:
    """Return the numbers of each row; of stored ones without looking at them."""
    if isinstance(rows, StoredRows):
        return rows.sizes
    numbers = [(len(row.input_ids), row.num_labels, row.num_lost) for row in rows]
    return Sizes(*np.array(numbers, np.int32).reshape(-1, 3).T)


def longest(streams: Iterable[Sequence[EncodedRow]]) -> list[EncodedRow]:
    """Return the longest row of each stream that has any, of equal ones the first."""
    return [rows[int(sizes(rows).num_tokens.argmax())] for rows in streams if rows]


def _together(items: Iterable[_Item]) -> Iterator[list[_Item]]:
    some: list[_Item] = []
    for item in items:
        some.append(item)
        if len(some) == _TOGETHER:
            yield some
            some = []
    if some:
        yield some


def _checksum(path: Path) -> int:
    """Return the CRC-32 of a file."""
    found = 0
    with path.open("rb") as stream:
        while block := stream.read(1 << 16):
            found = zlib.crc32(block, found)
    return found
