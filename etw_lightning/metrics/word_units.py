"""Which word of an answer each of its tokens belongs to."""

from __future__ import annotations

import re
from collections.abc import Sequence

__all__ = ["NO_WORD", "word_numbers"]

#: The number of a token that belongs to no word.
NO_WORD = -1

#: Letters, digits and underscores, joined by single apostrophes and hyphens: ``Al-Kuwaiti's``.
_WORD = re.compile(r"\w+(?:['\u2019\u2010-]\w+)*")


def word_numbers(text: str, spans: Sequence[tuple[int, int]]) -> tuple[int, ...]:
    """Say which word of a text each token belongs to.

    A word is a run of letters and digits, of any script, that single apostrophes and hyphens may
    join. A token belongs to the first word that it has a character of, however many spaces and
    signs it has besides; one of spaces and signs alone, and one without characters, such as the
    end of an answer, belongs to none. (One without characters amid a word, as some tokenizers
    have of a letter of several bytes, belongs to that word.) Scripts without spaces have words as
    long as their runs of letters.

    Args:
        text: The text that the characters are counted in.
        spans: Characters of each token, ends exclusive, ``(N,)``.

    Returns:
        The number of each token's word in the text, from 0; ``NO_WORD`` for none, ``(N,)``.

    Example:
        >>> word_numbers("Basil Al-Kuwaiti.", [(0, 3), (3, 5), (5, 9), (9, 16), (16, 17), (17, 17)])
        (0, 0, 1, 1, -1, -1)
    """
    of_character = [NO_WORD] * (len(text) + 1)
    for number, found in enumerate(_WORD.finditer(text)):
        of_character[found.start() : found.end()] = [number] * (found.end() - found.start())

    def number_of(start: int, stop: int) -> int:
        if start == stop:
            is_amid = start > 0 and of_character[start - 1] == of_character[start]
            return of_character[start] if is_amid else NO_WORD
        return next((one for one in of_character[start:stop] if one != NO_WORD), NO_WORD)

    return tuple(number_of(start, stop) for start, stop in spans)
