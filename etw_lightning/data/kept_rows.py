"""The rows of a split encoded: a small one in memory, a large one once, into a file that is kept.

The file lies in the cache by what decides its rows: what they say, the tokenizer, the template, the
lengths, our own code. A later start reads the rows again, as it checks them and must know what they
say, and encodes none.
"""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from itertools import chain, groupby, islice
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, NamedTuple, TypeVar

from etw_lightning.data.encode import Encoder, is_raw
from etw_lightning.data.encode_many import cut_each, cut_many, encode_each, encode_many
from etw_lightning.data.stored_rows import StoredRows, write_rows
from etw_lightning.files.code_hash import code_hash
from etw_lightning.files.places import cache_dir
from etw_lightning.notices import warn_first
from etw_lightning.schema import EncodedRow, Example, InputError

__all__ = ["SMALL", "SplitRows", "encode_split", "is_small", "keep"]

_Kept = TypeVar("_Kept")

#: Rows, and characters of their answers, up to which a split is encoded at each start and held in
#: memory.
SMALL, _SMALL_TEXT = 5000, 8_000_000
#: Modules whose text decides what a row becomes, or how it is kept.
_CODE = (
    "data.encode",
    "data.row_layout",
    "data.rendering",
    "data.encode_many",
    "data.joined_text",
    "data.kept_rows",
    "data.stored_rows",
)


class SplitRows(NamedTuple):
    """A split as it is trained on.

    Args:
        rows: Its rows.
        sets: Name and number of rows of each set that it is made of, in order.
    """

    rows: Sequence[EncodedRow]
    sets: list[tuple[str, int]]


class _Found(NamedTuple):
    """A set as it was read.

    Args:
        name: Its name.
        num_examples: Number of its examples.
        num_characters: Of their answers.
        is_raw: Whether they are raw texts.
    """

    name: str
    num_examples: int
    num_characters: int
    is_raw: bool


def encode_split(
    read: Callable[[], Iterable[Example]],
    encoder: Encoder,
    key: str,
    *,
    whole: str | None = None,
    look: Callable[[Example], None] = lambda _: None,
) -> SplitRows:
    """Return the encoded rows of a split.

    Args:
        read: Gives its examples, the same each time it is called.
        encoder: What encodes them.
        key: Configuration key that errors name.
        whole: Take all examples for one set of this name; None for the sets their ids name.
        look: Is shown each example once.

    Raises:
        InputError: As ``Encoder.encode``; if a set has no row to train on, or the cache can't be
            written.
    """

    def set_name(example: Example) -> str:
        return example.id.rpartition("/")[0] if whole is None else whole

    examples = iter(read())
    head, is_whole = _head(examples)
    if is_whole:
        split = SplitRows([], [])
        for name, group in groupby(head, set_name):
            some = list(group)
            texts = (example.answer for example in some)
            made = cut_each(texts, encoder, name) if is_raw(some) else encode_each(some, encoder)
            _check_any(len(made), key, name)
            split.sets.append((name, len(made)))
            split.rows.extend(made)  # type: ignore[attr-defined]
        for example in head:
            look(example)
        return split
    digest = hashlib.sha256()
    sets = []
    for name, group in groupby(_hashed(chain(head, examples), digest), set_name):
        count, size, all_raw = 0, 0, True
        for example in group:
            count, all_raw = count + 1, all_raw and example.question is None
            size += len(example.answer)
            look(example)
        sets.append(_Found(name, count, size, all_raw))
    del head
    said: dict[str, Any] = {"sets": []}
    make = functools.partial(_made, read, encoder, key, sets, digest.hexdigest(), said)

    def write(draft: Path) -> None:
        write_rows(draft, make(), said)

    rows = keep([digest.hexdigest(), sets], encoder, write, StoredRows)
    return SplitRows(rows, [(name, count) for name, count in rows.said["sets"]])


def keep(
    content: Any,
    encoder: Encoder,
    write: Callable[[Path], None],
    opens: Callable[[Path], _Kept],
    code: tuple[str, ...] = (),
) -> _Kept:
    """Return what an encoder makes of something, from the cache; made first, if it is not there.

    Args:
        content: What it is made of, as JSON can have it, or a hash of that.
        encoder: The encoder.
        write: Makes it, in an empty folder.
        opens: Opens such a folder.
        code: Modules that decide it beside those that encode.

    Raises:
        InputError: If the cache can't be written.
    """
    state = [content, encoder.content_key, encoder.truncation, encoder.length_key]
    state += [code_hash((*_CODE, *code)), version("tokenizers"), version("transformers")]
    name = hashlib.sha256(json.dumps(state).encode()).hexdigest()[:24]
    return _kept(cache_dir() / "rows" / name, write, opens)


def is_small(num_rows: int, num_characters: int) -> bool:
    """Tell whether rows are encoded at each start and held in memory.

    Args:
        num_rows: Their number.
        num_characters: Of their answers.
    """
    return num_rows <= SMALL and num_characters <= _SMALL_TEXT


def _head(examples: Iterator[Example]) -> tuple[list[Example], bool]:
    """Return the first examples, up to the one that is too much, and whether they are all."""
    head, size = list[Example](), 0
    for example in examples:
        head.append(example)
        size += len(example.answer)
        if not is_small(len(head), size):
            return head, False
    return head, True


def _hashed(examples: Iterable[Example], digest: Any) -> Iterator[Example]:
    """Pass examples on, each hashed as far as it decides an encoded row."""
    for one in examples:
        said = (one.id, one.question, one.answer, one.verbatim, one.turns, one.labels_turns)
        digest.update(repr((*said, one.lead)).encode())
        yield one


def _made(
    read: Callable[[], Iterable[Example]],
    encoder: Encoder,
    key: str,
    sets: Sequence[_Found],
    expected: str,
    said: dict[str, Any],
) -> Iterator[EncodedRow]:
    """Encode a split set by set; ``said`` comes to hold how many rows each has."""
    digest = hashlib.sha256()
    examples = _hashed(read(), digest)
    for found in sets:
        own = islice(examples, found.num_examples)
        if found.is_raw:
            texts = (example.answer for example in own)
            words = f"encoding {found.name}"
            rows = cut_many(texts, encoder, found.name, found.num_characters, words)
        else:
            rows = encode_many(own, encoder, found.num_examples, f"encoding {found.name}")
        count = 0
        for row in rows:
            count += 1
            yield row
        _check_any(count, key, found.name)
        said["sets"].append((found.name, count))
    if digest.hexdigest() != expected:
        raise InputError(
            f"{key}: the rows changed while they were encoded; give the same command again once "
            "nothing writes to them."
        )


def _check_any(count: int, key: str, split: str) -> None:
    if not count:
        raise InputError(f"{key} is {split!r}, which has no rows to train on.")


def _kept(folder: Path, write: Callable[[Path], None], opens: Callable[[Path], _Kept]) -> _Kept:
    """Return what a folder of the cache holds; made first, if it is not there or damaged.

    Other processes that want the same wait, and read what the first has made.
    """
    stored = _opened(folder, opens)
    if stored is not None:
        return stored
    with _locked(folder):
        stored = _opened(folder, opens)
        if stored is not None:
            return stored
        for left in (folder, *folder.parent.glob(f".{folder.name}.*.draft")):
            shutil.rmtree(left, ignore_errors=True)
        draft = Path(mkdtemp(".draft", f".{folder.name}.", folder.parent))
        try:
            write(draft)
            draft.rename(folder)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        return opens(folder)


def _opened(folder: Path, opens: Callable[[Path], _Kept]) -> _Kept | None:
    try:
        return opens(folder)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        warn_first(f"{folder} can't be read ({reason:.100}); its rows are encoded again.")
        return None


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Let one process make a folder while the others wait for it; name it if it can't be."""
    from filelock import FileLock

    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f".{folder.name}.lock")):
            yield
    except OSError as error:
        raise InputError(
            f"ETW_CACHE: {folder.parent} can't be written ({error.strerror or error}); make room "
            "there, or give another folder."
        ) from error
