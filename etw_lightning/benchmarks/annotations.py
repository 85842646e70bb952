"""Which characters of an answer somebody marked as the ones that matter."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

from etw_lightning.benchmarks.formats import FORMATS, is_saved, read_file, read_json, suffix_of
from etw_lightning.benchmarks.published_marks import (
    JoinedWords,
    NumberedEntities,
    Phrases,
    read_pickled,
    words_but,
)
from etw_lightning.benchmarks.source import as_list
from etw_lightning.benchmarks.source import field as text_of
from etw_lightning.benchmarks.spans import Annotation, Span, moved
from etw_lightning.schema import InputError

__all__ = ["Annotation", "Marking", "Span", "match_annotations", "read_annotations"]

_PICKLED = (".pth", ".pt")


#: Marked answers row by row, or one of the published forms that hold words.
Marking = Sequence[Annotation] | Phrases | NumberedEntities | JoinedWords


def read_annotations(path: str | Path) -> Marking:
    """Read a file of marked answers, in our form or in one that was published.

    Each row has ``answer`` and either ``spans``, a list of ``[start, end]``, or ``target_words`` or
    ``common_words``, lists of ``{"word", "start", "end"}`` as published with arXiv:2506.03142, also
    with the list or each item as JSON in a text. Ends are exclusive; of common words alone the
    other words are marked. ``docs/annotations.md`` names the other forms.

    Args:
        path: A file in one of the formats of ``formats``, or a ``.pth`` of plain values.

    Raises:
        InputError: If the file can't be read, a row has none of the columns, or a span does not lie
            in its answer or holds another word; names the row.
    """
    file = Path(path).expanduser()
    if file.suffix in _PICKLED and file.is_file():
        return _whole(read_pickled(file), path)
    if not (suffix_of(file.name) and file.is_file()) and not is_saved(file):
        lack = "is not one" if file.exists() else "does not exist"
        raise InputError(
            f"data.annotations must be a file of marked answers ({FORMATS}, or .pth); "
            f"{str(path)!r} {lack}."
        )
    is_json = ".json" in (file.suffix, Path(file.stem).suffix)
    try:
        held = read_json(file) if is_json else read_file(file)
    except InputError as error:
        raise InputError(f"data.annotations is {str(path)!r}: {error}") from error
    return _whole(held, path) if is_json else _rows(held)


def _whole(held: Any, path: str | Path) -> Marking:
    """Return the marking that one piece of JSON is, by its form."""
    if isinstance(held, list) and held:
        if all(isinstance(one, str) and one.strip() for one in held):
            return Phrases(tuple(held))
        if all(isinstance(one, dict) for one in held):
            return _rows(held)
    if isinstance(held, dict) and held and all(isinstance(one, str) for one in held.values()):
        numbers = [str(number) for number in range(len(held))]
        if list(map(str, held)) == numbers:
            return JoinedWords(tuple(held.values()))
    raise InputError(
        f"data.annotations: {str(path)!r} must hold a list of rows, a list of phrases, or the "
        "words of rows 0, 1, ... by their number."
    )


def _rows(rows: Sequence[Mapping[str, Any]]) -> Marking:
    if "entity" in rows[0] and "idx" in rows[0]:
        return NumberedEntities.read(rows)
    return [_read_row(row, f"data.annotations row {number}") for number, row in enumerate(rows)]


def match_annotations(
    annotations: Marking, answers: Sequence[str], questions: Sequence[str] = ()
) -> list[tuple[Span, ...]]:
    """Return the marked spans of each answer, row by row, in the answer's own characters.

    The answers may be the first rows only. Spaces may differ: spans are moved along with them.

    Args:
        annotations: Of a whole split, in file order.
        answers: Gold answers of an evaluation set, in file order.
        questions: Their questions, which some published forms take words from.

    Raises:
        InputError: If there are too few annotations, or one was made for another answer.

    Example:
        >>> made = Annotation("in Taipei, Taiwan", (Span(11, 17),))
        >>> match_annotations([made], ["in Taipei , Taiwan"])
        [(Span(start=12, stop=18),)]
    """
    if isinstance(annotations, Phrases | NumberedEntities | JoinedWords):
        return annotations.spans(answers, [*questions, *[""] * (len(answers) - len(questions))])
    if len(annotations) < len(answers):
        raise InputError(
            f"data.annotations: {len(annotations)} rows for {len(answers)} answers; give the file "
            "made for data.forget_split, or fewer rows in data.rows."
        )
    return [
        moved(annotation, answer, row)
        for row, (annotation, answer) in enumerate(zip(annotations, answers, strict=False))
    ]


def _read_row(row: Mapping[str, Any], where: str) -> Annotation:
    answer = text_of(row, "answer", where)
    if "spans" in row:
        spans = [_span(pair, None, answer, where) for pair in _list(row, "spans", where)]
    elif "target_words" in row:
        spans = _words(row, "target_words", answer, where)
    elif "common_words" in row:
        spans = list(words_but(answer, _words(row, "common_words", answer, where)))
    else:
        raise InputError(
            f"{where}: no column 'spans', 'target_words' or 'common_words'; its columns are "
            f"{', '.join(row)}."
        )
    return Annotation(answer, tuple(spans))


def _words(row: Mapping[str, Any], key: str, answer: str, where: str) -> list[Span]:
    """Return the places of words that are given with them."""
    return [
        _span([item.get("start"), item.get("end")], item.get("word"), answer, where)
        if isinstance(item, dict)
        else _span(item, None, answer, where)
        for item in map(_opened, _list(row, key, where))
    ]


def _opened(item: Any) -> Any:
    """Return an item that stands as JSON in a text."""
    if not isinstance(item, str) or not item.startswith("{"):
        return item
    try:
        return json.loads(item)
    except json.JSONDecodeError:
        return item


def _list(row: Mapping[str, Any], key: str, where: str) -> list[Any]:
    held = as_list(row[key])
    if not isinstance(held, list):
        raise InputError(f"{where}: {key} must be a list, empty if nothing is marked.")
    return held


def _span(pair: Any, word: Any, answer: str, where: str) -> Span:
    if not _is_pair(pair) or not 0 <= pair[0] < pair[1] <= len(answer):
        raise InputError(
            f"{where}: a span must be [start, end] with 0 <= start < end <= {len(answer)}, the "
            f"length of its answer; got {pair!r:.60}."
        )
    span = Span(*pair)
    if word is not None and answer[span.start : span.stop] != word:
        raise InputError(
            f"{where}: characters {span.start} to {span.stop} are "
            f"{answer[span.start : span.stop]!r:.60}, not the marked word {word!r:.60}."
        )
    return span


def _is_pair(value: Any) -> TypeGuard[list[int]]:
    return (
        isinstance(value, list)
        and len(value) == 2
        and all(isinstance(item, int) and not isinstance(item, bool) for item in value)
    )
