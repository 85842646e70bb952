"""The rows that went worst, with what was said before and after, as a page of text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from etw_lightning.judging.numbers import forget_and_retain
from etw_lightning.metrics.sanity import looped_values, refusal_values, stutter_values
from etw_lightning.metrics.still_said import said_items
from etw_lightning.metrics.text import rouge_values
from etw_lightning.metrics.words import WordRule
from etw_lightning.notices import as_markdown_text
from etw_lightning.schema import Record

__all__ = ["WorstRow", "as_page", "worst_rows"]

_Sets = Mapping[str, Sequence[Record]]
_TITLES = {
    "forget": "Forget rows that are still known best",
    "retain": "Retain rows that were lost most",
}
#: Characters of a text that are shown.
_SHOWN = 400


@dataclass(frozen=True)
class WorstRow:
    """A row that went badly.

    Args:
        row: Its number, from 0.
        id: Its id.
        question: What is asked; None for raw text.
        truth: The gold answer.
        before: What the model said before training; None where it is not known.
        after: What it says now.
        rouge_before: ROUGE-L recall before; None where it is not known.
        rouge_after: ROUGE-L recall now.
        notes: What else is to be said of it.
    """

    row: int
    id: str
    question: str | None
    truth: str
    before: str | None
    after: str
    rouge_before: float | None
    rouge_after: float
    notes: tuple[str, ...]


def worst_rows(
    after: _Sets, before: _Sets | None = None, count: int = 5, words: WordRule = "published"
) -> dict[str, list[WorstRow]]:
    """Return the worst forget and retain rows.

    Of the forget set those of the highest ROUGE-L recall after training, first those that still say
    names, numbers or addresses; of the retain set those whose ROUGE-L recall fell most, or is
    lowest where nothing is known of before.

    Args:
        after: Records of the trained model.
        before: Records before training.
        count: Rows of each set.
        words: As of ``data.rouge_tokenizer``.

    Returns:
        ``forget`` and ``retain``, as far as their generations are there.
    """
    found = {}
    earlier = forget_and_retain(before or {})
    for name, rows in forget_and_retain(after).items():
        then = earlier.get(name)
        same = then is not None and [row.id for row in then] == [row.id for row in rows]
        listed = _judged(rows, then if same else None, words)
        found[name] = sorted(listed, key=_forget_key if name == "forget" else _retain_key)[:count]
    return found


def _forget_key(row: WorstRow) -> tuple[float, ...]:
    said = sum(note.startswith(_SAYS) for note in row.notes)
    return (-said, -row.rouge_after, row.row)


def _retain_key(row: WorstRow) -> tuple[float, ...]:
    fall = 0.0 if row.rouge_before is None else row.rouge_before - row.rouge_after
    return (-fall, row.rouge_after, row.row)


_SAYS = "still says "


def _judged(
    rows: Sequence[Record], before: Sequence[Record] | None, words: WordRule
) -> list[WorstRow]:
    now = rouge_values(rows, "rougeL_recall", words=words)
    then = None if before is None else rouge_values(before, "rougeL_recall", words=words)
    flags = {
        "says a word twice in a row": stutter_values(rows, words),
        "gibberish": looped_values(rows),
        "refuses": refusal_values(rows),
    }
    found = []
    for place, row in enumerate(rows):
        items = [one.text for one in said_items(row)]
        notes = [f"{_SAYS}{', '.join(items)}"] * bool(items)
        notes += [flag for flag, values in flags.items() if values[place]]
        found.append(
            WorstRow(
                place,
                row.id,
                row.question,
                row.answer,
                None if before is None else before[place].generation,
                row.generation or "",
                None if then is None else float(np.round(then[place], 6)),
                float(np.round(now[place], 6)),
                tuple(notes),
            )
        )
    return found


def as_page(worst: Mapping[str, Sequence[WorstRow]], verdict: Sequence[str] = ()) -> str:
    """Return the rows as Markdown in which they are text, never markup.

    Args:
        worst: As ``worst_rows`` gives them.
        verdict: Lines of ours to begin with.
    """
    lines = [line for text in verdict for line in (text, "")]
    for name, rows in worst.items():
        lines += [f"## {_TITLES[name]}", ""]
        lines += ["| row | question | truth | before | after | ROUGE-L | |", "|" + " --- |" * 7]
        for row in rows:
            then = "\u2013" if row.rouge_before is None else f"{row.rouge_before:.2f}"
            texts = (row.question or "", row.truth, row.before or "\u2013", row.after)
            cells = [as_markdown_text(text[:_SHOWN]) for text in texts]
            notes = as_markdown_text("; ".join(row.notes))
            rouge = f"{then} to {row.rouge_after:.2f}"
            lines.append(f"| {row.row} | {' | '.join(cells)} | {rouge} | {notes} |")
        lines.append("")
    return "\n".join(lines)
