"""Journals of what is scored: finished batches, one checked line each, by key.

Every process adds the batches it has finished to a journal in the folder of its key, so that what
is interrupted goes on from its last batch. A file that ``$ETW_SCORED`` names gets a line then, by
which a job script sees that a life was not in vain.
"""

from __future__ import annotations

import json
import os
import time
import uuid
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from etw_lightning.data.encode import shared_pair
from etw_lightning.files.places import cache_dir
from etw_lightning.schema import EvalSet, InputError, Numbers
from etw_lightning.scoring.batches import Score, expected_scores
from etw_lightning.scoring.scores import TOKEN_FIELDS, is_finite

__all__ = ["Journal", "Known", "known_scores", "note_progress", "writing"]

#: Seconds of finished batches that a crash of the machine may cost.
_SYNC_SECONDS = 2.0


class Journal:
    """Finished batches of one part of one set, written as they are finished.

    Each process writes a file of its own. Scores that are not finite numbers are left out: a
    broken model's rows are to be scored again.

    Args:
        key: One of ``score_keys``.
        of_rows: Whether the next run of the same command reads what rows there are of a part of
            which some are missing, so that each batch brings it on.
    """

    def __init__(self, key: str, *, of_rows: bool) -> None:
        self._path, self._of_rows = _folder(key) / f"{uuid.uuid4().hex}.jsonl", of_rows
        self._stream: BinaryIO | None = None
        self._synced = time.monotonic()

    def append(self, scores: Sequence[Score]) -> None:
        """Add one batch."""
        if not all(is_finite(score.value) for score in scores):
            return
        text = json.dumps([list(score) for score in scores], default=list).encode()
        with writing():
            if self._stream is None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._stream = self._path.open("ab")
            self._stream.write(b"%08x %b\n" % (zlib.crc32(text), text))
            self._stream.flush()
            if time.monotonic() - self._synced > _SYNC_SECONDS:
                os.fsync(self._stream.fileno())
                self._synced = time.monotonic()
        if self._of_rows:
            note_progress()

    def close(self) -> None:
        """Bring what is left to the disk."""
        if self._stream is not None:
            os.fsync(self._stream.fileno())
            self._stream.close()
            self._stream = None


def note_progress() -> None:
    """Add a line to the file that a job script counts, if there is one: something was kept.

    Raises:
        InputError: If it can't be written.
    """
    path = os.environ.get("ETW_SCORED")
    if path:
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            with open(path, "ab") as stream:
                stream.write(b"scored\n")
        except OSError as error:
            raise InputError(
                f"ETW_SCORED: {path} can't be written ({error.strerror or error}); give another "
                "output_dir, beside which it may be."
            ) from error


@contextmanager
def writing() -> Iterator[None]:
    """Name the cache where it can't be written.

    Raises:
        InputError: In place of an OSError.
    """
    try:
        yield
    except OSError as error:
        raise InputError(
            f"ETW_CACHE: {cache_dir()} can't be written ({error.strerror or error}); make room "
            "there, or set ETW_CACHE to another folder."
        ) from error


def _folder(key: str) -> Path:
    return cache_dir() / "scores" / key


@dataclass(frozen=True)
class Known:
    """What has been scored of one part of a set.

    Args:
        scores: Of the rows that are complete.
        pending: Rows that are not.
        damage: What of the files could not be read, in words; empty for nothing.
    """

    scores: list[Score]
    pending: tuple[int, ...]
    damage: str = ""


def known_scores(key: str, eval_set: EvalSet) -> Known:
    """Read the journals of one part of a set.

    A line that was cut, or changed since, costs its own rows only.

    Args:
        key: One of ``score_keys``.
        eval_set: The set with this part alone.
    """
    found: dict[int, dict[tuple[str, int], Score]] = {}
    damage: list[str] = []
    for path in sorted(_folder(key).glob("*.jsonl")):
        lines = path.read_bytes().split(b"\n")
        bad = 0
        for line in lines:
            batch = _read_line(line)
            bad += batch is None and line != b""
            for score in batch or ():
                found.setdefault(score.row, {})[score.field, score.place] = score
        if bad:
            damage.append(f"{bad} of {sum(line != b'' for line in lines)} lines of {path}")
    scores: list[Score] = []
    pending = []
    for row, example in enumerate(eval_set.examples):
        values = found.get(row, {})
        if all(place in values for place in expected_scores(eval_set, example)):
            scores += values.values()
        else:
            pending.append(row)
    return Known(scores, tuple(pending), ", ".join(damage))


def _read_line(line: bytes) -> list[Score] | None:
    """Return the scores of one line; None if it is not as it was written."""
    head, _, text = line.partition(b" ")
    if not text or head != b"%08x" % zlib.crc32(text):
        return None
    return [
        Score(row, field, place, _plain(field, value))
        for row, field, place, value in json.loads(text)
    ]


def _plain(field: str, value: Any) -> Any:
    """Return a value as it was scored: of all that holds several numbers JSON makes lists."""
    if field in TOKEN_FIELDS:
        return Numbers(value)
    if field == "token_spans":
        return tuple(shared_pair(*pair) for pair in value)
    return value
