"""A run's judgement: its numbers beside those of the other models, the verdict, the worst rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from etw_lightning.judging.numbers import (
    LINES,
    Numbers,
    forget_and_retain,
    overshoot,
    privacy,
    sanity,
)
from etw_lightning.judging.verdict import BOUNDS, Finding, findings, headline
from etw_lightning.judging.worst_rows import WorstRow, as_page, worst_rows
from etw_lightning.metrics.still_said import said_items
from etw_lightning.metrics.words import WordRule
from etw_lightning.notices import hanging
from etw_lightning.schema import Conventions, Record

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

__all__ = ["Judgement", "judge", "print_judgement", "shown"]

_Sets = Mapping[str, Sequence[Record]]
_MISSING = "\u2013"
#: Columns of a table that is not printed to a terminal.
_LOG_WIDTH = 120


@dataclass(frozen=True)
class Judgement:
    """What is to be known of a run at its end.

    Args:
        models: Numbers by the model's label, in order; the judged one is ``label``.
        label: The model that is judged.
        found: What the numbers say; empty where a model was trained to learn.
        worst: The worst rows of each set.
        said: Items of the forget answers that are still said, by row.
    """

    models: dict[str, Numbers]
    label: str
    found: list[Finding] = field(default_factory=list)
    worst: dict[str, list[WorstRow]] = field(default_factory=dict)
    said: list[dict[str, Any]] = field(default_factory=list)

    @property
    def lines(self) -> list[str]:
        """The verdict, and a line each that says why."""
        return [headline(self.found), *(one.text for one in self.found)] if self.found else []

    def to_json(self) -> dict[str, Any]:
        """Return all of it, ready for JSON."""
        return {
            "model": self.label,
            "models": self.models,
            "verdict": headline(self.found) if self.found else None,
            "findings": [one.to_json() for one in self.found],
            "bounds": dict(BOUNDS),
            "still_said": self.said,
            "worst_rows": {
                name: [asdict(one) for one in rows] for name, rows in self.worst.items()
            },
        }

    def page(self) -> str:
        """Return the worst rows as Markdown; empty without generations."""
        return as_page(self.worst, self.lines) if self.worst else ""


def judge(
    records: Mapping[str, _Sets],
    label: str,
    rows: Mapping[str, Numbers],
    *,
    words: WordRule = "published",
    conventions: Conventions = Conventions(),  # noqa: B008
    forgets: bool = True,
) -> Judgement:
    """Judge a model by its records and those of the others.

    Args:
        records: Sets of records by model: ``target`` or ``start`` (before training), the judged
            one, ``retain``.
        label: The judged one.
        rows: The benchmark's own numbers of each, as ``runs.results`` makes them.
        words: As of ``data.rouge_tokenizer``.
        conventions: As of the run.
        forgets: Whether the model was to forget; of others there is no verdict.
    """
    retain = records.get("retain")
    models = {
        name: {
            **rows.get(name, {}),
            **sanity(sets, words),
            **overshoot(sets),
            **privacy(sets, retain, conventions),
        }
        for name, sets in records.items()
    }
    start = next((name for name in ("start", "target") if name in records and name != label), None)
    before = None if start is None else models[start]
    found = findings(models[label], before, models.get("retain")) if forgets else []
    return Judgement(
        models,
        label,
        found,
        worst_rows(records[label], records[start] if start else None, words=words),
        _said(records[label]),
    )


def _said(records: _Sets) -> list[dict[str, Any]]:
    rows = forget_and_retain(records).get("forget", ())
    found = [(place, row, said_items(row)) for place, row in enumerate(rows)]
    return [
        {"row": place, "id": row.id, "items": [[one.kind, one.text] for one in items]}
        for place, row, items in found
        if items
    ]


def print_judgement(judged: Judgement, console: Console | None = None) -> None:
    """Print the table, the verdict and what is still said.

    Args:
        judged: The judgement.
        console: Where to print; standard output by default.
    """
    from rich.console import Console
    from rich.text import Text

    console = console or Console()
    if not console.is_terminal:
        console.width = max(console.width, _LOG_WIDTH)
    console.print(_table(judged))
    lines = [f"  {_caption(judged)}"]
    lines += [f"  {line}" if place else line for place, line in enumerate(judged.lines)]
    for line in lines:
        shown_line = hanging(line, console.width) if console.is_terminal else line
        console.print(Text(shown_line), soft_wrap=True)


def _table(judged: Judgement) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD)
    table.add_column("")
    table.add_column("")
    for name in judged.models:
        table.add_column(Text(name), justify="right", no_wrap=True)
    group: str = ""
    for key, line in LINES.items():
        numbers = [model.get(key) for model in judged.models.values()]
        if all(value is None for value in numbers):
            continue
        if group and line.group != group:
            table.add_section()
        cells = [shown(key, model) for model in judged.models.values()]
        table.add_row(line.group if line.group != group else "", line.label, *cells)
        group = line.group
    return table


def _caption(judged: Judgement) -> str:
    floors = {
        model["n"]: model.get("forget_quality_floor")
        for model in judged.models.values()
        if model.get("n") and model.get("forget_quality") is not None
    }
    parts = ["↑ higher is better, ↓ lower, → 0 nearest to zero"]
    parts += [f"FQ of {n} rows can't be below {floor:.1e}" for n, floor in floors.items() if floor]
    return "; ".join(parts)


def shown(key: str, model: Mapping[str, Any]) -> str:
    """Return a number of a model as the table shows it.

    Example:
        >>> shown("forget_stutter", {"forget_stutter": 0.5, "forget_n": 8})
        '4/8'
    """
    value, form = model.get(key), LINES[key].form
    if value is None:
        return _MISSING
    if form == "count":
        return f"{value}/{model['n']}"
    if form == "share":
        n = model["items" if key == "still_said" else f"{key.split('_')[0]}_n"]
        return f"{round(value * n)}/{n}"
    if form == "p":
        return f"{value:.3f}" if value >= 1e-3 else f"{value:.2e}"
    return format(value + 0.0, form)
