"""Published markings that hold words instead of places: found again in the answers they are of.

``docs/annotations.md`` names each form and where it was published.
"""

from __future__ import annotations

import io
import pickle
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from etw_lightning.benchmarks.spans import Annotation, Span, moved
from etw_lightning.schema import InputError

__all__ = ["JoinedWords", "NumberedEntities", "Phrases", "read_pickled", "words_but"]

#: After letters that are no word of the row, a shorter word is not taken for the next one.
_SURE = 4
#: A word, without the punctuation around it.
_WORD = re.compile(r"\w(?:\S*[\w+])?")


@dataclass(frozen=True)
class Phrases:
    """A list of phrases for a whole split, as PURGE's authors give it (``forget10_fts.json``).

    Each place where one stands in an answer is marked, whatever its case, if no letter or digit
    goes on before or behind it.

    Args:
        phrases: The phrases, in any order.
    """

    phrases: tuple[str, ...]

    def spans(self, answers: Sequence[str], questions: Sequence[str]) -> list[tuple[Span, ...]]:
        """Return the marked spans of each answer.

        Example:
            >>> Phrases(("Kuwait", "Kuwait City")).spans(["In Kuwait City, not Kuwaiti."], [""])
            [(Span(start=3, stop=14),)]
        """
        longest_first = sorted(self.phrases, key=len, reverse=True)
        either = "|".join(map(re.escape, longest_first))
        found = re.compile(rf"(?<!\w)(?:{either})(?!\w)", re.IGNORECASE)
        return [tuple(Span(*one.span()) for one in found.finditer(answer)) for answer in answers]


@dataclass(frozen=True)
class NumberedEntities:
    """An entity behind a prefix of an answer, for some rows of a split, as UDS's authors give it.

    Args:
        rows: Row of the split, from 0, to its answer with the entity marked.
    """

    rows: Mapping[int, Annotation]

    @classmethod
    def read(cls, rows: Sequence[Mapping[str, Any]]) -> NumberedEntities:
        """Return the entities of rows with ``idx``, ``answer``, ``prefix`` and ``entity``.

        Raises:
            InputError: If a row is of another form, or its entity does not stand there.
        """
        found: dict[int, Annotation] = {}
        for place, row in enumerate(rows):
            where = f"data.annotations row {place}"
            texts = tuple(row.get(key) for key in ("answer", "prefix", "entity"))
            number = row.get("idx")
            if isinstance(number, bool) or not isinstance(number, int) or number < 0:
                raise InputError(
                    f"{where}: idx must be a row of the split, from 0; got {number!r}."
                )
            if not all(isinstance(text, str) for text in texts) or not texts[2]:
                raise InputError(f"{where}: answer, prefix and entity must be texts.")
            if number in found:
                raise InputError(f"{where}: idx {number} stands there twice.")
            answer, prefix, entity = map(str, texts)
            start = answer.find(entity, len(prefix)) if answer.startswith(prefix) else -1
            if start < 0:
                raise InputError(
                    f"{where}: {entity!r:.60} does not stand in its answer behind {prefix!r:.60}."
                )
            found[number] = Annotation(answer, (Span(start, start + len(entity)),))
        return cls(found)

    def spans(self, answers: Sequence[str], questions: Sequence[str]) -> list[tuple[Span, ...]]:
        """Return the marked span of each answer; of a row that is left out there is none.

        Raises:
            InputError: If a row is of another answer.
        """
        return [
            moved(self.rows[number], answer, number) if number in self.rows else ()
            for number, answer in enumerate(answers)
        ]


@dataclass(frozen=True)
class JoinedWords:
    """The words of each row run together, as SatImp's authors give them (``importance_*.pth``).

    They are words of the question and of the answer in order, without the spaces between them.
    They are told apart by the words of the row: from the left, the longest that fits. Every
    place where one of them stands in the answer as a word is marked.

    Args:
        rows: The words of each row of a split, run together.
    """

    rows: tuple[str, ...]

    def spans(self, answers: Sequence[str], questions: Sequence[str]) -> list[tuple[Span, ...]]:
        """Return the marked spans of each answer.

        Raises:
            InputError: If there are too few rows, or the words of one are not of its answer.

        Example:
            >>> JoinedWords(("fatherflorist",)).spans(["He is a florist."], ["And his father?"])
            [(Span(start=8, stop=15),)]
        """
        if len(self.rows) < len(answers):
            raise InputError(
                f"data.annotations: {len(self.rows)} rows for {len(answers)} answers; give the "
                "file made for data.forget_split, or fewer rows in data.rows."
            )
        found = []
        nowhere = 0
        for joined, answer, question in zip(self.rows, answers, questions, strict=False):
            spans = _spans_of(joined, answer, question)
            nowhere += bool(joined) and not spans
            found.append(spans)
        if nowhere > len(found) / 2:
            raise InputError(
                f"data.annotations: none of the words of {nowhere} of {len(found)} rows stands in "
                "its answer; give the file made for data.forget_split."
            )
        return found


def _spans_of(joined: str, answer: str, question: str) -> tuple[Span, ...]:
    own = [(one.group(), Span(*one.span())) for one in _WORD.finditer(answer)]
    known = {word for word, _ in own} | {one.group() for one in _WORD.finditer(question)}
    longest_first = sorted(known, key=lambda word: (-len(word), word))
    marked: set[str] = set()
    place, least = 0, 1
    while place < len(joined):
        fits = (one for one in longest_first if joined.startswith(one, place))
        word = next((one for one in fits if len(one) >= least), "")
        if word:
            marked.add(word)
        place, least = place + (len(word) or 1), 1 if word else _SURE
    return tuple(span for word, span in own if word in marked)


def words_but(answer: str, spans: Sequence[Span]) -> tuple[Span, ...]:
    """Return the words of an answer that no span touches.

    Example:
        >>> words_but("It is red.", (Span(0, 2), Span(3, 5)))
        (Span(start=6, stop=9),)
    """
    words = [Span(*one.span()) for one in re.finditer(r"\w+", answer)]
    return tuple(
        word
        for word in words
        if not any(word.start < span.stop and span.start < word.stop for span in spans)
    )


class _Plain(pickle.Unpickler):
    """Builds dictionaries, lists, texts and numbers, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        """Refuse every class and function."""
        raise pickle.UnpicklingError(f"it holds {module}.{name}, which is no plain value")


def read_pickled(path: Path) -> Any:
    """Return the plain values that ``torch.save`` has written; nothing of it is run.

    Args:
        path: A ``.pth`` or ``.pt`` file.

    Raises:
        InputError: If it can't be read, or holds anything but dictionaries, lists, texts and
            numbers.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            name = next(one for one in archive.namelist() if one.endswith("/data.pkl"))
            return _Plain(io.BytesIO(archive.read(name))).load()
    except (OSError, zipfile.BadZipFile, StopIteration, pickle.UnpicklingError, EOFError) as error:
        reason = " ".join(str(error).split()) or "no data.pkl in it"
        raise InputError(
            f"data.annotations: {str(path)!r} can't be read ({reason}); give a file of plain "
            "values that torch.save has written."
        ) from error
