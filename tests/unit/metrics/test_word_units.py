"""Which word each token belongs to, by hand."""

import pytest

from etw_lightning.metrics.word_units import word_numbers


def spans_of(pieces):
    """Characters of pieces that stand one after the other, and the text."""
    spans, place = [], 0
    for piece in pieces:
        spans.append((place, place + len(piece)))
        place += len(piece)
    return "".join(pieces), spans


@pytest.mark.parametrize(
    ("pieces", "numbers"),
    [
        (["Bas", "il", " Dun", "wick", "."], [0, 0, 1, 1, -1]),
        (["Al", "-", "Ku", "wait", "i", "'s", " own"], [0, 0, 0, 0, 0, 0, 1]),
        # A token that two words share is the first one's; one of signs alone is no word's.
        (["in K", "ent", ", ", '"', "A B"], [0, 1, -1, -1, 2]),
        (["'", "tis ", "--", " 19", "84"], [-1, 0, -1, 1, 1]),
        (["a-", "-b", "\n\n", "\u0441\u043b", "\u043e\u0432\u043e"], [0, 1, -1, 2, 2]),
        (["rock", "\u2019", "n", "\u2019", "roll"], [0, 0, 0, 0, 0]),
        (["\u5317\u4eac", "\u5e02", "\u3002"], [0, 0, -1]),
        ([], []),
    ],
)
def test_words_of_pieces(pieces, numbers):
    text, spans = spans_of(pieces)
    assert list(word_numbers(text, spans)) == numbers


def test_tokens_without_characters():
    """One before the text, one behind it, and the rest of a letter's bytes."""
    assert word_numbers("caf\u00e9 x", [(0, 0), (0, 3), (3, 4), (3, 3), (4, 6), (6, 6)]) == (
        -1, 0, 0, 0, 1, -1,
    )  # fmt: skip
    assert word_numbers("a b", [(1, 1), (2, 2), (3, 3)]) == (-1, -1, -1)


def test_two_tokens_that_share_a_letter_are_of_its_word():
    assert word_numbers("caf\u00e9", [(0, 3), (3, 4), (3, 4)]) == (0, 0, 0)
