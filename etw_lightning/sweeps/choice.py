"""The rule of a sweep: which grid point of a method is chosen, from the results there are."""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from etw_lightning.schema import InputError
from etw_lightning.sweeps.parts import in_part
from etw_lightning.sweeps.rules import Bound, Select
from etw_lightning.sweeps.run_records import RunRecords
from etw_lightning.sweeps.runs import Finished, Run, find_finished

__all__ = [
    "Point",
    "average",
    "choose",
    "choose_all",
    "excess",
    "gather",
    "is_p_value",
    "log10",
    "needed",
    "of_seeds",
    "rule",
    "validation_words",
]


@dataclass
class Point:
    """One grid point of one method: its runs over the seeds.

    Args:
        method: Label of the method.
        values: Short names of the grid's settings, without the seed, to their values.
        runs: Its runs, one a seed.
        fixed: The same of the settings that the method's grid has one value for.
        results: What each finished run has left; None for one that is missing.
    """

    method: str
    values: tuple[tuple[str, str], ...]
    runs: list[Run] = field(default_factory=list)
    fixed: tuple[tuple[str, str], ...] = ()
    results: list[Finished | None] = field(default_factory=list)

    @property
    def found(self) -> list[Finished]:
        """Results of the finished runs."""
        return [one for one in self.results if one is not None]

    @property
    def is_whole(self) -> bool:
        """Whether every run is finished."""
        return all(one is not None for one in self.results)

    def numbers(self, metric: str, *, of_target: bool = False) -> list[float]:
        """Return a number of each finished run; none at all if one of them lacks it.

        Raises:
            InputError: If it is no number, or no p-value where it must be one.
        """
        numbers = [one.number(metric, of_target=of_target) for one in self.found]
        for one, number in zip(self.found, numbers, strict=True):
            if is_p_value(metric) and number is not None and not 0 <= number <= 1:
                raise InputError(
                    f"{one.folder / 'results.json'}: {metric} must be a p-value, from 0 to 1; got "
                    f"{number}. Remove the folder to run it again."
                )
        known = [number for number in numbers if number is not None]
        return known if len(known) == len(numbers) else []

    def mean(self, metric: str) -> float | None:
        """Return the mean over the finished runs; of p-values the geometric one."""
        return average(metric, self.numbers(metric))

    def share(self, metric: str) -> float | None:
        """Return the mean as a share of the target model's mean."""
        mean, target = self.mean(metric), average(metric, self.numbers(metric, of_target=True))
        return mean / target if mean is not None and target else None


def gather(runs: Sequence[Run]) -> list[Point]:
    """Return the points in the grid's order, with the results there are.

    A run that equals an earlier one has the results of that one.

    Raises:
        InputError: If a run's folder holds anything else that is finished.
    """
    found = find_finished(runs)
    points: dict[tuple[str, tuple[tuple[str, str], ...]], Point] = {}
    for run in runs:
        new = Point(run.method, run.point, fixed=run.fixed)
        point = points.setdefault((run.method, run.point), new)
        point.runs.append(run)
        point.results.append(found.get(run.key))
    return list(points.values())


def choose(points: Sequence[Point], select: Select) -> tuple[Point | None, bool]:
    """Return the point of one method that the rule chooses, and whether it keeps to the bounds.

    Only points all of whose runs are finished can be chosen. Of those that keep to the bounds it is
    the best; if none does, the one nearest to doing so. Of equal points the first counts.

    Returns:
        The point, None if no point is whole; and whether it keeps to every bound.

    Raises:
        InputError: If a finished run lacks a number that the rule needs.
    """
    whole = [point for point in points if point.is_whole]
    if not whole:
        return None, False
    misses = [excess(point, select.bounds) for point in whole]
    aims = [needed(point, select.metric) for point in whole]
    if min(misses) > 0:
        return whole[misses.index(min(misses))], False
    # Among p-values of one sign the order is that of their logarithms.
    better = max if select.maximise else min
    best = better(aim for aim, much in zip(aims, misses, strict=True) if much <= 0)
    return next(
        point
        for point, aim, much in zip(whole, aims, misses, strict=True)
        if aim == best and much <= 0
    ), True


def choose_all(
    points: Sequence[Point], select: Select, records: RunRecords | None = None
) -> dict[str, tuple[Point | None, bool]]:
    """Return what ``choose`` gives of each method, by its validation rows and seeds.

    Args:
        points: Of all methods, with all seeds and the numbers of all rows.
        select: The rule.
        records: Reads what runs hold, where there is a validation part.

    Returns:
        By method one of the points given, None if none is whole; and whether it keeps to every
        bound.

    Raises:
        InputError: If a finished run lacks what the rule needs.
    """
    parts = in_part(points, select, "validation", select.metrics, records)
    held: dict[str, list[tuple[Point, Point]]] = {}
    for point, part in zip(points, parts, strict=True):
        held.setdefault(point.method, []).append((point, of_seeds(part, select.seeds)))
    found: dict[str, tuple[Point | None, bool]] = {}
    for method, pairs in held.items():
        taken, keeps = choose([part for _, part in pairs], select)
        found[method] = next((point for point, part in pairs if part is taken), None), keeps
    return found


def of_seeds(point: Point, seeds: Sequence[str]) -> Point:
    """Return a point with the runs of some seeds.

    Args:
        point: With all its runs.
        seeds: Those of the runs that are kept; none for all.
    """
    pairs = [
        (run, one)
        for run, one in zip(point.runs, point.results, strict=True)
        if not seeds or run.seed in seeds
    ]
    return replace(point, runs=[run for run, _ in pairs], results=[one for _, one in pairs])


def rule(select: Select) -> str:
    """Return the rule in words.

    Example:
        >>> rule(Select("privleak", False, (Bound("verbmem", "at_most", 5.0),)))
        'the lowest privleak (mean over the seeds) among the grid points whose verbmem is at most 5'
    """
    way = "geometric mean" if is_p_value(select.metric) else "mean"
    text = (
        f"the {'highest' if select.maximise else 'lowest'} {select.metric} ({way} over the seeds)"
    )
    words = {"at_least": "at least {:g}", "at_most": "at most {:g}"}
    words["at_least_of_target"] = "at least {:g} of the target model's"
    said = [f"{one.metric} is {words[one.kind].format(one.value)}" for one in select.bounds]
    text = f"{text} among the grid points whose {' and '.join(said)}" if said else text
    if select.seeds:
        text += f", by seed {', '.join(select.seeds)}"
    return text if select.validation is None else f"{text}, on {validation_words(select)}"


def validation_words(select: Select) -> str:
    """Return in words which rows are the validation part.

    Example:
        >>> from etw_lightning.sweeps.rules import Validation
        >>> validation_words(Select("privleak", False, (), Validation(20, 4)))
        'the validation part of the forget rows (every 4th block of 20)'
    """
    assert select.validation is not None
    block, every = select.validation.block, select.validation.every
    ending = {1: "st", 2: "nd", 3: "rd"}.get(every % 10 if every // 10 % 10 != 1 else 0, "th")
    return f"the validation part of the forget rows (every {every}{ending} block of {block})"


def excess(point: Point, bounds: Sequence[Bound]) -> float:
    """Return by how much a point misses the bound it misses most, as a share of it; <= 0: none.

    Raises:
        InputError: If a run lacks a number of a bound, or its target model's.
    """
    worst = -math.inf
    for bound in bounds:
        mean, limit = needed(point, bound.metric), bound.value
        if bound.kind == "at_least_of_target":
            target = average(bound.metric, point.numbers(bound.metric, of_target=True))
            if target is None:
                raise InputError(
                    f"select.subject_to.{bound.metric}.at_least_of_target must be compared with "
                    f"the target model's; runs of {point.method} have none at epoch 0. Let a "
                    "callback score it, and trainer.num_sanity_val_steps be -1."
                )
            limit *= target
        missed = mean - limit if bound.kind == "at_most" else limit - mean
        worst = max(worst, missed / abs(limit) if limit else missed)
    return worst


def needed(point: Point, metric: str) -> float:
    """Return the mean of a number over a point's runs.

    Raises:
        InputError: If one lacks it.
    """
    mean = point.mean(metric)
    if mean is None:
        folder = next(one.folder for one in point.found if metric not in one.metrics)
        raise InputError(
            f"select must name numbers that all runs have; {folder} has no {metric!r}."
        )
    return mean


def average(metric: str, numbers: Sequence[float]) -> float | None:
    """Return the mean, of p-values the geometric one; None of no numbers."""
    if not numbers:
        return None
    if is_p_value(metric):
        return float(10 ** statistics.fmean(map(log10, numbers)))
    return statistics.fmean(numbers)


def log10(p_value: float) -> float:
    """Return the logarithm of a p-value, finite for 0 too."""
    # A p-value of 0 is one that a float can't hold.
    return math.log10(max(p_value, sys.float_info.min))


def is_p_value(metric: str) -> bool:
    """Tell p-values, which are compared by their logarithm, from numbers that add up.

    The floor of forget quality is one too.
    """
    return metric.startswith("forget_quality")
