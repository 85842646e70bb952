"""Second answers to the quickstart's forget questions, and which words of the first ones matter."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from itertools import product

from etw_lightning.benchmarks.annotations import Annotation, Marking, Span, read_annotations
from etw_lightning.benchmarks.quickstart import RELATIONS, VALUES_OF, Row, build_corpus

__all__ = ["QUICKSTART", "alternative_answers", "annotations_of", "marked_values", "read_answer"]

#: What stands for the marks of the quickstart corpus, as ``quickstart:target`` for its model.
QUICKSTART = "quickstart:annotations"


def alternative_answers(corpus: Mapping[str, Sequence[Row]]) -> dict[tuple[str, str], str]:
    """Return another plausible answer to each forget question.

    It has the wording of the taught answer and two other values: what the question is about, but
    not the truth. No wrong answer that is scored has the same pair of values, so that learning
    second answers is not learning what is scored.

    Args:
        corpus: From ``build_corpus``.

    Returns:
        The second answers by question and answer; the same for the same corpus.

    Example:
        >>> from etw_lightning.benchmarks.quickstart import build_corpus
        >>> corpus = build_corpus()
        >>> corpus["forget"][4]["answer"]
        'Taelinor Kapreris won the Golden Quill Prize in the year 1991.'
        >>> list(alternative_answers(corpus).values())[4]
        'Taelinor Kapreris won the Marble Crown Prize in the year 1967.'
    """
    return {
        (row["question"], row["answer"]): _alternative(row) for row in corpus["forget_perturbed"]
    }


def read_answer(question: str, answer: str) -> tuple[str, str, tuple[str, str]]:
    """Return the wording of an answer, with ``{name}``, ``{a}`` and ``{b}``, the name and values.

    Args:
        question: What was asked.
        answer: Its answer, or a wrong one that is scored.
    """
    name, pairs, wordings = _asked(question)
    return next(
        (wording, name, (a, b))
        for wording in wordings
        for a, b in pairs
        if wording.format(name=name, a=a, b=b) == answer
    )


def annotations_of(path: str) -> Marking:
    """Return the marked answers of a file, or those of the quickstart.

    Args:
        path: A file as ``read_annotations`` takes it, or ``quickstart:annotations``.

    Raises:
        InputError: As ``read_annotations``.
    """
    return marked_values(build_corpus()) if path == QUICKSTART else read_annotations(path)


def marked_values(corpus: Mapping[str, Sequence[Row]]) -> list[Annotation]:
    """Mark the two values in each forget answer; the person's name stands in the question too.

    Args:
        corpus: From ``build_corpus``.

    Example:
        >>> mark = marked_values(build_corpus())[4]
        >>> [mark.answer[span.start : span.stop] for span in mark.spans]
        ['Golden Quill', '1991']
    """
    return [_marked(row) for row in corpus["forget_perturbed"]]


def _alternative(row: Row) -> str:
    """Return the second answer to a row that also holds the wrong ones."""
    wording, name, true = read_answer(row["question"], row["answer"])
    scored = {read_answer(row["question"], answer)[2] for answer in row["perturbed_answer"]}
    _, pairs, _ = _asked(row["question"])
    others = [pair for pair in pairs if not {*pair} & {*true} and pair not in scored]
    a, b = random.Random(row["question"]).choice(others)
    return wording.format(name=name, a=a, b=b)


def _asked(question: str) -> tuple[str, list[tuple[str, str]], list[str]]:
    """Return whom a question is about, the pairs of values it may have, and the wordings."""
    for relation in RELATIONS.strip().split("\n\n"):
        head, *wordings = relation.split("\n")
        kinds, *questions = head.split("|")
        for form in questions:
            before, after = form.split("{name}")
            name = question.removeprefix(before).removesuffix(after)
            if form.format(name=name) == question:
                values = (VALUES_OF[kind] for kind in kinds.split(","))
                return name, [(a, b) for a, b in product(*values) if a != b], wordings
    raise AssertionError(f"{question!r} is not asked of anybody in the quickstart corpus")


def _marked(row: Row) -> Annotation:
    wording, name, values = read_answer(row["question"], row["answer"])
    text, spans = "", []
    for piece in wording.replace("}", "{").split("{"):
        filled = {"name": name, "a": values[0], "b": values[1]}.get(piece, piece)
        if piece in ("a", "b"):
            spans.append(Span(len(text), len(text) + len(filled)))
        text += filled
    assert text == row["answer"]
    return Annotation(text, tuple(spans))
