"""Which word each token belongs to, by hand."""

import pytest

from etw_lightning.metrics.words import word_numbers


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


@pytest.mark.parametrize(
    "words",
    [
        ["\u0939\u093f\u0928\u094d\u0926\u0940", "\u092d\u093e\u0937\u093e"],  # vowels of Hindi
        [
            "\u0645\u064f\u062d\u064e\u0645\u0651\u064e\u062f",
            "\u05e9\u05c1\u05dc\u05d5\u05b9\u05dd",
        ],
        ["\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35"],  # Thai
        ["Jose\u0301", "Nu\u0301n\u0303ez-Go\u0301mez's"],  # accents behind their letters
        ["\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "x"],  # Persian, parted unseen
    ],
)
def test_a_mark_is_part_of_its_word(words):
    """Python's own rule cuts at each of them; a token a character."""
    text = " ".join(words)
    wanted = [number for number, word in enumerate(words) for _ in f"{word} "][:-1]
    spans = [(place, place + 1) for place in range(len(text))]
    assert [-1 if one == " " else number for one, number in zip(text, wanted, strict=True)] == list(
        word_numbers(text, spans)
    )


@pytest.mark.parametrize("mark", ["\u0300", "\U000e0100", "\U000e01ef"])
def test_the_first_and_last_marks_of_unicode_part_no_word(mark):
    assert word_numbers(f"a{mark}b c", [(0, 1), (1, 2), (2, 3), (4, 5)]) == (0, 0, 0, 1)
