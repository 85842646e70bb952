"""A metric of the user's own, given by the path of its class."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from typing import Any, ClassVar, cast, get_args

from etw_lightning.catalogue.entries import Entry, Extra, Family, Given, Part
from etw_lightning.catalogue.listing import CATALOGUE
from etw_lightning.files.class_paths import build, class_at, path_of, telling
from etw_lightning.metrics import Metric
from etw_lightning.schema import InputError

__all__ = ["OwnMetric", "name_of", "own_entry"]

#: What passes after the scoring make for metrics of ours alone.
_PASSES: frozenset[Extra] = frozenset({"classifier", "generations", "depth", "spacy"})


class OwnMetric(ABC):
    """Numbers computed from records; the class's docstring is their page in ``explain``."""

    #: Evaluation sets whose records are read, ``*`` for all there are.
    sets: ClassVar[Collection[str]] = ("forget",)
    #: What must have been scored of them: ``answers``, ``generation``, ``gradient_norm``.
    parts: ClassVar[Collection[str]] = ("answers",)
    #: What else is read: ``retain``, ``retain_tokens``, ``target``, ``annotations``.
    needs: ClassVar[Collection[str]] = ()

    @abstractmethod
    def compute(self, given: Given) -> Mapping[str, Metric]:
        """Return the numbers, by names that no other metric has.

        Args:
            given: ``given.records[set]`` are the model's records, ``given.retain[set]`` and
                ``given.target[set]`` those of the other models.
        """


#: Classes that were given themselves, by path: a notebook's can't be imported.
_GIVEN: dict[str, type[OwnMetric]] = {}


def name_of(metric: str | type[OwnMetric]) -> str:
    """Return the name of a metric; a class of the user's own is found by its path from now on.

    Raises:
        InputError: If it is neither a name nor such a class.
    """
    if isinstance(metric, str):
        return metric.strip()
    if not (isinstance(metric, type) and issubclass(metric, OwnMetric)):
        raise InputError(f"metrics must be names or classes of OwnMetric; got {metric!r:.60}.")
    path = path_of(metric)
    _GIVEN[path] = metric
    return path


def own_entry(path: str) -> Entry:
    """Return what the catalogue would hold of a metric of the user's own.

    Args:
        path: ``module.Class``.

    Raises:
        InputError: If there is no such class, or it asks for what there is not.
    """
    kind = _GIVEN.get(path) or class_at(path, OwnMetric, "metrics")
    offered = [one for one in get_args(Extra) if one not in _PASSES]
    for key, asked, known in (
        ("parts", kind.parts, get_args(Part)),
        ("needs", kind.needs, offered),
    ):
        for name in asked:
            if name not in known:
                raise InputError(
                    f"metrics: {path}.{key} must be some of {', '.join(known)}; got {name!r}."
                )
    metric = build(kind, path, "metrics")
    sets = tuple(kind.sets)

    def compute(given: Given, _sets: tuple[str, ...]) -> dict[str, Metric]:
        with telling(kind, f"metrics: {path}.compute failed"):
            found = metric.compute(given)
        return _checked(path, found)

    return Entry(
        pages=(kind,),
        sets=dict.fromkeys(get_args(Family), sets),
        compute=compute,
        emits=(path,),
        parts=frozenset(cast(Collection[Part], kind.parts)),
        needs=frozenset(cast(Collection[Extra], kind.needs)),
    )


def _checked(path: str, found: Any) -> dict[str, Metric]:
    """Refuse what is no number by name, or would take the place of another metric's."""
    if not isinstance(found, Mapping):
        raise InputError(
            f"metrics: {path}.compute must return numbers by name, {{name: Metric(...)}}; got "
            f"{found!r:.60}."
        )
    for name, metric in found.items():
        if not isinstance(metric, Metric):
            raise InputError(
                f"metrics: {path}.compute must return a Metric for {name!r}: Metric(value, "
                f"direction, n); got {metric!r:.60}."
            )
        if not math.isfinite(metric.value):
            raise InputError(f"metrics: {path} gives {metric.value} as {name!r}; give a number.")
        if name in CATALOGUE or any(e.gives(name, e.known_sets) for e in CATALOGUE.values()):
            raise InputError(
                f"metrics: {path} gives a number called {name!r}, which is one of ours; choose "
                "another name."
            )
    return dict(found)
