"""The frontier of each method of a sweep: its points, the area under it, and intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from etw_lightning.metrics.likelihoods import truth_ratios
from etw_lightning.metrics.tofu import utility_values
from etw_lightning.metrics.values import Floats
from etw_lightning.metrics.words import WordRule
from etw_lightning.reports.areas import (
    basic_interval,
    drawn_distances,
    drawn_utilities,
    frontier_area,
)
from etw_lightning.schema import InputError
from etw_lightning.sweeps.choice import Point
from etw_lightning.sweeps.grid import Sweep
from etw_lightning.sweeps.parts import rows_of
from etw_lightning.sweeps.run_records import RunRecords, Whose
from etw_lightning.sweeps.runs import Finished

__all__ = ["Area", "Frontiers", "Place"]

Counts = NDArray[np.int64]
_KEPT = ("retain", "real_authors", "world_facts")


@dataclass(frozen=True)
class Place:
    """Where a grid point lies: the mean over its seeds.

    Args:
        point: The point.
        kept: Model utility as a share of the target model's.
        distance: KS distance of the truth ratios to the retain model's.
        seeds: The two of each seed.
    """

    point: Point
    kept: float
    distance: float
    seeds: tuple[tuple[float, float], ...]

    @property
    def distances(self) -> list[float]:
        """The KS distance of each seed."""
        return [distance for _, distance in self.seeds]


@dataclass(frozen=True)
class Area:
    """The area under a method's frontier.

    Args:
        value: The area.
        interval: Its bootstrap interval of 95 %.
        difference: To the baseline's area; None of the baseline.
        difference_interval: The same of the difference, on the same draws.
    """

    value: float
    interval: tuple[float, float]
    difference: float | None = None
    difference_interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class _Drawn:
    """A run's two numbers and its target model's distance: of all rows first, then of each draw."""

    kept: Floats
    distance: Floats
    of_target: Floats


class Frontiers:
    """Points, areas and intervals of all methods, on the same draws of rows and seeds.

    Args:
        sweep: The sweep's file: the parts of the forget rows, the floor and the number of draws.
        points: Grid points that have finished runs.
        records: Reads what the runs' folders hold.

    Raises:
        InputError: If there is no point, a folder lacks records, or runs are of other rows.
    """

    def __init__(self, sweep: Sweep, points: Sequence[Point], records: RunRecords) -> None:
        if not points:
            raise InputError(f"sweep report: no run is finished in {sweep.output_dir!r}.")
        self.sweep, self._records = sweep, records
        self._counts: dict[str, Counts] = {}
        self._utilities: dict[tuple[int, ...], Floats] = {}
        self._own: dict[Path, Floats] = {}
        self._draw = np.random.default_rng(0)
        runs = {one.folder: one for point in points for one in point.found}
        self._drawn = {folder: self._drawn_of(run) for folder, run in runs.items()}
        # The retain and the target model of each seed, where each has its own.
        bases = {one.of_target.tobytes(): one.of_target for one in self._drawn.values()}
        self._base: Floats = 1 - np.mean(list(bases.values()), axis=0)
        self._seeds: dict[tuple[str, ...], Counts] = {}
        self.methods: dict[str, list[Place]] = {}
        self._areas: dict[str, Floats] = {}
        for point in points:
            self.methods.setdefault(point.method, []).append(self._place(point))
        for method, places in self.methods.items():
            means = [self._mean(place.point) for place in places]
            kept, distance = (np.stack(side, -1) for side in zip(*means, strict=True))
            self._areas[method] = frontier_area(
                kept, 1 - distance, sweep.frontier.floor, self._base
            )

    @property
    def base(self) -> float:
        """The target model's own area: 1 minus its KS distance to the retain model."""
        return float(self._base[0])

    @property
    def num_rows(self) -> int:
        """Forget rows that the distances are of."""
        return self._counts["forget"].shape[1]

    def place_of(self, point: Point) -> Place:
        """Return where a point lies.

        Args:
            point: One of those given.
        """
        return next(one for one in self.methods[point.method] if one.point is point)

    def area(self, method: str, baseline: str) -> Area:
        """Return the area under a method's frontier, and the difference to another's.

        Args:
            method: The method.
            baseline: The other.
        """
        mine = self._areas[method]
        # Reflected, an end may lie outside of what an area can be.
        low, high = basic_interval(float(mine[0]), mine[1:])
        interval = (max(low, 0.0), min(high, 1.0))
        if method == baseline:
            return Area(float(mine[0]), interval)
        gap = mine - self._areas[baseline]
        # What lifts each KS distance of drawn rows cancels here.
        ends = np.percentile(gap[1:], [2.5, 97.5])
        return Area(float(mine[0]), interval, float(gap[0]), (float(ends[0]), float(ends[1])))

    def _place(self, point: Point) -> Place:
        drawn = [self._drawn[one.folder] for one in point.found]
        seeds = tuple((float(one.kept[0]), float(one.distance[0])) for one in drawn)
        kept, distance = (float(np.mean(side)) for side in zip(*seeds, strict=True))
        return Place(point, kept, distance, seeds)

    def _mean(self, point: Point) -> tuple[Floats, Floats]:
        """Return a point's mean over its seeds, of each draw over seeds drawn with it."""
        drawn = [self._drawn[one.folder] for one in point.found]
        pairs = zip(point.runs, point.results, strict=True)
        names = tuple(run.seed for run, one in pairs if one is not None)
        counts = self._seed_counts(names)
        kept, distance = (
            (counts * np.stack([getattr(one, side) for one in drawn], -1)).sum(-1) / len(drawn)
            for side in ("kept", "distance")
        )
        return kept, distance

    def _seed_counts(self, names: tuple[str, ...]) -> Counts:
        """Return how often each seed is in each draw; points of equal seeds have equal draws."""
        if names not in self._seeds:
            self._seeds[names] = self._with_all(len(names), np.arange(len(names)))
        return self._seeds[names]

    def _with_all(self, n: int, blocks: NDArray[np.int64]) -> Counts:
        """Return counts of rows: once each first, then of draws of whole blocks.

        Args:
            n: Rows.
            blocks: The block of each, numbered from 0 without a gap.
        """
        count = int(blocks.max()) + 1
        chances = np.full(count, 1 / count)
        drawn = self._draw.multinomial(count, chances, size=self.sweep.frontier.draws)
        return np.concatenate([np.ones((1, n), dtype=np.int64), drawn[:, blocks]])

    def _counts_of(self, name: str, places: Sequence[int], block: int, run: Finished) -> Counts:
        """Return the draws of a set's rows, the same for all runs."""
        if name not in self._counts:
            blocks = np.unique(np.array(places) // block, return_inverse=True)[1]
            self._counts[name] = self._with_all(len(places), blocks)
        if self._counts[name].shape[1] != len(places):
            raise InputError(
                f"sweep report: {str(run.folder)!r} has {len(places)} rows of {name!r}, an earlier "
                f"run {self._counts[name].shape[1]}: runs of other rows have no common frontier."
            )
        return self._counts[name]

    def _drawn_of(self, run: Finished) -> _Drawn:
        validation = self.sweep.select.validation
        whose: tuple[Whose, ...] = ("run", "target", "retain")
        said = [self._records.of(run.folder, who, "forget") for who in whose]
        if len({len(rows) for rows in said}) > 1:
            raise InputError(
                f"sweep report: {str(run.folder)!r} holds {', '.join(str(len(r)) for r in said)} "
                "forget rows of the trained, the target and the retain model; they must be the "
                "same."
            )
        places = rows_of(len(said[0]), validation, "test")
        mine, target, retain = (truth_ratios([rows[p] for p in places]) for rows in said)
        block = 1 if validation is None else validation.block
        counts = self._counts_of("forget", places, block, run)
        kept = self._utility(run, "run") / self._utility(run, "target")
        return _Drawn(
            kept, drawn_distances(mine, retain, counts), drawn_distances(target, retain, counts)
        )

    def utility(self, run: Finished, who: Whose) -> float:
        """Return the model utility of all rows.

        Args:
            run: One of the runs.
            who: Whose utility.
        """
        if who == "run":
            return float(self._own[run.folder][0])
        return float(self._utility(run, who)[0])

    def _utility(self, run: Finished, who: Whose) -> Floats:
        words: WordRule = run.provenance.get("rouge_tokenizer", "published")
        sets = {name: self._records.of(run.folder, who, name) for name in _KEPT}
        # The target model is the same for many runs, and its rows are read once.
        key = tuple(id(rows) for rows in sets.values())
        if who == "run" or key not in self._utilities:
            values: dict[str, Floats] = {}
            counts: Mapping[str, Counts] = {
                name: self._counts_of(name, range(len(rows)), 1, run) for name, rows in sets.items()
            }
            for name, rows in sets.items():
                values |= utility_values(rows, name, words)
            found = drawn_utilities(values, counts)
            if not found.min() > 0 and who == "target":
                raise InputError(
                    f"sweep report: the target model of {str(run.folder)!r} has no utility, of "
                    "which the frontier takes shares."
                )
            if who == "run":
                self._own[run.folder] = found
                return found
            self._utilities[key] = found
        return self._utilities[key]
