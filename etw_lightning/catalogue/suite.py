"""Chooses metrics of the catalogue, says what must be scored for them, and computes them.

``fit`` and ``evaluate`` ask which sets to score, and which parts of them, so that nothing is scored
that no metric reads.
"""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from etw_lightning.catalogue.attacked import OF_ATTACKS, attack_metric_of
from etw_lightning.catalogue.entries import Ability, Sets
from etw_lightning.catalogue.listing import (
    CATALOGUE,
    FAMILIES,
    KEYS,
    Entry,
    Extra,
    Family,
    Given,
    Part,
)
from etw_lightning.catalogue.own import OwnMetric, name_of, own_entry
from etw_lightning.files.class_paths import is_class_path
from etw_lightning.metrics import Metric
from etw_lightning.schema import InputError

__all__ = [
    "NoMetricError",
    "Plan",
    "explain",
    "is_known_number",
    "metric_names",
    "metric_of",
    "select",
]


class NoMetricError(InputError):
    """Of the metrics that were wanted none can be had."""


@dataclass(frozen=True)
class Plan:
    """The metrics of one evaluation.

    Args:
        entries: By name.
        family: Of the benchmark.
        offered: Sets of the data, for metrics of all sets.
        left_out: Metrics of the suite that can't be computed here, each with the key it lacks.
        is_whole: Nobody named the metrics: one that can't be computed does not lose the others.
        beside: Sets of which the other models' own numbers are wanted too, by role.
        failed: Such metrics, each with the reason; filled by ``compute``.
    """

    entries: Mapping[str, Entry]
    family: Family
    offered: tuple[str, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)
    is_whole: bool = False
    beside: Mapping[str, Collection[str]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict, compare=False)

    @property
    def parts(self) -> dict[str, frozenset[Part]]:
        """What to score of each set, by its name."""
        return self._parts_of(self.entries.values())

    @property
    def retain_parts(self) -> dict[str, frozenset[Part]]:
        """What of each set the retain model must have said."""
        retain: frozenset[Extra] = frozenset({"retain", "retain_tokens"})
        return self._parts_of(
            e for e in self.entries.values() if e.needs & retain or self._is_beside(e, "retain")
        )

    @property
    def target_parts(self) -> dict[str, frozenset[Part]]:
        """What of each set the target model must have said."""
        return self._parts_of(
            e for e in self.entries.values() if "target" in e.needs or self._is_beside(e, "target")
        )

    def _is_beside(self, entry: Entry, role: Literal["retain", "target"]) -> bool:
        """Tell whether another model's number of own rows is to stand beside this one's."""
        held = self.beside.get(role, ())
        return not entry.needs and all(name in held for name in self._sets(entry))

    @property
    def needs(self) -> frozenset[Extra]:
        """Everything the metrics need besides the model's records."""
        return frozenset().union(*(entry.needs for entry in self.entries.values()))

    def compute(self, given: Given) -> dict[str, Metric]:
        """Return all numbers by name, in the order of the catalogue.

        Of the whole suite, ``failed`` then says which metrics are not among them, and why.

        Raises:
            InputError: If a set, a field or a row is missing, or a number is not finite; for the
                whole suite only if no metric can be computed.
        """
        found: dict[str, Metric] = {}
        self.failed.clear()
        for name, entry in self.entries.items():
            with self._noting(name):
                found |= entry.compute(given, self._sets(entry))
        if self.entries and not found:
            name, reason = next(iter(self.failed.items()))
            raise InputError(f"metrics: none can be computed; {name}: {reason}")
        return found

    @contextmanager
    def _noting(self, name: str) -> Iterator[None]:
        """Note why a metric of the whole suite can't be computed, and go on."""
        try:
            yield
        except InputError as error:
            if not self.is_whole:
                raise
            self.failed.setdefault(name, str(error))

    def compute_of_other(
        self, given: Given, records: Sets, parts: Mapping[str, Collection[Part]]
    ) -> dict[str, Metric]:
        """Return what the retain or the target model itself has, as far as its records go.

        Nobody asked for these by name: what can't be computed is left out.

        Args:
            given: Of the model that is evaluated.
            records: The other model's.
            parts: What was scored of each.
        """
        found: dict[str, Metric] = {}
        for entry in self.entries.values():
            sets = self._sets(entry)
            if not entry.needs and all(entry.parts <= set(parts.get(name, ())) for name in sets):
                with suppress(InputError):
                    found |= entry.compute(replace(given, records=records), sets)
        return found

    def details(self, given: Given) -> dict[str, Any]:
        """Return what is no single number, such as histograms, for JSON; after ``compute``."""
        found: dict[str, Any] = {}
        for name, entry in self.entries.items():
            if entry.detail is not None:
                with self._noting(name):
                    found |= entry.detail(given, self._sets(entry))
        return found

    def _sets(self, entry: Entry) -> tuple[str, ...]:
        sets = entry.sets[self.family]
        return self.offered if sets == ("*",) else sets

    def _parts_of(self, entries: Iterable[Entry]) -> dict[str, frozenset[Part]]:
        wanted: dict[str, frozenset[Part]] = {}
        for entry in entries:
            for name in self._sets(entry):
                wanted[name] = wanted.get(name, frozenset()) | entry.parts
        return wanted


def metric_names(
    metrics: str | Sequence[str | type[OwnMetric]] | None,
) -> list[str] | None:
    """Return the names of ``metrics``, however they are given.

    Example:
        >>> metric_names("forget_quality, privleak")
        ['forget_quality', 'privleak']
    """
    if metrics is None:
        return None
    listed = metrics.split(",") if isinstance(metrics, str) else metrics
    return list(dict.fromkeys(filter(None, map(name_of, listed))))


def select(
    names: Sequence[str] | None,
    benchmark: str,
    has: Collection[Extra] = (),
    sets: Collection[str] | None = None,
    retain_sets: Collection[str] | None = None,
    family: Family | None = None,
    able: Mapping[str, Collection[Ability]] | None = None,
) -> Plan:
    """Return the plan for some metrics of a benchmark.

    Args:
        names: Names of the catalogue, or class paths of ``OwnMetric``; None for the whole suite,
            of which what lacks an input is left out by name.
        benchmark: ``data.benchmark``.
        has: The extras that are at hand.
        sets: Sets the data offers; None for all.
        retain_sets: Sets the retain results hold; None where they can be scored at will.
        family: Of the benchmark; None looks its name up.
        able: What the rows of each set of own rows allow; None for everything.

    Raises:
        InputError: If there is no such metric, the benchmark does not offer it, or what it needs
            is missing.
    """
    family = FAMILIES[benchmark] if family is None else family
    table = {
        name: _fitting(entry, family, able or {})
        for name, entry in CATALOGUE.items()
        if family in entry.sets
    }
    table |= {name: own_entry(name) for name in names or () if is_class_path(name)}
    chosen: dict[str, Entry] = {}
    left_out: dict[str, str] = {}
    for name in table if names is None else names:
        if name not in table:
            raise InputError(_unknown(name, benchmark, table))
        lack = _lack(table[name], family, has, sets, retain_sets)
        if names is not None and lack:
            raise InputError(
                f"metrics: {name} needs {lack}; give it, or leave {name} out of --metrics."
            )
        if lack:
            left_out[name] = f"needs {lack}"
        elif names is None and not table[name].by_default:
            left_out[name] = "slow: only evaluate --metrics computes it"
        else:
            chosen[name] = table[name]
    if not chosen:
        raise NoMetricError(f"metrics must name at least one of {', '.join(table)}.")
    ordered = {name: table[name] for name in table if name in chosen}
    return Plan(ordered, family, tuple(sets or ()), left_out, is_whole=names is None)


def _fitting(entry: Entry, family: Family, able: Mapping[str, Collection[Ability]]) -> Entry:
    """Return an entry with the sets of own rows that it can be computed of; perhaps none."""
    if family != "own":
        return entry
    wanted: set[Ability] = {"truth_ratio"} if entry.is_rated else set()
    wanted |= {"generation"} if "generation" in entry.parts else set()
    sets = entry.sets[family]
    fit = tuple(name for name in sets if name not in able or wanted <= set(able[name]))
    if len(fit) < len(sets) and not entry.is_by_set:
        fit = ()
    return replace(entry, sets={**entry.sets, family: fit})


def _lack(
    entry: Entry,
    family: Family,
    has: Collection[Extra],
    sets: Collection[str] | None,
    retain_sets: Collection[str] | None,
) -> str:
    """Return what an entry needs and is not there, or an empty text."""
    if not entry.sets[family] and entry.is_rated:
        return "a paraphrased_answer and perturbed_answer in each row"
    if not entry.sets[family]:
        return "questions in data.forget_split or data.retain_split, as raw text is not continued"
    missing = [need for need in get_args(Extra) if need in entry.needs - set(has)]
    if missing:
        return KEYS[missing[0]]
    wanted = [name for name in entry.sets[family] if name != "*"]
    absent = [name for name in wanted if sets is not None and name not in sets]
    if absent and family == "own":
        return f"data.{absent[0]}_split"
    if absent:
        return f"rows of {absent[0]}, which data.benchmark does not have here"
    if entry.needs & {"retain", "retain_tokens"} and retain_sets is not None:
        unknown = [name for name in wanted if name not in retain_sets]
        if unknown:
            return f"rows of {unknown[0]} in data.retain_results"
    return ""


def _unknown(name: str, benchmark: str, offered: Mapping[str, Entry]) -> str:
    if name in CATALOGUE:
        return (
            f"metrics: {name} is not defined for data.benchmark {benchmark}, which has "
            f"{', '.join(offered)}."
        )
    near = difflib.get_close_matches(name, offered, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"metrics must be some of {', '.join(offered)}; got {name!r}.{hint}"


def explain(name: str) -> str:
    """Return the pages of a metric, or of a number by its name in ``results.json``.

    Each says formula, unit, range, direction, source and differences.

    Raises:
        InputError: If there is no such metric and no such number.
    """
    if name.startswith(_HARNESS):
        return _titled(name, "A number of lm-evaluation-harness, as that defines it for the task.")
    own = own_entry(name) if is_class_path(name) else None
    metric = name if own is not None else metric_of(name)
    if metric is None and (made := attack_metric_of(name)) is not None:
        return _explain_of_attacks(name, made)
    if metric is None:
        numbers = [one for entry in CATALOGUE.values() for one in _expanded(entry)]
        near = difflib.get_close_matches(name, [*CATALOGUE, *numbers, *OF_ATTACKS], n=1)
        hint = f"Did you mean {near[0]!r}? " if near else ""
        raise InputError(
            f"explain must be one of {', '.join(CATALOGUE)}, or a number of theirs; of attacks "
            f"{', '.join(OF_ATTACKS)}; got {name!r}. {hint}".strip()
        )
    entry = CATALOGUE[metric] if own is None else own
    read = "; ".join(f"{family}: {', '.join(sets)}" for family, sets in entry.sets.items())
    lines = [_head(name, metric), *_paged(entry.pages)]
    lines.append(f"Gives: {', '.join(entry.emits)}.\nReads: {read} ({_listed(entry.parts)}).")
    if entry.needs:
        lines[-1] += f"\nNeeds: {'; '.join(KEYS[need] for need in sorted(entry.needs))}."
    return "\n\n".join(lines)


def _explain_of_attacks(name: str, metric: str) -> str:
    """Return the pages of a metric that attacks make."""
    made = OF_ATTACKS[metric]
    last = f"Gives: {', '.join(made.emits)}.\nMade by: attack {', '.join(made.attacks)}."
    return "\n\n".join([_head(name, metric), *_paged(made.pages), last])


def _head(name: str, metric: str) -> str:
    return _titled(name, *([f"A number of {metric}."] if name != metric else []))


def _paged(pages: Sequence[Callable[..., Any]]) -> list[str]:
    """Return the docstring of each page, under its name where there are several."""
    found = []
    for page in pages:
        where = f"{page.__module__}.{page.__qualname__}"
        text = f"{inspect.getdoc(page) or ''}\n\nCode: {where}"
        found.append(_titled(page.__name__, text, "-") if len(pages) > 1 else text)
    return found


#: What names of lm-evaluation-harness's numbers begin with.
_HARNESS = "lm_eval_"
#: Columns of the table of ``fit`` that have shorter names, to the metric.
_COLUMNS: Mapping[str, str] = {
    "d_times_n": "forget_quality",
    "n": "forget_quality",
    "forget_rouge": "rouge",
    "forget_truth_ratio": "truth_ratio",
    "retain_rouge": "rouge",
}


@functools.cache
def is_known_number(name: str) -> bool:
    """Tell whether a number of this name is one of the catalogue's."""
    return metric_of(name) is not None


def metric_of(name: str) -> str | None:
    """Return the metric that gives a number; None if none does."""
    if name in CATALOGUE or name in _COLUMNS:
        return _COLUMNS.get(name, name)
    known = {one for entry in CATALOGUE.values() for one in entry.known_sets} - {"*"}
    for metric, entry in CATALOGUE.items():
        if entry.gives(name, entry.known_sets):
            return metric
    # Callbacks are given their sets: any set, not just those of the suite.
    for metric, entry in CATALOGUE.items():
        # A number may be asked for without the set that its name begins with.
        bare = [form.removeprefix("{set}_") for form in entry.emits]
        if entry.gives(name, known) or name in bare:
            return metric
    return None


def _expanded(entry: Entry) -> list[str]:
    """Return the names of an entry's numbers of each of its sets."""
    return [form.replace("{set}", one) for form in entry.emits for one in sorted(entry.known_sets)]


def _listed(parts: Iterable[str]) -> str:
    return ", ".join(sorted(parts))


def _titled(title: str, text: str = "", line: str = "=") -> str:
    return "\n".join([title, line * len(title), *(["", text] if text else [])])
