"""The methods of a sweep compared: each at its chosen point, and over its whole frontier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from etw_lightning.metrics.retain_distance import COLUMNS, retain_distance
from etw_lightning.reports.attack_rows import read_attacks
from etw_lightning.reports.finished_runs import read_run
from etw_lightning.reports.frontier import Frontiers
from etw_lightning.schema import InputError
from etw_lightning.sweeps.choice import Point, choose_all, gather
from etw_lightning.sweeps.grid import Sweep
from etw_lightning.sweeps.parts import PartName, RunRecords, Who, part_numbers
from etw_lightning.sweeps.runs import Finished, Run

__all__ = ["Compared", "Comparison", "Numbers", "compare_methods"]

#: Numbers by name.
Numbers = Mapping[str, float]
#: What a run is judged by beside forget quality and utility, as far as there are records for it.
_FURTHER = tuple(name for names in COLUMNS.values() for name in names if name != "model_utility")
_QUALITY = ("forget_quality", "model_utility")
_AGGREGATE = "paper_aggregate_target"
#: The number that is shown of an attack.
_ATTACKED = "neg_log10_forget_quality"


@dataclass(frozen=True)
class Compared:
    """One method.

    Args:
        method: Its label.
        points: Its grid points that have finished runs.
        chosen: The one that the rule chooses; None if none is whole.
        keeps: Whether it keeps to every bound.
        numbers: By part of the forget rows, of each run of the chosen point.
        distances: Distance to the retain model of each of these runs, by group.
        attacked: By attack, what it left of each of these runs.
    """

    method: str
    points: tuple[Point, ...]
    chosen: Point | None
    keeps: bool
    numbers: Mapping[PartName, Sequence[Numbers]] = field(default_factory=dict)
    distances: Sequence[Numbers] = ()
    attacked: Mapping[str, Sequence[float]] = field(default_factory=dict)

    def spread(self, name: str, part: PartName = "test") -> list[float]:
        """Return a number of each run of the chosen point, sorted; none if one lacks it."""
        found = [one[name] for one in self.numbers.get(part, ()) if name in one]
        return sorted(found) if len(found) == len(self.numbers.get(part, ())) else []


@dataclass(frozen=True)
class Comparison:
    """All methods of a sweep.

    Args:
        sweep: The sweep's file.
        methods: In its order.
        frontiers: Of those that have finished runs.
        baseline: The method that the others are compared with.
        groups: What the distance to the retain model is made of.
        notes: What can't be had, and why.
    """

    sweep: Sweep
    methods: tuple[Compared, ...]
    frontiers: Frontiers
    baseline: str
    groups: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def parts(self) -> tuple[PartName, ...]:
        """The parts of the forget rows that there are."""
        return ("all",) if self.sweep.select.validation is None else ("validation", "test", "all")


def compare_methods(sweep: Sweep, runs: Sequence[Run]) -> Comparison:
    """Compare the methods of a sweep.

    Args:
        sweep: The sweep's file.
        runs: Its runs, with their keys.

    Raises:
        InputError: If no run is finished, one lacks what the rule needs, or its folder does not
            hold what models said of the rows.
    """
    points, records = gather(runs), RunRecords()
    taken = choose_all(points, sweep.select, records)
    found = [point for point in points if point.found]
    frontiers = Frontiers(sweep, found, records)
    notes: dict[str, str] = {}
    methods = []
    for method, (chosen, keeps) in taken.items():
        mine = tuple(point for point in found if point.method == method)
        one = Compared(method, mine, chosen, keeps)
        methods.append(_measured(one, sweep, records, notes) if chosen is not None else one)
    there = [set(found) for one in methods for found in one.distances]
    groups = tuple(group for group in COLUMNS if there and all(group in one for one in there))
    baseline = sweep.frontier.baseline or next(iter(frontiers.methods))
    if baseline not in frontiers.methods:
        raise InputError(f"frontier.baseline: no run of {baseline!r} is finished.")
    return Comparison(sweep, tuple(methods), frontiers, baseline, groups, tuple(notes.values()))


def _measured(one: Compared, sweep: Sweep, records: RunRecords, notes: dict[str, str]) -> Compared:
    """Return a method with the numbers of the runs of its chosen point."""
    assert one.chosen is not None
    parts: tuple[PartName, ...] = ("all", "test", "validation")
    numbers: dict[PartName, list[Numbers]] = {part: [] for part in parts}
    distances, attacked = [], []
    for run in one.chosen.found:
        for part in parts:
            further = () if part == "validation" else (*_FURTHER, _AGGREGATE)
            numbers[part].append(_numbers(run, sweep, records, part, further, notes))
        mine = numbers["test"][-1]
        retain, target = (
            _numbers(run, sweep, records, "test", _FURTHER, {}, who) for who in ("retain", "target")
        )
        try:
            distances.append(retain_distance(mine, retain, target))
        except InputError as error:
            distances.append({})
            notes.setdefault("distance", f"the distance to the retain model is left out: {error}")
        attacked.append(_attacked(run))
    common = set.intersection(*(set(found) for found in attacked)) if attacked else set()
    return Compared(
        one.method,
        one.points,
        one.chosen,
        one.keeps,
        numbers,
        distances,
        {name: sorted(found[name] for found in attacked) for name in sorted(common)},
    )


def _numbers(
    run: Finished,
    sweep: Sweep,
    records: RunRecords,
    part: PartName,
    further: Sequence[str],
    notes: dict[str, str],
    who: Who = "run",
) -> Numbers:
    """Return what can be computed of a run's rows; what can't be is noted."""
    validation = sweep.select.validation
    found = dict(part_numbers(run, _QUALITY, records, part, validation, who))
    for name in further:
        if name in found or (who == "retain" and name == "privleak"):
            continue
        try:
            found |= part_numbers(run, [name], records, part, validation, who)
        except InputError as error:
            notes.setdefault(name, f"{name} is left out: {error}")
    return {name: metric.value for name, metric in found.items()}


def _attacked(run: Finished) -> dict[str, float]:
    """Return -log10 of forget quality of all rows after each attack on a run."""
    found = {}
    for held in read_attacks(read_run(run.folder, key="sweep report")):
        after = held["numbers"].get(_ATTACKED, {}).get("after")
        if after is not None:
            found[str(held["attack"])] = float(after)
    return found
