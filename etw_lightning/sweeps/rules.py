"""The rules of a sweep's file: how a point is chosen and frontiers compared, read and checked."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from etw_lightning.schema import InputError
from etw_lightning.sweeps.file_checks import as_pairs, check_keys, optional, value_text

__all__ = ["Bound", "Frontier", "Select", "Validation", "read_frontier", "read_select"]

#: Draws of a bootstrap. Fewer tell no 2.5th percentile; 20,000 leave its ends a chance error of a
#: fiftieth of their standard error, and take half a GiB: each holds 27 KB while 400 forget rows are
#: drawn.
_DRAWS = (100, 20_000)
_BOUNDS = ("at_least", "at_most", "at_least_of_target")


@dataclass(frozen=True)
class Bound:
    """What a number must keep to.

    Args:
        metric: Its name in ``results.json``.
        kind: ``at_least``, ``at_most``, or ``at_least_of_target``: a share of the target model's.
        value: The bound, or the share.
    """

    metric: str
    kind: str
    value: float


@dataclass(frozen=True)
class Validation:
    """The forget rows by which a point is chosen; numbers are reported of the others.

    Args:
        block: Rows, in order, that belong together: all of one person, say.
        every: Which of the blocks are the validation part: each so-manyth.
    """

    block: int
    every: int


@dataclass(frozen=True)
class Select:
    """The rule by which one grid point of each method is chosen.

    Args:
        metric: Number whose mean over the seeds decides.
        maximise: Whether the highest is best; else the lowest.
        bounds: What the means of a point must keep to.
        validation: The forget rows by which it is chosen; None takes all, for choice and report.
        seeds: Seeds by which it is chosen, the others are run at the chosen points alone; none
            for all.
    """

    metric: str
    maximise: bool
    bounds: tuple[Bound, ...]
    validation: Validation | None = field(default=None, repr=False)
    seeds: tuple[str, ...] = field(default=(), repr=False)

    @property
    def metrics(self) -> tuple[str, ...]:
        """The numbers that the rule reads."""
        return (self.metric, *(bound.metric for bound in self.bounds))


@dataclass(frozen=True)
class Frontier:
    """How the frontiers of forgetting against utility are compared.

    Args:
        baseline: Method that the others are compared with; None for the first.
        floor: Least utility that counts, as a share of the target model's.
        draws: Draws of the bootstrap, 100 to 20,000.
    """

    baseline: str | None = None
    floor: float = 0.8
    draws: int = 2000


def read_select(given: Any) -> Select:
    """Read the rule.

    Args:
        given: What the file holds under ``select``.

    Raises:
        InputError: If it is no rule.
    """
    pairs = as_pairs("select", given)
    check_keys("select.", pairs, ("maximise", "minimise", "subject_to", "validation", "seeds"))
    aims = [name for name in ("maximise", "minimise") if name in pairs]
    if len(aims) != 1:
        raise InputError("select must hold either maximise or minimise, with a number's name.")
    metric = pairs[aims[0]]
    if not isinstance(metric, str):
        raise InputError(f"select.{aims[0]} must be the name of a number; got {metric!r}.")
    bounds = []
    for name, limits in as_pairs("select.subject_to", optional(pairs, "subject_to")).items():
        place = f"select.subject_to.{name}"
        check_keys(f"{place}.", as_pairs(place, limits), _BOUNDS)
        if not limits:
            raise InputError(f"{place} must hold {' or '.join(_BOUNDS)}; got none.")
        for kind, value in limits.items():
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if not is_number or not math.isfinite(value):
                raise InputError(f"{place}.{kind} must be a finite number; got {value!r}.")
            bounds.append(Bound(name, kind, float(value)))
    validation, seeds = pairs.get("validation"), pairs.get("seeds")
    return Select(
        metric,
        aims[0] == "maximise",
        tuple(bounds),
        None if validation is None else _validation(validation),
        () if seeds is None else _seeds(seeds),
    )


def _validation(given: Any) -> Validation:
    """Check how the forget rows are parted."""
    pairs = as_pairs("select.validation", given)
    check_keys("select.validation.", pairs, ("block", "every"))
    for key, least in (("block", 1), ("every", 2)):
        value = pairs.get(key)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise InputError(
                f"select.validation.{key} must be a whole number >= {least}; got {value!r}. "
                "{block: 20, every: 4} takes each fourth author of TOFU, who has 20 rows."
            )
    return Validation(pairs["block"], pairs["every"])


def _seeds(given: Any) -> tuple[str, ...]:
    if not isinstance(given, list) or not given:
        raise InputError(f"select.seeds must be a list of seeds, as [0]; got {given!r:.60}.")
    seeds = tuple(map(value_text, given))
    twice = next((seed for seed in seeds if seeds.count(seed) > 1), None)
    if twice is not None:
        raise InputError(f"select.seeds must hold each seed once; got {twice} more often.")
    return seeds


def read_frontier(given: Any, methods: Collection[str]) -> Frontier:
    """Read how frontiers are compared.

    Args:
        given: What the file holds under ``frontier``.
        methods: Labels of the methods.

    Raises:
        InputError: If a key is unknown, or a value is none that it takes.
    """
    pairs = as_pairs("frontier", given)
    check_keys("frontier.", pairs, ("baseline", "floor", "draws"))
    baseline, floor = pairs.get("baseline"), pairs.get("floor", Frontier.floor)
    draws = pairs.get("draws", Frontier.draws)
    if baseline is not None and baseline not in tuple(methods):
        raise InputError(
            f"frontier.baseline must be one of the methods, {', '.join(methods)}; got {baseline!r}."
        )
    if isinstance(floor, bool) or not isinstance(floor, int | float) or not 0 <= floor < 1:
        raise InputError(f"frontier.floor must be a number from 0 to below 1; got {floor!r}.")
    least, most = _DRAWS
    if isinstance(draws, bool) or not isinstance(draws, int) or not least <= draws <= most:
        raise InputError(
            f"frontier.draws must be a whole number from {least} to {most}; got {draws!r}. More "
            "take gigabytes and no longer move an interval."
        )
    return Frontier(baseline, float(floor), draws)
