"""Encoded rows in an Arrow file, which is mapped: a row is in memory while somebody looks at it."""

from __future__ import annotations

import bisect
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np

from etw_lightning.schema import EncodedRow

__all__ = ["Sizes", "StoredRows", "longest", "sizes", "write_rows"]

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


class StoredRows(Sequence[EncodedRow]):
    """Rows of a folder that ``write_rows`` has written.

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
        #: What was said of the rows when they were written.
        self.said: dict[str, Any] = about["said"]
        with pa.memory_map(str(folder / _ROWS)) as source:
            self._batches = pa.ipc.open_stream(source).read_all().to_batches()
        ends = np.cumsum([batch.num_rows for batch in self._batches]).tolist()
        self._starts = [0, *ends]

    def __reduce__(self) -> tuple[Any, ...]:
        return StoredRows, (self.folder,)

    def __len__(self) -> int:
        return int(self._starts[-1])

    @overload
    def __getitem__(self, place: int) -> EncodedRow: ...

    @overload
    def __getitem__(self, place: slice) -> list[EncodedRow]: ...

    def __getitem__(self, place: int | slice) -> EncodedRow | list[EncodedRow]:
        if isinstance(place, slice):
            return [self[number] for number in range(len(self))[place]]
        number = range(len(self))[place]
        batch = bisect.bisect_right(self._starts, number) - 1
        return self._rows(batch, number - self._starts[batch], 1)[0]

    def __iter__(self) -> Iterator[EncodedRow]:
        for number, batch in enumerate(self._batches):
            yield from self._rows(number, 0, batch.num_rows)

    def _rows(self, batch: int, start: int, count: int) -> list[EncodedRow]:
        part = self._batches[batch].slice(start, count)
        columns = (part.column(name).to_pylist() for name in ("id", "input_ids", "labels"))
        lost = part.column("num_lost").to_pylist()
        return [
            EncodedRow(name, tuple(ids), tuple(labels), num)
            for name, ids, labels, num in zip(*columns, lost, strict=True)
        ]

    @property
    def sizes(self) -> Sizes:
        """Numbers of each row, read without the rows."""
        return Sizes(
            *(
                np.concatenate(
                    [np.zeros(0, np.int32), *(batch.column(name) for batch in self._batches)]
                )
                for name in Sizes._fields
            )
        )


def write_rows(folder: Path, rows: Iterable[EncodedRow], said: dict[str, Any]) -> None:
    """Write rows as they come.

    Args:
        folder: An empty folder.
        rows: At least one.
        said: To be kept beside them, as JSON; read when the last row has been written.
    """
    import pyarrow as pa

    ids = pa.list_(pa.int32())
    kinds = {"id": pa.string(), "input_ids": ids, "labels": ids}
    schema = pa.schema(kinds | {name: pa.int32() for name in Sizes._fields})
    with pa.OSFile(str(folder / _ROWS), "wb") as sink, pa.ipc.new_stream(sink, schema) as stream:
        for some in _together(rows):
            found = sizes(some)
            columns = {
                "id": [row.id for row in some],
                "input_ids": [row.input_ids for row in some],
                "labels": [row.labels for row in some],
                **found._asdict(),
            }
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


def _together(rows: Iterable[EncodedRow]) -> Iterator[list[EncodedRow]]:
    some: list[EncodedRow] = []
    for row in rows:
        some.append(row)
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
