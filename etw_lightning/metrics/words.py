"""What counts as a word of a generated text, by the published rule or by Unicode's."""

from __future__ import annotations

import unicodedata
from functools import lru_cache
from typing import Literal

__all__ = ["LARGEST_DROPPED", "WordRule", "dropped_share", "running_words", "unicode_words"]

#: Whose words ROUGE compares: the published code's, the same without stems, or Unicode's.
WordRule = Literal["published", "unstemmed", "unicode"]
#: Most of a gold text's letters and digits that the published rule may drop.
LARGEST_DROPPED = 0.5

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
