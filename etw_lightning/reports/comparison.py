"""The methods of a sweep compared: each at its chosen point, and over its whole frontier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from etw_lightning.reports.attack_rows import read_attacks
from etw_lightning.reports.finished_runs import read_run
from etw_lightning.reports.frontier import Frontiers
from etw_lightning.reports.retain_distance import COLUMNS, retain_distance
from etw_lightning.schema import InputError
from etw_lightning.sweeps.choice import Point, choose_all, gather
from etw_lightning.sweeps.grid import Sweep
from etw_lightning.sweeps.parts import PartName, part_numbers
from etw_lightning.sweeps.run_records import RunRecords, Whose
from etw_lightning.sweeps.runs import Finished, Run

__all__ = ["Compared", "Comparison", "Numbers", "compare_methods"]

#: Numbers by name.
Numbers = Mapping[str, float]
#: What a run is judged by beside forget quality and utility, as far as there are records for it.
_FURTHER = tuple(name for names in COLUMNS.values() for name in names if name != "model_utility")
_QUALITY = "forget_quality"
_OTHERS: tuple[Whose, Whose] = ("retain", "target")
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
        attacked: By attack, what it left of each of these runs that was attacked.
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
    measuring = _Measuring(sweep, frontiers, records)
    methods = []
    for method, (chosen, keeps) in taken.items():
        mine = tuple(point for point in found if point.method == method)
        one = Compared(method, mine, chosen, keeps)
        methods.append(one if chosen is None else measuring.measured(one))
    there = [set(found) for one in methods for found in one.distances]
    groups = tuple(group for group in COLUMNS if there and all(group in one for one in there))
    baseline = sweep.frontier.baseline or next(iter(frontiers.methods))
    if baseline not in frontiers.methods:
        raise InputError(f"frontier.baseline: no run of {baseline!r} is finished.")
    notes = tuple(measuring.notes.values())
    return Comparison(sweep, tuple(methods), frontiers, baseline, groups, notes)


class _Measuring:
    """Computes the numbers of chosen points; those of other models once, as many runs share them.

    Args:
        sweep: The sweep's file.
        frontiers: Of its methods; knows the utility of every model.
        records: Reads what runs hold.
    """

    def __init__(self, sweep: Sweep, frontiers: Frontiers, records: RunRecords) -> None:
        self.validation, self.frontiers, self.records = sweep.select.validation, frontiers, records
        #: What can't be had, and why.
        self.notes: dict[str, str] = {}
        self._others: dict[tuple[int, ...], Numbers] = {}

    def measured(self, one: Compared) -> Compared:
        """Return a method with the numbers of the runs of its chosen point."""
        assert one.chosen is not None
        numbers: dict[PartName, list[Numbers]] = {"all": [], "test": [], "validation": []}
        distances: list[Numbers] = []
        attacked: list[dict[str, float]] = []
        for run in one.chosen.found:
            for part, found in numbers.items():
                found.append(self._numbers(run, part, _FURTHER if part == "test" else ()))
            mine = numbers["test"][-1]
            try:
                retain, target = (self._of_other(run, who) for who in _OTHERS)
                distances.append(retain_distance(mine, retain, target))
            except InputError as error:
                distances.append({})
                line = f"the distance to the retain model is left out: {error}"
                self.notes.setdefault("distance", line)
            attacked.append(_attacked(run))
        after = {
            name: sorted(found[name] for found in attacked if name in found)
            for name in sorted(set().union(*attacked))
        }
        for name, left in after.items():
            if len(left) < len(attacked):
                text = f"after {name}: {len(left)} of {len(attacked)} runs of {one.method}."
                self.notes[f"{one.method} {name}"] = text
        return replace(one, numbers=numbers, distances=distances, attacked=after)

    def _of_other(self, run: Finished, who: Whose) -> Numbers:
        """Return the numbers of the target or the retain model, of the test rows."""
        read = [self.records.of(run.folder, who, name) for name in ("forget", "retain")]
        key = tuple(map(id, read))
        if key not in self._others:
            # Privleak is a distance to the retain model as it is.
            further = [name for name in _FURTHER if name != "privleak"]
            self._others[key] = self._numbers(run, "test", further, who)
        return self._others[key]

    def _numbers(
        self, run: Finished, part: PartName, further: Sequence[str], who: Whose = "run"
    ) -> Numbers:
        """Return what can be computed of a run's rows; what can't be is noted."""
        quality = part_numbers(run, [_QUALITY], self.records, part, self.validation, who)
        found = {name: metric.value for name, metric in quality.items()}
        utility = self.frontiers.utility(run, who)
        lost = 100 * (self.frontiers.utility(run, "target") - utility)
        # By name as results.json has them; of the same rows computed anew.
        found |= {
            "model_utility": utility,
            "utility_drop_target": lost,
            "paper_aggregate_target": lost * found[f"neg_log10_{_QUALITY}"],
        }
        for name in further:
            if name in found:
                continue
            try:
                made = part_numbers(run, [name], self.records, part, self.validation, who)
            except InputError as error:
                self.notes.setdefault(name, f"{name} is left out: {error}")
                continue
            found |= {one: metric.value for one, metric in made.items()}
        return found


def _attacked(run: Finished) -> dict[str, float]:
    """Return -log10 of forget quality of all rows after each attack on a run."""
    found = {}
    for held in read_attacks(read_run(run.folder, key="sweep report")):
        after = held["numbers"].get(_ATTACKED, {}).get("after")
        if after is not None:
            found[str(held["attack"])] = float(after)
    return found
