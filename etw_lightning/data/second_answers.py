"""Files of second answers to forget questions, as the command ``alternatives`` writes them."""

from __future__ import annotations

from pathlib import Path

from etw_lightning.benchmarks.formats import FORMATS, is_saved, iter_file, suffix_of
from etw_lightning.benchmarks.source import field as text_of
from etw_lightning.schema import InputError

__all__ = ["SecondAnswers", "pair_of", "read_second_answers"]

#: Second answers by question and answer, without outer spaces.
SecondAnswers = dict[tuple[str, str], str]

_QUESTION, _ANSWER, _SECOND = "question", "answer", "alternative_answer"


def pair_of(question: str | None, answer: str) -> tuple[str, str]:
    """Return what a second answer is found by.

    Example:
        >>> pair_of("Where was she born? ", " In Rome.")
        ('Where was she born?', 'In Rome.')
    """
    return str(question).strip(), answer.strip()


def read_second_answers(path: str | Path, key: str = "data.alternatives") -> SecondAnswers:
    """Read a file of second answers; rows without one are passed over.

    Args:
        path: Rows with ``question``, ``answer`` and ``alternative_answer``, in one of the formats
            of ``formats``; in any order, and perhaps of more rows than are forgotten.
        key: What errors name.

    Raises:
        InputError: If the file can't be read, a row lacks its question or answer, or a question
            with its answer has two different second answers.
    """
    file = Path(path).expanduser()
    if not (suffix_of(file.name) and file.is_file()) and not is_saved(file):
        lack = "is not one" if file.exists() else "does not exist"
        raise InputError(
            f"{key} must be a file of second answers ({FORMATS}); {str(path)!r} {lack}."
        )
    found: SecondAnswers = {}
    try:
        for number, row in enumerate(iter_file(file)):
            where = f"row {number}"
            pair = pair_of(text_of(row, _QUESTION, where), text_of(row, _ANSWER, where))
            if row.get(_SECOND) is None:
                continue
            second = text_of(row, _SECOND, where)
            if found.setdefault(pair, second) != second:
                raise InputError(f"{where} gives {pair[0]!r:.60} another second answer; keep one.")
    except InputError as error:
        raise InputError(f"{key} is {str(path)!r}: {error}") from error
    return found
