"""What counts as a word of a text, by the published rule or by Unicode, and whose tokens it has."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import cache, lru_cache
from itertools import chain
from typing import Literal

__all__ = [
    "LARGEST_DROPPED",
    "NO_WORD",
    "WordRule",
    "dropped_share",
    "marks",
    "running_words",
    "unicode_words",
    "word_numbers",
]

#: Whose words ROUGE compares: the published code's, the same without stems, or Unicode's.
WordRule = Literal["published", "unstemmed", "unicode"]
#: Most of a gold text's letters and digits that the published rule may drop.
LARGEST_DROPPED = 0.5

#: The number of a token that belongs to no word.
NO_WORD = -1

#: Places of Unicode where marks are, and what joins or parts letters of a word without being seen.
_MARKED, _UNSEEN = (range(0x300, 0x20000), range(0xE0100, 0xE01F0)), "\u200c\u200d"

_PUBLISHED = frozenset("abcdefghijklmnopqrstuvwxyz0123456789")
#: Classes of Unicode's line breaking (UAX 14) whose letters are written without spaces between
#: words: ideographs and kana, and the scripts of South East Asia.
_UNSPACED = ("ID", "CJ", "SA")


def unicode_words(text: str) -> list[str]:
    """Return the words of a text as Unicode bounds them, caseless.

    Words are the pieces of UAX 29 that hold a letter or digit, composed (NFC) and case-folded;
    nothing is stemmed. Scripts without spaces have no dictionary here: Chinese, hiragana and the
    scripts of South East Asia come out letter by letter, a run of katakana as one word; Korean by
    its spaces.

    Example:
        >>> unicode_words("Её отец, 3.5 года.")
        ['её', 'отец', '3.5', 'года']
        >>> unicode_words("北京 カメラ")
        ['北', '京', 'カメラ']
    """
    from uniseg.wordbreak import words

    pieces = words(unicodedata.normalize("NFC", text))
    return [unicodedata.normalize("NFC", one.casefold()) for one in pieces if _is_word(one)]


def running_words(text: str, words: WordRule = "published") -> list[str]:
    """Return the words of a text as they stand, for counts of repeated words.

    By the published rule they are the runs between white space. By ``unicode`` a run with letters
    of a script without spaces is cut into its words of UAX 29; every other run stays as it stands,
    so that texts of scripts with spaces have the same counts by both.

    Example:
        >>> running_words("The end, the end."), running_words("The end, the end.", "unicode")
        (['The', 'end,', 'the', 'end.'], ['The', 'end,', 'the', 'end.'])
        >>> running_words("北京。"), running_words("北京。", "unicode")
        (['北京。'], ['北', '京'])
    """
    runs = text.split()
    if words != "unicode" or text.isascii():
        return runs
    found: list[str] = []
    for run in runs:
        found += _cut(run) if any(map(_is_unspaced, run)) else [run]
    return found


def dropped_share(text: str) -> float:
    """Return the share of the letters and digits of a text that the published rule drops, 0 to 1.

    It keeps a-z and 0-9 alone, after lower-casing. Letters and digits are the characters of
    Unicode's categories L and N; a text without any has a share of 0.

    Example:
        >>> [dropped_share(text) for text in ("Paris, 1958", "Её", "Où ?", "?")]
        [0.0, 1.0, 0.5, 0.0]
    """
    if text.isascii():
        return 0.0
    held = [one for one in text if _is_letter(one)]
    dropped = sum(not _PUBLISHED.intersection(one.lower()) for one in held)
    return dropped / len(held) if held else 0.0


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


def _is_letter(character: str) -> bool:
    return unicodedata.category(character)[0] in "LN"


def _is_word(piece: str) -> bool:
    return any(map(_is_letter, piece))


@lru_cache(maxsize=1 << 16)
def _is_unspaced(character: str) -> bool:
    if character.isascii() or not _is_letter(character):
        return False
    from uniseg.linebreak import line_break

    return line_break(character).value in _UNSPACED


def _cut(run: str) -> list[str]:
    from uniseg.wordbreak import words

    return list(filter(_is_word, words(run)))
