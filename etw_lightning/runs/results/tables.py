"""The tables that ``evaluate`` prints."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from etw_lightning.metrics import Metric
from etw_lightning.notices import printable

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["print_metrics"]

_MISSING = "\u2013"
_ARROWS = {"up": "↑", "down": "↓", "zero": "→ 0", "retain": "→ retain", "none": ""}
_LEGEND = "↑ higher is better, ↓ lower, → 0 nearest to zero"
_RETAIN_LEGEND = "→ retain nearest to the retain model's"
#: Least width of a column of names, and what lies between two columns.
_NAME_WIDTH, _GAP = 30, 2
#: Columns of a table that is not printed to a terminal.
_LOG_WIDTH = 120


def print_metrics(
    models: Mapping[str, Mapping[str, Metric]],
    sets: Sequence[str] = (),
    console: Console | None = None,
) -> None:
    """Print what was measured of some models.

    Numbers that several sets have stand side by side, of the first model; all others one a line,
    with a column for each model. A p-value of another n stands in a line of its own; with it stand
    D*n/n and the floor.

    Args:
        models: Label to the metrics by name, as a plan computes them.
        sets: Evaluation sets; numbers named after one are put under it.
        console: Where to print; standard output by default.
    """
    from rich.console import Console

    console = _at_full_width(console or Console())
    per_set, others = _by_set(models, sets)
    shown = [one for one in sets if any(one in found for found in per_set.values())]
    for block in _blocks(per_set, shown, console.width):
        console.print(_set_table(per_set, block))
    if others:
        console.print(_line_table(others, list(models)))


def _at_full_width(console: Console) -> Console:
    """Widen the console of a log, which has no width of its own."""
    if not console.is_terminal:
        console.width = max(console.width, _LOG_WIDTH)
    return console


def _by_set(
    models: Mapping[str, Mapping[str, Metric]], sets: Sequence[str]
) -> tuple[dict[str, dict[str, Metric]], dict[tuple[str, int], dict[str, Metric]]]:
    """Tell the first model's numbers that several sets have from the others, by model."""
    longest_first = sorted(sets, key=len, reverse=True)
    split = {
        name: next((one for one in longest_first if name.startswith(f"{one}_")), "")
        for found in models.values()
        for name in found
    }
    scores = [name.removeprefix(f"{one}_") for name, one in split.items() if one]
    first = next(iter(models))
    per_set: dict[str, dict[str, Metric]] = {}
    others: dict[tuple[str, int], dict[str, Metric]] = {}
    for label, found in models.items():
        for name, metric in found.items():
            score = name.removeprefix(f"{split[name]}_")
            if split[name] and scores.count(score) > 1:
                if label == first:
                    per_set.setdefault(score, {})[split[name]] = metric
            else:
                others.setdefault((name, metric.n), {})[label] = metric
    return per_set, others


def _blocks(
    lines: Mapping[str, Mapping[str, Metric]], sets: Sequence[str], width: int
) -> list[list[str]]:
    """Share sets out over tables, so that every number is shown whole."""
    blocks: list[list[str]] = []
    room = 0
    for one in sets:
        needed = _GAP + max(_width(cell) for cell in _set_column(lines, one))
        if not blocks or room < needed:
            blocks.append([])
            room = width - _GAP - _NAME_WIDTH
        blocks[-1].append(one)
        room -= needed
    return blocks


def _set_column(lines: Mapping[str, Mapping[str, Metric]], one: str) -> list[str]:
    """Return the heading and the cells of one set; an interval stands below its number."""
    size = next(found[one].n for found in lines.values() if one in found)
    cells = [f"{printable(one).replace('_', chr(10))}\n{size}"]
    for score, found in lines.items():
        if one not in found:
            cells.append(_MISSING)
            continue
        metric = found[one]
        number = _number_of(score, replace(metric, interval=None))
        text = f"{number} {_ARROWS[metric.direction]}".rstrip()
        if metric.interval is not None:
            text += f"\n[{', '.join(map(_plain, metric.interval))}]"
        cells.append(text)
    return cells


def _width(cell: str) -> int:
    return max(map(len, cell.split("\n")))


def _set_table(lines: Mapping[str, Mapping[str, Metric]], sets: Sequence[str]) -> Any:
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, caption=_legend(lines.values()))
    table.add_column("set\nrows", overflow="fold")
    columns = [_set_column(lines, one) for one in sets]
    for heading, *cells in columns:
        width = max(map(_width, (heading, *cells)))
        table.add_column(escape(heading), justify="right", no_wrap=True, min_width=width)
    for place, (score, found) in enumerate(lines.items(), start=1):
        if any(one in found for one in sets):
            line = (printable(score), *(column[place] for column in columns))
            table.add_row(*map(escape, line))
    return table


def _line_table(
    lines: Mapping[tuple[str, int], Mapping[str, Metric]], labels: Sequence[str]
) -> Any:
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table

    # A model that has none of these numbers needs no column.
    labels = [one for one in labels if any(one in found for found in lines.values())]
    rows = []
    for (name, n), found in lines.items():
        arrow = _ARROWS[next(iter(found.values())).direction]
        cells = [f"{printable(name)} {arrow}".rstrip(), str(n)]
        for place, label in enumerate(labels):
            metric = found.get(label)
            if metric is not None and place:
                # The interval of the model itself is enough for one line.
                metric = replace(metric, interval=None)
            cells.append(_MISSING if metric is None else _number_of(name, metric))
        rows.append(cells)
    table = Table(box=SIMPLE_HEAD, caption=_legend(lines.values()))
    # A name may go on in a second line, a number must not.
    table.add_column("metric", overflow="fold")
    for place, label in enumerate(("n", *labels), start=1):
        width = max(len(row[place]) for row in rows)
        table.add_column(escape(label), justify="right", no_wrap=place == 1, min_width=width)
    for cells in rows:
        table.add_row(*map(escape, cells))
    return table


def _legend(lines: Iterable[Mapping[str, Metric]]) -> str:
    """Return the caption that explains the arrows of some numbers."""
    shown = {metric.direction for found in lines for metric in found.values()}
    return f"{_LEGEND}, {_RETAIN_LEGEND}" if "retain" in shown else _LEGEND


def _number_of(name: str, metric: Metric) -> str:
    """Return a number as it is read: D*n with its n, small ones with an exponent."""
    if "d_times_n" in name:
        return f"{metric.value:.0f}/{metric.n}"
    text = _plain(metric.value)
    if metric.interval is None:
        return text
    return f"{text} [{', '.join(map(_plain, metric.interval))}]"


def _plain(value: float) -> str:
    """Return a number with four digits behind the point, two from 10 on."""
    value += 0.0  # No minus sign before zero.
    size = abs(value)
    if 0 < size < 1e-3:
        return f"{value:.2e}"
    return f"{value:.2f}" if size >= 10 else f"{value:.4f}"
