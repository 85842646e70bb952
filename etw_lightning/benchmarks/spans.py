"""Marked characters of an answer, and where they lie in another spacing of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from etw_lightning.schema import InputError

__all__ = ["Annotation", "Span", "moved"]


class Span(NamedTuple):
    """Characters ``start`` to before ``stop`` of an answer."""

    start: int
    stop: int


@dataclass(frozen=True)
class Annotation:
    """The marked characters of one answer.

    Args:
        answer: The answer that was marked.
        spans: What is marked in it; may be nothing.
    """

    answer: str
    spans: tuple[Span, ...]


def moved(annotation: Annotation, answer: str, row: int) -> tuple[Span, ...]:
    """Return an annotation's spans in another spacing of the same text.

    Args:
        annotation: Of a text.
        answer: The text, perhaps with other spaces.
        row: Its number, for messages.

    Raises:
        InputError: If it is another text.
    """
    if annotation.answer == answer:
        return annotation.spans
    letters = [place for place, letter in enumerate(answer) if not letter.isspace()]
    if "".join(annotation.answer.split()) != "".join(answer.split()):
        raise InputError(
            f"data.annotations row {row} marks {annotation.answer!r:.60}, but the answer there is "
            f"{answer!r:.60}; give the file made for data.forget_split."
        )
    moved = []
    for span in annotation.spans:
        first = len("".join(annotation.answer[: span.start].split()))
        last = len("".join(annotation.answer[: span.stop].split())) - 1
        if first <= last:
            moved.append(Span(letters[first], letters[last] + 1))
    return tuple(moved)
