"""Which word of an answer each of its tokens belongs to."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import cache
from itertools import chain

__all__ = ["NO_WORD", "marks", "word_numbers"]

#: The number of a token that belongs to no word.
NO_WORD = -1

#: Places of Unicode where marks are, and what joins or parts letters of a word without being seen.
_MARKED, _UNSEEN = (range(0x300, 0x20000), range(0xE0100, 0xE01F0)), "\u200c\u200d"


@cache
def marks() -> str:
    """Return all marks of Unicode: accents and vowels that stand behind their letter."""
    places = map(chr, chain(*_MARKED))
    return "".join(one for one in places if unicodedata.category(one).startswith("M"))


@cache
def _words() -> re.Pattern[str]:
    """Return what finds letters, digits and underscores, each with its marks.

    They are joined by single apostrophes and hyphens: ``Al-Kuwaiti's``. Python counts no mark as
    part of a word: not the vowels of Hindi, nor an accent that stands behind its letter.
    """
    run = rf"\w[\w{marks()}{_UNSEEN}]*"
    return re.compile(rf"{run}(?:['\u2019\u2010-]{run})*")


def word_numbers(text: str, spans: Sequence[tuple[int, int]]) -> tuple[int, ...]:
    """Say which word of a text each token belongs to.

    A word is a run of letters and digits with their marks, of any script, that single apostrophes
    and hyphens may join. A token belongs to the first word that it has a character of, however many
    spaces and signs it has besides; one of spaces and signs alone, and one without characters, such
    as the end of an answer, belongs to none. (One without characters amid a word, as some
    tokenizers have of a letter of several bytes, belongs to that word.) Scripts without spaces have
    words as long as their runs of letters.

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
    for number, found in enumerate(_words().finditer(text)):
        of_character[found.start() : found.end()] = [number] * (found.end() - found.start())

    def number_of(start: int, stop: int) -> int:
        if start == stop:
            is_amid = start > 0 and of_character[start - 1] == of_character[start]
            return of_character[start] if is_amid else NO_WORD
        return next((one for one in of_character[start:stop] if one != NO_WORD), NO_WORD)

    return tuple(number_of(start, stop) for start, stop in spans)
