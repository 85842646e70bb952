"""All answers of examples encoded, as they are scored: a small set in memory, a large one once.

The answers of an example share a row of tokens where that is not too long. A large set lies in a
file of the cache, as rows that are trained on do; how long its rows are is read without them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from etw_lightning.data.encode import Encoder, shared_pair
from etw_lightning.data.encode_many import do_many
from etw_lightning.data.kept_rows import is_small, keep
from etw_lightning.data.stored_rows import (
    ROW_KINDS,
    Kind,
    Stored,
    StoredRows,
    columns_of,
    rows_in,
    write_rows,
    write_stored,
)
from etw_lightning.schema import EncodedRow, Example

__all__ = ["AnswerRow", "Numbered", "keep_answers", "keep_prompts", "numbers_of"]

#: An example and its number in its set.
Numbered = tuple[int, Example]


class AnswerRow(NamedTuple):
    """An answer as it is scored.

    Args:
        number: Number of its example in the set.
        field: Field of ``Record`` that its value belongs to.
        place: Place in that field.
        row: Its tokens and labels.
        spans: Of a gold answer, characters of each label; None for others.
        text: Of a gold answer, as ``Encoder.scored_text``.
        begins: 1 for the first of the answers that share a row, else 0.
        width: Tokens of the row they share.
        is_chain: 1 if nothing branches in it, else 0.
        last: Place of its last label.
    """

    number: int
    field: str
    place: int
    row: EncodedRow
    spans: tuple[tuple[int, int], ...] | None
    text: str | None
    begins: int
    width: int
    is_chain: int
    last: int


_NUMBERS = ("number", "place", "begins", "width", "is_chain", "last")
_KINDS: Mapping[str, Kind] = {
    **ROW_KINDS,
    **dict.fromkeys(_NUMBERS, "number"),
    "field": "text",
    "spans": "numbers",
    "text": "text",
}


class StoredAnswers(Stored[AnswerRow]):
    """Answers of a folder of the cache."""

    def _made(self, columns: Mapping[str, list[Any]]) -> list[AnswerRow]:
        spans = [None if flat is None else _pairs(flat) for flat in columns["spans"]]
        rest = {name: columns[name] for name in (*_NUMBERS, "field", "text")}
        rest |= {"row": rows_in(columns), "spans": spans}
        return list(map(AnswerRow, *(rest[name] for name in AnswerRow._fields)))


def _pairs(flat: Sequence[int]) -> tuple[tuple[int, int], ...]:
    return tuple(map(shared_pair, flat[::2], flat[1::2]))


def _columns(some: Sequence[AnswerRow]) -> dict[str, Any]:
    """Return answers as columns."""
    names = (*_NUMBERS, "field", "text")
    flat = [None if one.spans is None else [*chain.from_iterable(one.spans)] for one in some]
    found = {name: [getattr(one, name) for one in some] for name in names}
    return {**columns_of([one.row for one in some]), **found, "spans": flat}


def numbers_of(answers: Sequence[AnswerRow], name: str) -> np.ndarray:
    """Return one of the numbers of each answer, ``(answers,)``."""
    if isinstance(answers, StoredAnswers):
        return answers.numbers(name)
    return np.array([getattr(one, name) for one in answers], np.int32)


def keep_answers(
    examples: Sequence[Example],
    encoder: Encoder,
    lay_out: Callable[[list[Numbered]], list[AnswerRow]],
    words: str,
    code: tuple[str, ...],
) -> Sequence[AnswerRow] | None:
    """Return all answers of a large set, from the cache; None of a small one.

    Args:
        examples: The set.
        encoder: What encodes it.
        lay_out: Makes the answers of some hundreds of examples.
        words: What is shown with the progress.
        code: Modules that decide what it makes.

    Raises:
        InputError: As ``lay_out``, of the first row that it refuses; if the cache can't be written.
    """
    if _is_small(examples):
        return None

    def write(draft: Path) -> None:
        parts = do_many(lay_out, enumerate(examples), len(examples), words)
        write_stored(draft, _KINDS, chain.from_iterable(parts), _columns, {})

    return keep(["answers", _digest(examples)], encoder, write, StoredAnswers, code)


def keep_prompts(
    examples: Sequence[Example],
    encoder: Encoder,
    encode: Callable[[list[Example]], list[EncodedRow]],
    words: str,
    code: tuple[str, ...],
) -> Sequence[EncodedRow] | None:
    """Return all prompts of a large set, as rows without labels; None of a small one.

    Args:
        examples: The set.
        encoder: What encodes it.
        encode: Makes the prompts of some hundreds of examples.
        words: What is shown with the progress.
        code: Modules that decide what it makes.

    Raises:
        InputError: As ``keep_answers``.
    """
    if _is_small(examples):
        return None

    def write(draft: Path) -> None:
        parts = do_many(encode, examples, len(examples), words)
        write_rows(draft, chain.from_iterable(parts), {})

    return keep(["prompts", _digest(examples)], encoder, write, StoredRows, code)


def _is_small(examples: Sequence[Example]) -> bool:
    return is_small(len(examples), sum(map(len, _texts(examples))))


def _texts(examples: Iterable[Example]) -> Iterator[str]:
    """Give all that is scored of examples."""
    for one in examples:
        yield one.answer
        yield one.paraphrased_answer or ""
        yield from one.perturbed_answers
        yield from one.choices


def _digest(examples: Sequence[Example]) -> str:
    """Hash examples as far as they decide what is scored."""
    digest = hashlib.sha256()
    for one in examples:
        asked = (one.id, one.question, one.verbatim, one.turns, one.labels_turns, one.lead)
        answers = (one.answer, one.paraphrased_answer, one.perturbed_answers, one.choices)
        digest.update(repr((asked, answers)).encode())
    return digest.hexdigest()
