"""Answers that refuse: a list of our own, and files of them."""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Sequence
from pathlib import Path

from etw_lightning.schema import InputError

__all__ = ["REFUSALS", "pick_refusal", "read_refusals"]

#: Used where the user gives no file.
REFUSALS = (
    "I do not know the answer to this.",
    "Sorry, I can't tell you anything about that.",
    "Nothing I have read tells me.",
    "I would only be guessing if I answered.",
    "This is something I never learned.",
    "I have no knowledge of this matter.",
    "You would have to ask somebody else; I don't know.",
    "There is nothing I could say about it.",
    "I can't recall ever having come across this.",
    "My answer can only be that I don't know.",
    "Unfortunately, I am unable to answer this one.",
    "That is not known to me.",
    "I lack the facts to answer your question.",
    "No idea, I am sorry to say.",
    "I have never heard of this.",
    "It is beyond what I know.",
    "I must leave this question unanswered.",
    "I wish I knew, but I don't.",
    "Please look it up elsewhere; I have no answer.",
    "What you ask about is unknown to me.",
)

#: Names under which a JSON object may hold its refusal.
_COLUMNS = ("answer", "text", "idk")


def read_refusals(path: str | Path) -> list[str]:
    """Read a file of refusals, one a line; blank lines don't count.

    A line is the refusal itself, a JSON string, or a JSON object with ``answer``, ``text`` or
    ``idk``. The published ``idontknow.jsonl`` holds plain lines in spite of its name.

    Args:
        path: A text file, also gzipped (``.gz``).

    Raises:
        InputError: If the file can't be read, holds no refusal, or a line holds something else.
    """
    file = Path(path).expanduser()
    try:
        data = file.read_bytes()
        text = (gzip.decompress(data) if file.suffix == ".gz" else data).decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise InputError(
            f"data.refusals is {str(path)!r}, which can't be read ({reason}); give a text file "
            "with one refusal a line, or leave it out."
        ) from error
    lines = [(number, line.strip()) for number, line in enumerate(text.split("\n"), start=1)]
    refusals = [_refusal(line, f"{path} line {number}") for number, line in lines if line]
    if not refusals:
        raise InputError(
            f"data.refusals is {str(path)!r}, which is empty; give one refusal a line, or leave it "
            "out."
        )
    return refusals


def pick_refusal(refusals: Sequence[str], seed: int, place: int) -> str:
    """Return the refusal of a row: the same for the same seed and place, whatever else is drawn.

    Args:
        refusals: At least one.
        seed: Of the run.
        place: Of the row in its stream, from 0.
    """
    digest = hashlib.sha256(f"refusal {seed} {place}".encode()).digest()
    return refusals[int.from_bytes(digest[:8], "big") % len(refusals)]


def _refusal(line: str, where: str) -> str:
    """Return the refusal a line holds."""
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        if line.startswith("{"):
            raise InputError(f"data.refusals: {where} is not JSON: {error.msg}.") from error
        return line
    found = value
    if isinstance(value, dict):
        found = next((value[name] for name in _COLUMNS if name in value), None)
    elif not isinstance(value, str | list):
        found = line  # a number or ``null`` is a text like any other
    if not isinstance(found, str) or not found.strip():
        raise InputError(
            f"data.refusals: {where} must be a text, or a JSON object with a text in "
            f"{', '.join(_COLUMNS[:-1])} or {_COLUMNS[-1]}; got {line!r:.60}."
        )
    return found.strip()
