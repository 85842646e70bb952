"""The parts of the forget rows: a setting is chosen on the one and reported on the other.

A run has trained on all forget rows. Its numbers are computed again, on some of the rows, from what
its folder holds: what the model said, before training and after, and what the retain model said.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

from etw_lightning.schema import Conventions, InputError, Record
from etw_lightning.sweeps.rules import Select, Validation
from etw_lightning.sweeps.run_records import RunRecords, Whose

if TYPE_CHECKING:
    from etw_lightning.catalogue.entries import Entry, Family, Given
    from etw_lightning.metrics import Metric
    from etw_lightning.sweeps.choice import Point
    from etw_lightning.sweeps.grid import Sweep
    from etw_lightning.sweeps.runs import Finished, Run
    from etw_lightning.training.datamodule import UnlearningDataModule

__all__ = [
    "PartName",
    "check_parted",
    "check_parts",
    "in_part",
    "part_numbers",
    "rows_of",
]

PartName = Literal["validation", "test", "all"]
_Said = Callable[[Whose, str], list[Record]]


def rows_of(n: int, validation: Validation | None, part: PartName) -> list[int]:
    """Return the places of the rows of a part.

    Args:
        n: Rows there are.
        validation: How they are parted; None leaves all in every part.
        part: Which part.

    Raises:
        InputError: If a part would have no rows.

    Example:
        >>> rows_of(6, Validation(2, 3), "validation"), rows_of(6, Validation(2, 3), "test")
        ([4, 5], [0, 1, 2, 3])
    """
    if validation is None or part == "all":
        return list(range(n))
    block, every = validation.block, validation.every
    is_held = [(row // block + 1) % every == 0 for row in range(n)]
    if not any(is_held):
        most = (n - 1) // (every - 1)
        must = f"block must be at most {most} with every: {every}"
        if not most:
            must = f"every must be at most {n} with block: 1" if n > 1 else "must be left out"
        raise InputError(
            f"select.validation{' ' if n < 2 else '.'}{must}, so that one of the {n} forget rows "
            f"is in the validation part; got {{block: {block}, every: {every}}}."
        )
    return [row for row, held in enumerate(is_held) if held == (part == "validation")]


def check_parts(
    sweep: Sweep,
    runs: Sequence[Run],
    make_data: Callable[[Mapping[str, Any]], UnlearningDataModule],
    *,
    whole: bool,
) -> str:
    """Refuse a validation part without rows, or that no number is made of, before anything runs.

    Args:
        sweep: The sweep.
        runs: Its runs, with their settings.
        make_data: Makes what reads rows from its settings.
        whole: Rows must be there; else those that can't be read are told of.

    Returns:
        Why rows could not be counted; empty if they were.

    Raises:
        InputError: As ``rows_of``; if no number of ``select`` and ``columns`` is made of forget
            rows, or rows can't be read.
    """
    select = sweep.select
    if select.validation is None:
        return ""
    numbers, looked_at = (*select.metrics, *sweep.columns), set()
    for run in runs:
        settings = {key: value for key, value in run.settings["data"].items() if key != "seed"}
        text = json.dumps(settings, sort_keys=True, default=str)
        if text in looked_at:
            continue
        looked_at.add(text)
        data = make_data(settings)
        _check_read(numbers, data.family)
        made_of = {name for one in numbers for name in _made_by(one, data.family)[1]} | {"forget"}
        names = sorted(name for name in made_of if name.startswith("forget"))
        try:
            counts = [data.num_offered(name) for name in names if name in data.set_names]
        except InputError as error:
            if whole:
                raise
            return f"select.validation is not held against the forget rows: {error}"
        for count in counts:
            rows_of(count, select.validation, "validation")
    return ""


def check_parted(sweep: Sweep, points: Sequence[Point]) -> None:
    """Refuse to report by a validation part that no number is made of.

    Args:
        sweep: The sweep.
        points: With what its runs have left.

    Raises:
        InputError: As ``check_parts``; or if a run does not say of what benchmark it is.
    """
    found = next((one for point in points for one in point.found), None)
    if sweep.select.validation is not None and found is not None:
        _check_read((*sweep.select.metrics, *sweep.columns), _family(found.folder))


def _check_read(numbers: Collection[str], family: Family) -> None:
    if not any(_reads_forget_rows(one, family) for one in numbers):
        raise InputError(
            "select.validation parts the rows of the set forget, but none of the numbers of select "
            f"and columns is made of it here: {', '.join(dict.fromkeys(numbers))}. Leave "
            "select.validation out, or add a number of that set, as forget_rougeL_recall, to "
            "columns where the benchmark has it."
        )


def _reads_forget_rows(metric: str, family: Family) -> bool:
    """Tell whether a number is made of forget rows, so that it is another one on some of them."""
    _, sets = _made_by(metric, family)
    return any(name.startswith("forget") for name in sets)


def _made_by(metric: str, family: Family) -> tuple[Entry | None, tuple[str, ...]]:
    """Return the entry that makes a number, and the sets that the number is made of."""
    from etw_lightning.catalogue.listing import CATALOGUE

    for entry in CATALOGUE.values():
        sets = entry.sets.get(family, ())
        if entry.gives(metric, sets):
            if entry.is_by_set:
                sets = (max((one for one in sets if metric.startswith(f"{one}_")), key=len),)
            return entry, sets
    return None, ()


def in_part(
    points: Sequence[Point],
    select: Select,
    part: PartName,
    metrics: Collection[str],
    records: RunRecords | None = None,
) -> list[Point]:
    """Return the points with numbers of forget rows computed on a part of these.

    Args:
        points: Of a sweep, with what its runs have left.
        select: How the rows are parted; without a validation part the points stay as they are.
        part: Which part counts.
        metrics: The numbers that are wanted; those of other rows stay as they are.
        records: Reads what the runs hold.

    Raises:
        InputError: If a number can't be computed from what a run holds; names both.
    """
    if select.validation is None:
        return list(points)
    reader = RunRecords() if records is None else records
    done: dict[Path, Finished] = {}
    found = []
    for point in points:
        results: list[Finished | None] = []
        for one in point.results:
            if one is not None and one.folder not in done:
                done[one.folder] = _of_part(one, select, part, metrics, reader)
            results.append(None if one is None else done[one.folder])
        found.append(replace(point, results=results))
    return found


def part_numbers(
    run: Finished,
    metrics: Collection[str],
    records: RunRecords,
    part: PartName = "all",
    validation: Validation | None = None,
    who: Whose = "run",
) -> dict[str, Metric]:
    """Return numbers of a model, computed from what a run's folder holds.

    Args:
        run: The run.
        metrics: Names of the numbers; what is computed with them is given too.
        records: Reads the folder.
        part: Which of the forget rows; of all other sets all rows count.
        validation: How the forget rows are parted.
        who: Whose numbers: those of the trained model, of the model before training, of the retain
            model.

    Raises:
        InputError: If the benchmark has no such number, it needs more than these records, or a set
            is missing.
    """
    family = _family(run.folder)
    said = _said(run.folder, validation, part, records)
    found: dict[str, Metric] = {}
    for metric in metrics:
        if metric in found:
            continue
        entry, sets = _made_by(metric, family)
        if entry is None or entry.needs - {"retain", "retain_tokens", "target"}:
            raise InputError(
                f"sweep report: {metric} can't be computed of some rows from what "
                f"{str(run.folder)!r} holds; leave it out of select and columns."
            )
        found |= entry.compute(_given(run, entry, sets, who, said), sets)
    return found


def _of_part(
    run: Finished, select: Select, part: PartName, metrics: Collection[str], reader: RunRecords
) -> Finished:
    """Return what a run has left, the numbers of forget rows computed on a part of these."""
    family = _family(run.folder)
    names = [name for name in metrics if _reads_forget_rows(name, family)]
    shares = {one.metric for one in select.bounds if one.kind == "at_least_of_target"}
    own = part_numbers(run, names, reader, part, select.validation)
    of_target = [name for name in names if name in shares]
    target = part_numbers(run, of_target, reader, part, select.validation, "target")
    return _with_numbers(run, *({k: asdict(v) for k, v in one.items()} for one in (own, target)))


def _said(folder: Path, validation: Validation | None, part: PartName, reader: RunRecords) -> _Said:
    """Return what gives a model's records of a set; of a set of forget rows those of the part."""
    cache: dict[tuple[Whose, str], list[Record]] = {}

    def said(who: Whose, name: str) -> list[Record]:
        if (who, name) not in cache:
            rows = reader.of(folder, who, name)
            if name.startswith("forget"):
                rows = [rows[place] for place in rows_of(len(rows), validation, part)]
            cache[who, name] = rows
        return cache[who, name]

    return said


def _given(run: Finished, entry: Entry, sets: tuple[str, ...], who: Whose, said: _Said) -> Given:
    """Return what an entry is computed from."""
    from etw_lightning.catalogue.entries import Given

    def of(one: Whose) -> dict[str, list[Record]]:
        return {name: said(one, name) for name in sets}

    conventions = run.results.get("conventions")
    made = run.provenance
    return Given(
        of(who),
        of("retain") if entry.needs & {"retain", "retain_tokens"} else None,
        of("target") if "target" in entry.needs else None,
        Conventions(**conventions) if isinstance(conventions, Mapping) else Conventions(),
        words=made.get("rouge_tokenizer") or "published",
    )


def _with_numbers(run: Finished, own: Mapping[str, Any], target: Mapping[str, Any]) -> Finished:
    """Return what a run has left with some numbers in the place of its own."""
    results = {**run.results, "metrics": {**run.metrics, **own}}
    history = run.results.get("history")
    entries = list(history) if isinstance(history, list) else []
    start = next(
        (
            place
            for place, one in enumerate(entries)
            if isinstance(one, Mapping) and one.get("epoch") == 0
        ),
        None,
    )
    if start is not None:
        metrics = {**run.target_metrics, **target}
        entries[start] = {**entries[start], "metrics": metrics}
    return replace(run, results={**results, "history": entries})


def _family(folder: Path) -> Family:
    """Return the family of a run's benchmark."""
    from etw_lightning.catalogue.entries import FAMILIES

    path = folder / "config.yaml"
    try:
        benchmark = yaml.safe_load(path.read_text(encoding="utf-8"))["data"]["benchmark"]
        return FAMILIES[benchmark]
    except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError) as error:
        raise InputError(
            f"sweep report: {path} must name a data.benchmark of {', '.join(FAMILIES)}, by whose "
            f"sets numbers of some rows are computed ({type(error).__name__})."
        ) from error
