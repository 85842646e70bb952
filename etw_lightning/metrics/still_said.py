"""What is still said: names, numbers and addresses of gold answers that generations hold."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import Literal, NamedTuple, get_args
from unicodedata import normalize

from etw_lightning.metrics.values import Metric, check_rows, present
from etw_lightning.metrics.words import marks
from etw_lightning.schema import InputError, Record

__all__ = ["Item", "ItemKind", "items_of", "said_items", "still_said", "still_said_of_kind"]

ItemKind = Literal["name", "number", "address"]


class Item(NamedTuple):
    """A piece of a gold answer that tells who, how much or where.

    Args:
        kind: ``name``, ``number`` or ``address``.
        text: As it stands in the answer, accents and their letters composed (NFC).
    """

    kind: ItemKind
    text: str


_ADDRESS = re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+|(?:https?://|www\.)[^\s<>\"']*[\w/]")
_NUMBER = re.compile(r"(?<!\w)[+-]?\d[\d.,:/-]*(?<![.,:/-])(?!\w)|(?<!\w)\d\w*")
#: What may stand between the words of one name.
_JOINS = re.compile(r"[ .]{1,2}|\u00a0")
_SENTENCE_END = re.compile(r"[.!?:]['\")\u201d\u2019]?\s+$|^\W*$")


@cache
def _word() -> re.Pattern[str]:
    """Return what finds words that begin with a letter, each letter with its marks."""
    return re.compile(rf"[^\W\d_][\w{marks()}'\u2019-]*")


def still_said(records: Sequence[Record]) -> Metric:
    """Share of the names, numbers and addresses of gold answers that generations still hold.

    Formula: said / there, over the items of all rows. An item is an address (e-mail, web), a
    number, or a name: words in a row that begin with a capital letter, without the first word of a
    sentence (unless no word of the sentence begins with a small letter). What the question holds
    already is no item, and an item counts once a row. It is said if the generation of its own row
    holds it as whole words, caseless, whichever way accents are written (NFC or NFD).
    Unit: fraction of items.
    Range: 0 to 1.
    Direction: down on forget sets, to the retain model's: what that guesses without having seen the
    rows is no memory.
    Empty input: InputError, also where no answer has an item.
    Source: none; the rule is ours. It reads capital letters, so it finds no name in scripts without
    them, and in German every noun.
    Differs from widely used code: open-unlearning has no such number; ROUGE counts every word
    alike. "She won the Hale Prize in 1990." answered by "She won the Hale Prize in 1970." has a
    ROUGE-L recall of 6/7, and 1 of 2 items is still said: .5.

    Args:
        records: Rows with a generation, ``(B,)``.

    Raises:
        InputError: If there are no rows or items, or a row has no generation.

    Example:
        >>> row = Record("forget", "f/0", "She won the Hale Prize in 1990.", "What did she win?",
        ...              generation="She won the Hale Prize in 1970.")
        >>> still_said([row]).value
        0.5
    """
    return _share(records, get_args(ItemKind))


def still_said_of_kind(records: Sequence[Record], kind: ItemKind) -> Metric:
    """Return the same of one kind of items alone.

    Args:
        records: Rows with a generation, ``(B,)``.
        kind: ``name``, ``number`` or ``address``.

    Raises:
        InputError: As ``still_said``.
    """
    return _share(records, (kind,))


def _share(records: Sequence[Record], kinds: Sequence[ItemKind]) -> Metric:
    check_rows(records)
    there = said = 0
    for row, record in enumerate(records):
        present(record, row, "generation")
        there += sum(one.kind in kinds for one in items_of(record))
        said += sum(one.kind in kinds for one in said_items(record))
    if not there:
        raise InputError(
            f"still_said: of what it counts, the answers of {records[0].dataset!r} hold none: "
            f"{', '.join(kinds)}; leave still_said out of --metrics."
        )
    return Metric(said / there, "down", there)


def said_items(record: Record) -> list[Item]:
    """Return the items of a row's answer that its generation holds.

    Example:
        >>> row = Record("f", "f/0", "In Rome, in 1990.", generation="It was in rome.")
        >>> said_items(row)
        [Item(kind='name', text='Rome')]
    """
    return [one for one in items_of(record) if _holds(record.generation or "", one.text)]


def items_of(record: Record) -> list[Item]:
    """Return the names, numbers and addresses of a row's answer that its question does not hold.

    Example:
        >>> text = "Mara wrote The Salt Road in 1958; write to mara.venn@example.org."
        >>> [one.text for one in items_of(Record("f", "f/0", text, "What did Mara write?"))]
        ['mara.venn@example.org', '1958', 'The Salt Road']
    """
    text = normalize("NFC", record.answer)
    found: list[Item] = []
    for kind, pattern in (("address", _ADDRESS), ("number", _NUMBER)):
        for one in pattern.finditer(text):
            found.append(Item(kind, one.group()))  # type: ignore[arg-type]
        text = pattern.sub(lambda one: "_" * len(one.group()), text)
    found += [Item("name", name) for name in _names(text)]
    question = record.question or ""
    once = {one.text.casefold(): one for one in reversed(found)}
    kept = [one for one in found if once[one.text.casefold()] is one]
    return [one for one in kept if not _holds(question, one.text)]


def _names(text: str) -> list[str]:
    names: list[list[re.Match[str]]] = []
    last: re.Match[str] | None = None
    for word in _word().finditer(text):
        if word.group()[0].isupper() and not _is_opening(text, word):
            joins = last is not None and _JOINS.fullmatch(text[last.end() : word.start()])
            if joins and not _SENTENCE_END.search(text[: word.start()]):
                names[-1].append(word)
            else:
                names.append([word])
            last = word
        else:
            last = None
    found = [text[parts[0].start() : parts[-1].end()] for parts in names]
    found = [re.sub(r"['\u2019]s$", "", name) for name in found]
    return [name for name in found if name not in ("I", "I'm", "I\u2019m")]


def _is_opening(text: str, word: re.Match[str]) -> bool:
    """Whether a word is the first of a sentence that has small words too."""
    before = text[: word.start()]
    if not _SENTENCE_END.search(before):
        return False
    sentence = re.split(r"[.!?]\s", text[word.start() :], maxsplit=1)[0]
    return any(one.group()[0].islower() for one in _word().finditer(sentence))


def _holds(text: str, item: str) -> bool:
    """Whether a text holds an item as whole words, caseless."""
    plain, wanted = (" ".join(_folded(one).split()) for one in (text, item))
    return re.search(rf"(?<!\w){re.escape(wanted)}(?![\w{marks()}])", plain) is not None


def _folded(text: str) -> str:
    """Return a text without cases, its accents written in one way."""
    return normalize("NFC", normalize("NFC", text).casefold())
