"""A long text as tokens, window by window: those of the whole text, without having it whole.

What a tokenizer makes of a place depends on what stands near it. Neighbouring windows overlap, and
one takes over from the other where both have made the same tokens for a thousand characters; where
they have not, the two become one window.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

__all__ = ["Tokenised", "Window", "merged", "tokenise", "windows_of"]

#: Characters of a window, and how far it reaches into its neighbours.
WIDTH, OVERLAP = 1 << 18, 1 << 11


class Window(NamedTuple):
    """A part of a text.

    Args:
        start: Where it begins in the text, in characters.
        text: Its characters.
    """

    start: int
    text: str


class Tokenised(NamedTuple):
    """A window as tokens.

    Args:
        window: The window.
        ids: Its tokens, ``(tokens,)``.
        places: First character of each, in the text, ``(tokens,)``.
    """

    window: Window
    ids: np.ndarray
    places: np.ndarray


def windows_of(
    texts: Iterable[str], joint: str, width: int = WIDTH, overlap: int = OVERLAP
) -> Iterator[Window]:
    """Cut texts that are joined into windows; few of them are in memory at a time.

    Window n begins ``overlap`` before character ``n * width`` and ends as much behind the beginning
    of the next; the last one ends with the text.

    Args:
        texts: The texts.
        joint: What stands between two of them.
        width: Characters from one window to the next.
        overlap: Characters, at most half of ``width``.
    """
    start, number, size = 0, 0, 0
    held: list[str] = []
    for piece in _pieces(texts, joint, width):
        held.append(piece)
        size += len(piece)
        while start + size >= (number + 1) * width + overlap:
            text = "".join(held)
            number += 1
            stop, again = number * width + overlap, number * width - overlap
            yield Window(start, text[: stop - start])
            held, size, start = [text[again - start :]], start + size - again, again
    yield Window(start, "".join(held))


def _pieces(texts: Iterable[str], joint: str, width: int) -> Iterator[str]:
    """Give the characters of the joined texts, some at a time."""
    for number, text in enumerate(texts):
        if number:
            yield joint
        for start in range(0, len(text), width):
            yield text[start : start + width]


def tokenise(tokenizer: Any, window: Window) -> Tokenised:
    """Return a window's tokens, without special ones that no text has."""
    encoded = tokenizer(
        window.text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
    )
    places = [left for left, _ in encoded["offset_mapping"]]
    return Tokenised(
        window, np.array(encoded["input_ids"], np.int32), np.array(places, np.int64) + window.start
    )


def merged(
    windows: Iterable[Tokenised],
    again: Callable[[Window], Tokenised],
    overlap: int = OVERLAP,
) -> Iterator[np.ndarray]:
    """Give the tokens of the whole text, some at a time.

    Args:
        windows: Of ``windows_of``, in order.
        again: Tokenises two windows that have become one.
        overlap: As of ``windows_of``.
    """
    left: Tokenised | None = None
    first = 0  # of what is still to be given of the left one
    for right in windows:
        if left is None:
            left = right
            continue
        found = _takes_over(left, right, right.window.start + overlap, overlap)
        if found is None:
            told = left.ids[:first]
            start, text = left.window
            more = right.window.text[start + len(text) - right.window.start :]
            left = again(Window(start, text + more))
            assert np.array_equal(left.ids[:first], told), "a far place has changed a token"
            continue
        stop, begin = found
        yield left.ids[first:stop]
        left, first = right, begin
    if left is not None:
        yield left.ids[first:]


def _takes_over(
    left: Tokenised, right: Tokenised, border: int, overlap: int
) -> tuple[int, int] | None:
    """Return the first token of the right window that counts, by its number in both.

    Returns:
        None where the two do not agree behind the border.
    """
    if not (_rises(left.places) and _rises(right.places)):
        return None
    stop, end = map(int, np.searchsorted(left.places, (border, border + overlap // 2)))
    if stop == end:
        return None
    begin, last = map(
        int, np.searchsorted(right.places, (left.places[stop], border + overlap // 2))
    )
    is_same = np.array_equal(left.ids[stop:end], right.ids[begin:last]) and np.array_equal(
        left.places[stop:end], right.places[begin:last]
    )
    return (stop, begin) if is_same else None


def _rises(places: np.ndarray) -> bool:
    return bool((places[1:] >= places[:-1]).all())
