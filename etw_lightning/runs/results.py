"""The numbers of one model, the tables of ``evaluate``, and the file numbers are kept in."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from etw_lightning import metrics
from etw_lightning.metrics import Metric
from etw_lightning.metrics.words import WordRule
from etw_lightning.notices import printable
from etw_lightning.schema import InputError, Record
from etw_lightning.scoring.retain_results import write_atomically

if TYPE_CHECKING:
    from rich.console import Console

__all__ = [
    "MUSE_SETS",
    "Row",
    "left_out_line",
    "model_row",
    "muse_row",
    "own_row",
    "precision_lines",
    "print_metrics",
    "tofu_row",
    "write_results",
]

#: One line of the table: column to number, None where it can't be had.
Row = dict[str, float | int | None]
_Sets = Mapping[str, Sequence[Record]]

_MISSING = "\u2013"
_ARROWS = {"up": "↑", "down": "↓", "zero": "→ 0", "retain": "→ retain", "none": ""}
_LEGEND = "↑ higher is better, ↓ lower, → 0 nearest to zero"
_RETAIN_LEGEND = "→ retain nearest to the retain model's"
#: Least width of a column of names, and what lies between two columns.
_NAME_WIDTH, _GAP = 30, 2
#: Columns of a table that is not printed to a terminal.
_LOG_WIDTH = 120
#: So many metrics that could not be had are named on the line that tells of them.
_NAMED = 3
_LOSSES = ("answer_loss", "perturbed_losses")


def tofu_row(
    records_by_set: _Sets,
    retain_records: Sequence[Record] | None = None,
    words: WordRule = "published",
) -> Row:
    """Return TOFU's numbers of one model; a number whose records are missing is None.

    Args:
        records_by_set: Any of ``forget``, ``retain``, ``real_authors``, ``world_facts``.
        retain_records: Forget set scored by the retain model; None leaves out forget quality.
        words: ``published`` or ``unicode``, as of ``data.rouge_tokenizer``.

    Raises:
        InputError: If a set has a field in some rows only, or the retain rows are other rows.

    Example:
        >>> row = tofu_row({"forget": [Record("forget", "f/0", "a", answer_loss=0.0)]})
        >>> row["forget_probability"], row["model_utility"]
        (1.0, None)
    """
    forget = records_by_set.get("forget", ())
    row: Row = dict.fromkeys(
        ["forget_quality", "neg_log10_forget_quality", "d_times_n", "n", "forget_quality_floor"]
    )
    has_ratio = _has(forget, "paraphrase_loss", "perturbed_losses")
    if has_ratio and retain_records:
        quality = metrics.forget_quality(forget, retain_records)
        row["forget_quality"], row["d_times_n"] = quality.p_value, quality.d_times_n
        row["neg_log10_forget_quality"], row["n"] = quality.neg_log10, quality.n
        row["forget_quality_floor"] = quality.floor
    row["model_utility"] = None
    if _has_utility(records_by_set):
        row["model_utility"] = metrics.model_utility(records_by_set, words=words).value
    row["forget_rouge"] = row["forget_probability"] = row["forget_truth_ratio"] = None
    if _has(forget, "generation"):
        row["forget_rouge"] = metrics.rouge(forget, words=words).value
    if _has(forget, "answer_loss"):
        row["forget_probability"] = float(np.mean(metrics.probabilities(forget)))
    if has_ratio:
        row["forget_truth_ratio"] = metrics.closer_to_one(metrics.truth_ratios(forget))
    return row


def own_row(
    records_by_set: _Sets,
    retain_records: Sequence[Record] | None = None,
    words: WordRule = "published",
) -> Row:
    """Return the numbers of one model on own rows; a number whose records are missing is None.

    Args:
        records_by_set: Any of ``forget`` and ``retain``.
        retain_records: Forget set scored by the retain model; None leaves out forget quality.
        words: ``published`` or ``unicode``, as of ``data.rouge_tokenizer``.

    Raises:
        InputError: As ``tofu_row``.

    Example:
        >>> rows = [Record("retain", "r/0", "the end", generation="the end", answer_loss=0.0)]
        >>> row = own_row({"retain": rows})
        >>> row["retain_rouge"], row["retain_probability"], row["forget_probability"]
        (1.0, 1.0, None)
    """
    row = tofu_row(records_by_set, retain_records, words)
    # The first has parts that own rows lack, the second would make the table too wide.
    del row["model_utility"], row["neg_log10_forget_quality"]
    kept = tofu_row({"forget": records_by_set.get("retain", ())}, words=words)
    for name in ("rouge", "probability"):
        row[f"retain_{name}"] = kept[f"forget_{name}"]
    return row


def muse_row(
    records_by_set: _Sets, retain_by_set: _Sets | None = None, words: WordRule = "published"
) -> Row:
    """Return MUSE's numbers of one model, percent; a number whose records are missing is None.

    Args:
        records_by_set: Any of ``verbmem``, ``knowmem_forget``, ``knowmem_retain``,
            ``privleak_forget``, ``privleak_holdout``.
        retain_by_set: The last two scored by the retain model; None leaves out privleak.
        words: ``published`` or ``unicode``, as of ``data.rouge_tokenizer``.

    Raises:
        InputError: If a set has a field in some rows only.

    Example:
        >>> rows = [Record("verbmem", "verbmem/0", "the end", generation="the end")]
        >>> muse_row({"verbmem": rows})["verbmem"]
        100.0
    """
    row: Row = dict.fromkeys(["verbmem", "knowmem_forget", "knowmem_retain", "privleak"])
    verbatim = records_by_set.get("verbmem", ())
    if _has(verbatim, "generation"):
        row["verbmem"] = metrics.verbmem(verbatim, words=words).value
    forget, retain = (records_by_set.get(f"knowmem_{part}", ()) for part in ("forget", "retain"))
    if _has(forget, "generation"):
        row["knowmem_forget"] = metrics.knowmem(forget, "down", words).value
    if _has(retain, "generation"):
        row["knowmem_retain"] = metrics.knowmem(retain, "up", words).value
    ours, theirs = _min_k_sets(records_by_set), _min_k_sets(retain_by_set or {})
    if ours and theirs:
        row["privleak"] = metrics.privleak(*ours, metrics.min_k_auc(*theirs)).value
    return row


#: Sets that only MUSE has.
MUSE_SETS = ("verbmem", "privleak_forget")


def model_row(
    records: _Sets,
    retain: _Sets | None = None,
    *,
    is_muse: bool = False,
    is_own: bool = False,
    words: WordRule = "published",
) -> Row:
    """Return the numbers of one model, as its benchmark has them.

    Args:
        records: Its sets.
        retain: Those of the retain model.
        is_muse: MUSE's numbers.
        is_own: Those of own rows; else TOFU's.
        words: ``published`` or ``unicode``, as of ``data.rouge_tokenizer``.

    Raises:
        InputError: If a set has a field in some rows only.
    """
    if is_muse:
        return muse_row(records, retain, words)
    if is_own:
        return own_row(records, (retain or {}).get("forget"), words)
    return tofu_row(records, (retain or {}).get("forget"), words)


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


def write_results(path: str | Path, payload: Mapping[str, Any]) -> None:
    """Write JSON, whole or not at all; a NaN or infinity is an InputError that names its place."""
    place = _find_non_finite(payload, "")
    if place:
        raise InputError(f"{Path(path).name}: {place} is NaN or infinite; nothing was written.")
    text = json.dumps(payload, ensure_ascii=False, indent=2, allow_nan=False) + "\n"
    write_atomically(path, text.encode("utf-8"))


def _has(records: Sequence[Record], *fields: str) -> bool:
    """Whether each field was scored; one that is there in some rows only is left to the metric."""
    return all(
        any(getattr(record, field) not in (None, ()) for record in records) for field in fields
    )


def _has_utility(records_by_set: _Sets) -> bool:
    retain, authors, facts = (
        records_by_set.get(name, ()) for name in ("retain", "real_authors", "world_facts")
    )
    return _has(retain, "paraphrase_loss") and all(
        _has(records, "generation", *_LOSSES) for records in (retain, authors, facts)
    )


def _min_k_sets(records_by_set: _Sets) -> tuple[Sequence[Record], Sequence[Record]] | None:
    forget, holdout = (records_by_set.get(f"privleak_{part}", ()) for part in ("forget", "holdout"))
    scored = all(_has(part, "token_logps") or _has(part, "min_k") for part in (forget, holdout))
    return (forget, holdout) if scored else None


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


def _find_non_finite(value: Any, place: str) -> str:
    """Return the dotted path of the first NaN or infinity, or an empty text."""
    if isinstance(value, float):
        return "" if math.isfinite(value) else place or "the payload"
    if isinstance(value, Mapping):
        items = [(str(key), item) for key, item in value.items()]
    elif isinstance(value, list | tuple):
        items = [(str(index), item) for index, item in enumerate(value)]
    else:
        return ""
    found = (_find_non_finite(item, f"{place}.{key}".lstrip(".")) for key, item in items)
    return next((name for name in found if name), "")


def precision_lines(others: Mapping[Any, str]) -> list[str]:
    """Return a line for each other model whose numbers were made in another precision.

    Example:
        >>> precision_lines({"retain": "dtype 'float64', this run has 'float32'"})
        ["retain was scored with dtype 'float64', this run has 'float32': rounding differs"]
    """
    return [f"{role} was scored with {said}: rounding differs" for role, said in others.items()]


def left_out_line(left_out: Mapping[str, str]) -> str:
    """Return the line that tells of metrics which could not be had; ``results.json`` says why.

    Example:
        >>> left_out_line({"gibberish": "only evaluate computes it"})
        'left out (results.json says why): gibberish'
        >>> left_out_line(dict.fromkeys("abcd", "needs data.annotations"))
        'left out: 4 metrics that need more than this run has (results.json says which and what)'
    """
    if len(left_out) <= _NAMED:
        return f"left out (results.json says why): {', '.join(left_out)}"
    return (
        f"left out: {len(left_out)} metrics that need more than this run has "
        "(results.json says which and what)"
    )
