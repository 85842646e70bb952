"""The rule of a sweep's file: by what a grid point of each method is chosen, read and checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from etw_lightning.schema import InputError
from etw_lightning.sweeps.file_checks import as_pairs, check_keys

__all__ = ["Bound", "Select", "read_select"]

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
class Select:
    """The rule by which one grid point of each method is chosen.

    Args:
        metric: Number whose mean over the seeds decides.
        maximise: Whether the highest is best; else the lowest.
        bounds: What the means of a point must keep to.
    """

    metric: str
    maximise: bool
    bounds: tuple[Bound, ...]


def read_select(given: Any) -> Select:
    """Read the rule.

    Args:
        given: What the file holds under ``select``.

    Raises:
        InputError: If it is no rule.
    """
    pairs = as_pairs("select", given)
    check_keys("select.", pairs, ("maximise", "minimise", "subject_to"))
    aims = [name for name in ("maximise", "minimise") if name in pairs]
    if len(aims) != 1:
        raise InputError("select must hold either maximise or minimise, with a number's name.")
    metric = pairs[aims[0]]
    if not isinstance(metric, str):
        raise InputError(f"select.{aims[0]} must be the name of a number; got {metric!r}.")
    bounds = []
    for name, limits in as_pairs("select.subject_to", pairs.get("subject_to") or {}).items():
        place = f"select.subject_to.{name}"
        check_keys(f"{place}.", as_pairs(place, limits), _BOUNDS)
        for kind, value in limits.items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise InputError(f"{place}.{kind} must be a number; got {value!r}.")
            bounds.append(Bound(name, kind, float(value)))
    return Select(metric, aims[0] == "maximise", tuple(bounds))
