"""The table of a sweep: each method at the grid point that a stated rule chooses."""

from __future__ import annotations

import difflib
import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from etw_lightning.notices import printable
from etw_lightning.schema import InputError
from etw_lightning.sweeps.choice import (
    Point,
    average,
    choose_all,
    gather,
    is_p_value,
    log10,
    of_seeds,
    rule,
)
from etw_lightning.sweeps.grid import Sweep
from etw_lightning.sweeps.parts import check_parted, in_part
from etw_lightning.sweeps.run_records import RunRecords
from etw_lightning.sweeps.runs import Finished, Run, strangers

__all__ = ["check_metrics", "check_numbers", "report", "table", "written"]

_MISSING = "\u2013"


def report(sweep: Sweep, runs: Sequence[Run]) -> str:
    """Return the report, Markdown: each method at its best point, then the whole grid.

    Raises:
        InputError: If no run has a number of the columns, one lacks what the rule needs, or no
            number is made of the rows that are parted.
    """
    all_rows, reader = gather(runs), RunRecords()
    check_parted(sweep, all_rows)
    picked = choose_all(all_rows, sweep.select, reader)
    points = in_part(all_rows, sweep.select, "test", sweep.columns, reader)
    _check_columns(points, sweep.columns)
    by_method: dict[str, list[Point]] = {}
    chosen: dict[str, tuple[Point | None, bool]] = dict.fromkeys(picked, (None, False))
    for whole, point in zip(all_rows, points, strict=True):
        by_method.setdefault(point.method, []).append(point)
        if whole is picked[point.method][0]:
            chosen[point.method] = point, picked[point.method][1]
    shares = [one.metric for one in sweep.select.bounds if one.kind == "at_least_of_target"]
    heads = [*sweep.columns, *(f"{name} / target's" for name in shares)]
    best = [
        _best_row(method, some, *chosen[method], sweep, shares)
        for method, some in by_method.items()
    ]
    # What no method has several values for needs no column of its own.
    names = list(dict.fromkeys(name for point in points for name, _ in point.values))
    is_rest = any(name not in names for point in points for name, _ in point.fixed)
    rest = ["one value only"] * is_rest
    taken = [point for point, _ in chosen.values()]
    grid = []
    for point in points:
        values = dict((*point.values, *point.fixed))
        row = [point.method, *(values.get(name, "") for name in names)]
        row += [_said(pair for pair in point.fixed if pair[0] not in names) for _ in rest]
        row.append(_num_runs(point))
        row += _cells(point, sweep.columns, shares)
        is_taken = any(point is one for one in taken)
        grid.append([f"**{cell}**" if cell and is_taken else cell for cell in row])
    legend = (
        "Mean ± standard deviation over the seeds; of p-values the geometric mean, with mean ± "
        "standard deviation of log10. Target's: share of the target model's mean."
    )
    fallback = " Where none does, it is the point nearest to doing so, marked *." * bool(
        sweep.select.bounds
    )
    parted = " Numbers of forget rows below are of the other rows." * bool(sweep.select.validation)
    return "\n".join(
        [
            f"Chosen for each method: {rule(sweep.select)}.{fallback}{parted}",
            legend,
            "",
            *table(["method", "chosen", "runs", *heads], best),
            "",
            f"The whole grid, {sum(len(point.found) for point in points)} of {len(runs)} runs "
            "finished; bold is what was chosen. A point that lacks runs can't be chosen.",
            "",
            *table(["method", *names, *rest, "runs", *heads], grid),
            *_notes(points, runs),
        ]
    )


def _best_row(
    method: str,
    points: Sequence[Point],
    point: Point | None,
    keeps: bool,
    sweep: Sweep,
    shares: Sequence[str],
) -> list[str]:
    columns = sweep.columns
    whole = sum(of_seeds(one, sweep.select.seeds).is_whole for one in points)
    among = f" (of {whole} of {len(points)} points)" if whole < len(points) else ""
    if point is None:
        return [method, "missing", *[_MISSING] * (1 + len(columns) + len(shares))]
    values = _said((*point.values, *point.fixed)) or "as in its file"
    mark = "" if keeps else " *"
    return [method, f"{values}{mark}{among}", _num_runs(point), *_cells(point, columns, shares)]


def _said(pairs: Iterable[tuple[str, str]]) -> str:
    """Return settings as they are read, long values cut."""
    return ", ".join(
        f"{name} {value if len(value) <= 40 else f'{value[:37]}...'}" for name, value in pairs
    )


def _num_runs(point: Point) -> str:
    if point.is_whole:
        return str(len(point.runs))
    lacking = [r.seed for r, one in zip(point.runs, point.results, strict=True) if one is None]
    seeds = f" seed {', '.join(lacking)}" if any(lacking) else ""
    return f"{len(point.found)} of {len(point.runs)}, missing:{seeds or ' all'}"


def _cells(point: Point, columns: Sequence[str], shares: Sequence[str]) -> list[str]:
    cells = [_cell(name, point.numbers(name)) for name in columns]
    found = [point.share(name) for name in shares]
    return cells + [_MISSING if share is None else f"{share:.3f}" for share in found]


def _cell(metric: str, numbers: Sequence[float]) -> str:
    """Return mean and spread as they are read."""
    mean = average(metric, numbers)
    if mean is None:
        return _MISSING
    if not is_p_value(metric):
        spread = f" ± {_number(statistics.stdev(numbers))}" if len(numbers) > 1 else ""
        return f"{_number(mean)}{spread}"
    logs = [log10(number) for number in numbers]
    spread = f" ± {statistics.stdev(logs):.2f}" if len(logs) > 1 else ""
    text = f"{mean:.3f}" if mean >= 1e-3 else f"{mean:.1e}"
    return f"{text} ({statistics.fmean(logs):.2f}{spread})"


def _number(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 10 else f"{value:.2f}"


def _notes(points: Iterable[Point], runs: Sequence[Run]) -> list[str]:
    """Say which runs stand for others, and whether not all are of one state of the code."""
    notes = [f"{run.name} equals {run.equal_to}." for run in runs if run.equal_to]
    found = [one for point in points for one in point.found]
    commits = {str(one.results.get("git_commit"))[:7] for one in found}
    if len(commits) > 1:
        notes.append(f"The runs are of several commits: {', '.join(sorted(commits))}.")
    notes += _scored_otherwise(found)
    others = strangers(runs, {str(one.folder): one for one in found})
    if others:
        notes.append(f"{others[0].upper()}{others[1:]}.")
    return [line for note in notes for line in ("", note)]


#: What decides a number beside the model, in a run's provenance; its value in older ones.
_SCORED_BY: Mapping[str, tuple[tuple[str, ...], Any]] = {
    "data.rouge_tokenizer": (("rouge_tokenizer",), "published"),
    "data.template": (("template", "template"), None),
    "data.eval_max_length": (("template", "max_length"), None),
    "conventions": (("conventions",), None),
    "model.dtype": (("dtype",), None),
    "trainer.precision": (("precision",), None),
}


def _scored_otherwise(found: Iterable[Finished]) -> list[str]:
    """Say in what the runs were not scored alike, so that their numbers can't be compared."""
    made = [(one.folder.name, one.results.get("provenance") or {}) for one in found]
    notes = []
    for key, (way, older) in _SCORED_BY.items():
        by_value: dict[str, list[str]] = {}
        for name, provenance in made:
            value: Any = provenance
            for part in way:
                value = value.get(part) if isinstance(value, Mapping) else None
            value = older if value is None else value
            if value is None:
                continue  # nothing is known of it
            text = json.dumps(value, sort_keys=True)
            by_value.setdefault(text, []).append(name)
        if len(by_value) > 1:
            said = [
                f"{text[:60]} of {len(names)}, as {names[0]}" for text, names in by_value.items()
            ]
            notes.append(f"NOT COMPARABLE: runs were scored with another {key}: {'; '.join(said)}.")
    return notes


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a table in Markdown; cells show names and values as they are.

    Args:
        heads: Of the columns.
        rows: The cells, as many in each row.
    """
    lines = [heads, ["---"] * len(heads), *rows]
    cells = [[written(cell) for cell in line] for line in lines]
    return [f"| {' | '.join(line)} |" for line in cells]


def written(cell: str) -> str:
    """Return a cell that shows names and values as they are: no tag, link or image of them.

    Args:
        cell: The text.
    """
    text = printable(cell).replace("|", "\\|").replace("<", "&lt;").replace("](", "]\\(")
    return text.replace("\n", " ")


def _check_columns(points: Iterable[Point], columns: Sequence[str]) -> None:
    found = [one for point in points for one in point.found]
    known = {name for one in found for name in one.metrics}
    for name in columns:
        if found and name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise InputError(
                f"columns must hold numbers of the runs' results.json; none has {name!r}.{hint}"
            )


def check_metrics(sweep: Sweep, settings: Iterable[Mapping[str, Any]]) -> None:
    """Refuse names that no metric gives: a typo would be found when all runs are done.

    Args:
        sweep: The sweep's file.
        settings: All settings of each run. Where one has a callback that is not ours, any name may
            be right.

    Raises:
        InputError: If the rule or the columns name a number that the catalogue does not know.
    """
    kinds = {
        str(one.get("class_path"))
        for given in settings
        for one in (given.get("trainer") or {}).get("callbacks") or ()
        if isinstance(one, Mapping)
    }
    if not all(kind.startswith(("etw_lightning.", "lightning.")) for kind in kinds):
        return
    rule_of = sweep.select
    places = {f"select.{'maximise' if rule_of.maximise else 'minimise'}": [rule_of.metric]}
    places["select.subject_to"] = [bound.metric for bound in rule_of.bounds]
    places["columns"] = list(sweep.columns)
    check_numbers(places)


def check_numbers(places: Mapping[str, Sequence[str]]) -> None:
    """Refuse names that no metric of ours gives.

    Args:
        places: Names of numbers, by the key they stand under.

    Raises:
        InputError: If there is no such number.
    """
    # It needs torch, and a sweep's file is read without.
    from etw_lightning.catalogue.listing import CATALOGUE

    known = [
        form.replace("{set}", name)
        for entry in CATALOGUE.values()
        for form in entry.emits
        for name in (sorted(entry.known_sets) if "{set}" in form else [""])
    ]
    for place, names in places.items():
        for name in names:
            if not any(entry.gives(name, entry.known_sets) for entry in CATALOGUE.values()):
                near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
                hint = f" Did you mean {near[0]!r}?" if near else " explain lists the metrics."
                raise InputError(f"{place} must name numbers of results.json; got {name!r}.{hint}")
