"""A search: points drawn one after another by what the earlier ones came to, each a run a seed."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from etw_lightning.runs.key import run_key
from etw_lightning.schema import InputError
from etw_lightning.sweeps.choice import Point, excess, gather, is_p_value, log10, needed
from etw_lightning.sweeps.grid import SEED, Sweep, value_text
from etw_lightning.sweeps.parts import in_part
from etw_lightning.sweeps.processes import run_all, say
from etw_lightning.sweeps.ranges import Range
from etw_lightning.sweeps.reading import Parse, SettingsReader, with_keys
from etw_lightning.sweeps.report import check_metrics
from etw_lightning.sweeps.runs import Run, base_words, find_finished, make_run
from etw_lightning.sweeps.study import JOURNAL, Drawn, Study, open_journal

__all__ = ["Searches"]

#: Numbers that lie between 0 and 1.
_SHARES = re.compile(
    r"model_utility|forget_quality|extraction_strength|\w+_(probability|truth_ratio|rougeL_\w+)"
)


@dataclass(frozen=True)
class _Space:
    """What is searched of a method, and what all its points have in common."""

    searched: Mapping[str, Sequence[Any] | Range]
    fixed: Mapping[str, Any]
    seeds: Sequence[Any]


class Searches:
    """One search for each method of a sweep, each with as many points.

    Args:
        sweep: The sweep's file.
        parse: Gives the configuration that the words of a ``fit`` command mean.
        seed: Seed of the draws.

    Raises:
        InputError: If nothing is to be searched, a range holds what a run can't be, or the floor
            can't be met or is of no number.
    """

    def __init__(self, sweep: Sweep, parse: Parse, seed: int) -> None:
        self.sweep, self.seed = sweep, seed
        self.folder = Path(sweep.output_dir)
        self.spaces = {method: _space(method, grid) for method, (_, grid) in sweep.methods.items()}
        _check_floor(sweep)
        if sweep.select.seeds:
            raise InputError(
                "select.seeds must be left out of a search, which runs each point with all seeds; "
                f"got {', '.join(sweep.select.seeds)}."
            )
        ends = [run for method in self.spaces for run in self._ends(method)]
        self.reader = SettingsReader(parse, ends)
        #: Runs that have each value, and both ends of each range, once.
        self.ends = with_keys(ends, self.reader)
        check_metrics(sweep, (run.settings for run in self.ends))
        self.names = {method: self._name(method, parse) for method in self.spaces}

    def _ends(self, method: str) -> list[Run]:
        """Return runs that have each value, and both ends of each range, once."""
        space = self.spaces[method]
        values = {
            key: list(one.ends) if isinstance(one, Range) else list(one)
            for key, one in space.searched.items()
        }
        first = {key: some[0] for key, some in values.items()}
        points = [first, *({**first, key: one} for key in values for one in values[key][1:])]
        return [self._runs(method, point)[0] for point in points]

    def _runs(self, method: str, values: Mapping[str, Any]) -> list[Run]:
        """Return the runs of a point, one a seed; numbers rounded as they are run with."""
        space = self.spaces[method]
        point: dict[str, Any] = dict(space.fixed)
        for key, one in space.searched.items():
            point[key] = one.rounded(values[key]) if isinstance(one, Range) else values[key]
        seeds = [{SEED: seed} for seed in space.seeds] or [{}]
        return [make_run(self.sweep, method, {**point, **one}, space.searched) for one in seeds]

    def _name(self, method: str, parse: Parse) -> str:
        """Return a method with a hash of all that what is drawn depends on."""
        space, select = self.spaces[method], self.sweep.select
        held = select.validation
        decides = {
            "base": run_key(parse(base_words(self.sweep, method))),
            "space": {
                key: str(one) if isinstance(one, Range) else list(one)
                for key, one in space.searched.items()
            },
            "fixed": {key: value_text(value) for key, value in space.fixed.items()},
            "seeds": [value_text(seed) for seed in space.seeds],
            "select": repr(select) if held is None else f"{select!r}, {held}",
            "seed": self.seed,
        }
        text = json.dumps(decides, sort_keys=True).encode()
        return f"{method} {hashlib.sha256(text).hexdigest()[:16]}"

    def run(self, trials: int, jobs: int) -> int:
        """Draw points until each method has its number of them; the folder must be held.

        Args:
            trials: Points of each method, those of earlier calls among them.
            jobs: Runs at a time.

        Returns:
            How many runs failed.

        Raises:
            InputError: If the journal can't be read, a folder can't be used, or a run lacks a
                number that the rule reads.
        """
        storage = open_journal(self.folder, mends=True)
        studies = {
            method: Study(storage, name, self.spaces[method].searched, seed=self.seed,
                          maximise=self.sweep.select.maximise)
            for method, name in self.names.items()
        }  # fmt: skip
        for method, study in studies.items():
            if study.num_ended:
                say(f"{method}: {study.num_ended} points are known from before")
        a_round = sum(max(len(space.seeds), 1) for space in self.spaces.values())
        # So many points of a method at a time keep all jobs at work; one where it makes no odds.
        at_once, failed = math.ceil(jobs / a_round), 0
        while True:
            asked = [
                (study, method, drawn)
                for method, study in studies.items()
                for drawn in _next(study, min(at_once, trials - study.num_ended))
            ]
            if not asked:
                return failed
            failed += self._run_round(asked, trials, jobs)

    def _run_round(self, asked: Sequence[tuple[Study, str, Drawn]], trials: int, jobs: int) -> int:
        runs: dict[str, Run] = {}
        points: list[list[Run]] = []
        for _, method, drawn in asked:
            mine = with_keys(self._runs(method, drawn.values), self.reader)
            # Of two points that are the same one once they are rounded, one is run.
            points.append([runs.setdefault(run.name, run) for run in mine])
            say(f"point {drawn.number + 1} of {trials}, {_said(mine[0])}")
        whole = list(runs.values())
        found = find_finished(whole)
        for run in whole:
            if run.key in found:
                say(f"skipped {run.name}: finished, {found[run.key].folder}")
        failed = run_all([run for run in whole if run.key not in found], jobs)
        for (study, _, drawn), mine in zip(asked, points, strict=True):
            select = self.sweep.select
            self._tell(study, drawn, in_part(gather(mine), select, "validation", select.metrics)[0])
        return failed

    def _tell(self, study: Study, drawn: Drawn, point: Point) -> None:
        if not point.is_whole:
            study.fail(drawn)
            say(f"point {drawn.number + 1}, {point.method}: has no number")
            return
        select = self.sweep.select
        mean = needed(point, select.metric)
        miss = excess(point, select.bounds) if select.bounds else None
        study.tell(drawn, log10(mean) if is_p_value(select.metric) else mean, miss)
        kept = "" if miss is None else "; keeps to the floor"
        if miss is not None and miss > 0:
            kept = f"; misses the floor by {100 * miss:.1f} %"
        where = f"point {drawn.number + 1}, {point.method}"
        say(f"{where}: {select.metric} {mean:.4g}{kept}")

    def drawn_runs(self) -> list[Run]:
        """Return the runs of all points drawn so far, with their keys.

        Raises:
            InputError: If the journal can't be read.
        """
        if not (self.folder / JOURNAL).is_file():
            return []
        storage = open_journal(self.folder, mends=False)
        runs: dict[str, Run] = {}
        for method, name in self.names.items():
            try:
                study = Study(storage, name, self.spaces[method].searched, reads=True)
            except KeyError:
                continue  # nothing was drawn for it
            for drawn in study.drawn:
                runs |= {run.name: run for run in self._runs(method, drawn.values)}
        return with_keys(list(runs.values()), self.reader)


def _next(study: Study, count: int) -> list[Drawn]:
    """Return the points that come next: first those that were broken off."""
    begun = study.broken_off()[: max(count, 0)]
    return begun + [study.draw() for _ in range(count - len(begun))]


def _said(run: Run) -> str:
    return f"{run.method}: {', '.join(f'{name} {value}' for name, value in run.point)}"


def _space(method: str, grid: Mapping[str, Sequence[Any] | Range]) -> _Space:
    seeds = grid.get(SEED, ())
    if isinstance(seeds, Range):
        raise InputError(
            f"{SEED} must be a list of values; got {seeds}. A point's number is the mean over "
            "its seeds."
        )
    rest = {key: values for key, values in grid.items() if key != SEED}
    searched: dict[str, Sequence[Any] | Range] = {}
    fixed: dict[str, Any] = {}
    for key, values in rest.items():
        if isinstance(values, Range) or len(values) > 1:
            searched[key] = values
        else:
            fixed[key] = values[0]
    if not searched:
        raise InputError(
            f"sweep search needs at least one range; {method} has none. Give one as --over "
            "model.lambda=log:0.01..1, or in the sweep's file."
        )
    return _Space(searched, fixed, seeds)


def _check_floor(sweep: Sweep) -> None:
    """Refuse bounds that no model can keep to."""
    for bound in sweep.select.bounds:
        place = f"select.subject_to.{bound.metric}.{bound.kind}"
        if bound.kind == "at_least_of_target" and not 0 < bound.value <= 1:
            raise InputError(
                f"{place} must be a share of the target model's, above 0 and at most 1; got "
                f"{bound.value:g}."
            )
        is_share = _SHARES.fullmatch(bound.metric) is not None
        if is_share and bound.kind == "at_least" and not bound.value <= 1:
            raise InputError(f"{place} can't be met: the number is at most 1; got {bound.value:g}.")
        if is_share and bound.kind == "at_most" and not bound.value >= 0:
            raise InputError(
                f"{place} can't be met: the number is at least 0; got {bound.value:g}."
            )
        others = [
            o for o in sweep.select.bounds if o.metric == bound.metric and o.kind == "at_most"
        ]
        if bound.kind == "at_least" and any(one.value < bound.value for one in others):
            raise InputError(f"{place} can't be met: at_most is below it.")
