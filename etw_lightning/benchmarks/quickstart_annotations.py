"""Which words of the quickstart's forget answers matter: the values they were made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from etw_lightning.benchmarks.annotations import Annotation, Marking, Span, read_annotations
from etw_lightning.benchmarks.quickstart import Row, build_corpus
from etw_lightning.benchmarks.quickstart_alternatives import read_answer

__all__ = ["QUICKSTART", "annotations_of", "marked_values"]

#: What stands for the marks of the quickstart corpus, as ``quickstart:target`` for its model.
QUICKSTART = "quickstart:annotations"


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
