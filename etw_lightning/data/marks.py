"""Which labels of the forget rows lie in words that somebody marked, and which word each is of."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import cast

import numpy as np

from etw_lightning.benchmarks.annotations import match_annotations
from etw_lightning.benchmarks.formats import FORMATS
from etw_lightning.benchmarks.quickstart_alternatives import annotations_of
from etw_lightning.data.encode import JOINT, Encoder, is_raw
from etw_lightning.data.spacy_spans import Kind, spacy_spans
from etw_lightning.metrics.words import NO_WORD, word_numbers
from etw_lightning.schema import IGNORE_INDEX, EncodedRow, Example, InputError

__all__ = ["Marker", "mark_rows", "number_words"]

#: What marks words: ``(kind, spaCy model)``, or None for the user's annotations.
Marker = tuple[str, str] | None
_Spans = Sequence[Sequence[tuple[int, int]]]


def mark_rows(
    examples: Sequence[Example],
    rows: Sequence[EncodedRow],
    encoder: Encoder,
    marker: Marker = None,
    annotations: str | None = None,
) -> list[tuple[bool, ...]]:
    """Say of each position of each row whether it holds a label in marked text.

    A label is marked if its characters overlap a marked span; a token that ends an answer has no
    characters.

    Args:
        examples: Forget rows.
        rows: What became of them.
        encoder: What made the rows.
        marker: What marks the words.
        annotations: File of marked answers, read if ``marker`` is None.

    Returns:
        As many marks a row as it has tokens.

    Raises:
        InputError: If the annotations are missing, of other rows or for raw text, or spaCy or its
            model is missing.
    """
    spans = _marked_spans(examples, marker, annotations)
    places = _label_spans(examples, encoder)
    if is_raw(examples):
        text = JOINT.join(example.answer for example in examples)
        marked = [_marked_before(_joined(examples, spans), text)] * len(rows)
    else:
        marked = [
            _marked_before(own, example.answer)
            for own, example in zip(spans, examples, strict=True)
        ]
    marks = []
    for row, before, labelled in zip(rows, marked, places, strict=True):
        found = iter([bool(before[stop] > before[start]) for start, stop in labelled])
        marks.append(tuple(label != IGNORE_INDEX and next(found) for label in row.labels))
    return marks


def number_words(
    examples: Sequence[Example], rows: Sequence[EncodedRow], encoder: Encoder
) -> list[tuple[int, ...]]:
    """Say of each position of each row which word of the answer its label belongs to.

    Args:
        examples: Forget rows.
        rows: What became of them.
        encoder: What made the rows.

    Returns:
        As many numbers a row as it has tokens, those of ``metrics.word_numbers``; of raw text the
        words of all texts are counted on. A label of no word, and what is no label, has -1.

    Raises:
        InputError: If turns are labelled before the last.
    """
    _refuse_turns(examples, "counted")
    places = _label_spans(examples, encoder)
    if is_raw(examples):
        text = JOINT.join(example.answer for example in examples)
        # In one go: the text is gone through once, not once a row.
        found = iter(word_numbers(text, [span for spans in places for span in spans]))
        numbers = [tuple(islice(found, len(spans))) for spans in places]
    else:
        numbers = [
            word_numbers(example.answer, spans)
            for example, spans in zip(examples, places, strict=True)
        ]
    rest = [iter(own) for own in numbers]
    return [
        tuple(NO_WORD if label == IGNORE_INDEX else next(own) for label in row.labels)
        for row, own in zip(rows, rest, strict=True)
    ]


def _label_spans(examples: Sequence[Example], encoder: Encoder) -> list[list[tuple[int, int]]]:
    """Return the characters of each label of each row: of the answer, or of the joined texts."""
    if is_raw(examples):
        return encoder.chunk_spans(examples)
    return [encoder.answer_spans(example) for example in examples]


def _refuse_turns(examples: Sequence[Example], done: str) -> None:
    """Refuse rows of which more is labelled than the answer."""
    chat = next((example for example in examples if example.labels_turns), None)
    if chat is not None:
        raise InputError(
            f"data.which_turns is 'all', but words are {done} in the last turn of row {chat.id} "
            "alone, so that no word of the others would count; set it to 'last'."
        )


def _marked_before(spans: Sequence[tuple[int, int]], text: str) -> np.ndarray:
    """Return how many marked characters stand before each place of a text and before its end."""
    marked = np.zeros(len(text) + 1, dtype=np.int64)
    for start, stop in spans:
        marked[start + 1 : stop + 1] = 1
    return marked.cumsum()


def _joined(examples: Sequence[Example], spans: _Spans) -> list[tuple[int, int]]:
    """Return the spans of texts that are cut into rows together, in the joined text."""
    found, place = [], 0
    for example, own in zip(examples, spans, strict=True):
        found += [(place + start, place + stop) for start, stop in own]
        place += len(example.answer) + len(JOINT)
    return found


def _marked_spans(examples: Sequence[Example], marker: Marker, annotations: str | None) -> _Spans:
    """Return the marked characters of each answer."""
    answers = [example.answer for example in examples]
    questions = [example.question or "" for example in examples]
    _refuse_turns(examples, "marked")
    if marker is not None:
        kind, model = marker
        return spacy_spans(answers, cast(Kind, kind), model)
    if annotations is None:
        raise InputError(
            "data.annotations is missing: model.weighting or model.forget reads the words marked "
            f"in it. Give a file ({FORMATS}) with spans or target_words of each answer of "
            "data.forget_split."
        )
    if is_raw(examples):
        raise InputError(
            f"data.annotations is {annotations!r}, but data.forget_split is raw text, which is "
            "cut into rows without answers; mark its words by spaCy, or use rows with questions."
        )
    return match_annotations(annotations_of(annotations), answers, questions)
