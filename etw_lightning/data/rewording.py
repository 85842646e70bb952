"""Questions asked in other ways: formats, prefixes, paraphrases, files of rewordings."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

from etw_lightning.schema import Example, InputError

__all__ = [
    "FORMATS",
    "Format",
    "formatted",
    "paraphrased",
    "prefixed",
    "read_prefixes",
    "read_questions",
    "with_question",
]

#: How a question can be written: in capitals, in small letters, in quotation marks, as a text that
#: is to be completed, with two letters exchanged in every third long word.
Format = Literal["upper", "lower", "quoted", "completion", "typos"]
#: Every format, in the order of reports.
FORMATS: tuple[Format, ...] = get_args(Format)


def formatted(example: Example, how: Format) -> Example:
    r"""Return a row whose question is written in another way; its answer stays.

    The typos of a row are the same wherever it stands: they are drawn from its id.

    Args:
        example: A row with a question.
        how: One of ``FORMATS``.

    Raises:
        InputError: If the row has no question.

    Example:
        >>> row = Example("forget/0", "In Rome.", "Where was Mara born?")
        >>> formatted(row, "upper").question
        'WHERE WAS MARA BORN?'
        >>> formatted(row, "completion").question
        'Q: Where was Mara born?\nA:'
    """
    ways: Mapping[Format, Callable[[str], str]] = {
        "upper": str.upper,
        "lower": str.lower,
        "quoted": lambda text: f'"{text}"',
        "completion": lambda text: f"Q: {text}\nA:",
        "typos": lambda text: _with_typos(text, example.id),
    }
    return with_question(example, ways[how](_question(example)))


def _with_typos(text: str, key: str) -> str:
    """Exchange two neighbours within every third long word, never its first or last letter."""
    rng = random.Random(key)
    seen = 0

    def swapped(match: re.Match[str]) -> str:
        nonlocal seen
        word = match.group()
        # Two equal letters exchanged are no typo; a word of three letters has one inner letter.
        places = [n for n in range(1, len(word) - 2) if word[n] != word[n + 1]]
        if not places:
            return word
        seen += 1
        if seen % 3 != 1:
            return word
        place = rng.choice(places)
        return word[:place] + word[place + 1] + word[place] + word[place + 2 :]

    return re.sub(r"[^\W\d_]+", swapped, text)


def prefixed(example: Example, prefix: str) -> Example:
    """Return a row with a text before its question, a space between them.

    Raises:
        InputError: If the row has no question.

    Example:
        >>> prefixed(Example("f/0", "In Rome.", "Where was she born?"), "Tell me:").question
        'Tell me: Where was she born?'
    """
    return with_question(example, f"{prefix} {_question(example)}")


def paraphrased(example: Example) -> Example:
    """Return a row with its paraphrased question.

    Raises:
        InputError: If it has none.
    """
    if example.paraphrased_question is None:
        raise InputError(
            f"Row {example.id} has no paraphrased question; give the questions in other words as "
            "a file (questions), or leave the paraphrase out."
        )
    return with_question(example, example.paraphrased_question)


def with_question(example: Example, question: str) -> Example:
    """Return a row with another question; a verbatim one goes on being a finished prompt."""
    return replace(example, question=question)


def _question(example: Example) -> str:
    if example.question is None:
        raise InputError(
            f"Row {example.id} is raw text without a question, which can't be asked in other words."
        )
    return example.question


def read_prefixes(path: str | Path, key: str) -> list[str]:
    """Read prefixes, one a line; blank lines don't count.

    Args:
        path: A text file.
        key: What the user calls it, for errors.

    Raises:
        InputError: If the file can't be read, or holds none.
    """
    lines = [line.strip() for line in _text(path, key).split("\n")]
    found = [line for line in lines if line]
    if not found:
        raise InputError(f"{key} {str(path)!r} holds no prefix; write one a line.")
    return found


def read_questions(path: str | Path, rows: Sequence[Example], key: str) -> list[list[str]]:
    """Read rewordings of questions: JSON lines of ``row`` and ``question`` or ``questions``.

    ``row`` is a row's number from 0, or its id. A row may have several lines.

    Args:
        path: The file.
        rows: The rows that are asked; each must have a question in the file.
        key: What the user calls the file, for errors.

    Returns:
        The questions of each row, in the order of the file.

    Raises:
        InputError: If the file can't be read, a line is something else, names no row, or a row has
            no line.
    """
    places: dict[Any, int] = {number: number for number in range(len(rows))}
    places |= {one.id: number for number, one in enumerate(rows)}
    found: list[list[str]] = [[] for _ in rows]
    for number, line in enumerate(_text(path, key).split("\n"), 1):
        if line.strip():
            row, questions = _read_line(line, f"{key} {str(path)!r}, line {number}")
            if row not in places:
                raise InputError(
                    f"{key} {str(path)!r}, line {number}: there is no row {row!r}; give its "
                    f"number, 0 to {len(rows) - 1}, or its id, such as {rows[0].id!r}."
                )
            found[places[row]] += questions
    missing = [one.id for one, said in zip(rows, found, strict=True) if not said]
    if missing:
        raise InputError(
            f"{key} {str(path)!r} has no question for {len(missing)} of {len(rows)} rows, "
            f"{missing[0]} first; give one for each."
        )
    return found


def _read_line(line: str, where: str) -> tuple[int | str, list[str]]:
    try:
        given = json.loads(line)
    except ValueError as error:
        raise InputError(f"{where}: is no JSON: {error}.") from error
    fields = given if isinstance(given, dict) else {}
    row, said = fields.get("row"), fields.get("questions", fields.get("question"))
    given_ones = said if isinstance(said, list) else [said]
    questions = [one for one in given_ones if isinstance(one, str) and one.strip()]
    is_said = bool(questions) and len(questions) == len(given_ones)
    if not isinstance(row, int | str) or isinstance(row, bool) or not is_said:
        raise InputError(
            f'{where}: must be {{"row": 0, "question": "..."}} or {{"row": 0, "questions": '
            f'["...", "..."]}}; got {line.strip()!r:.60}.'
        )
    return row, questions


def _text(path: str | Path, key: str) -> str:
    try:
        return Path(path).expanduser().read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise InputError(f"{key} {str(path)!r} can't be read: {reason}.") from error
