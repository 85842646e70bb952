"""A leaderboard of runs under a named rule, over seeds, with what can't be compared left out."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from etw_lightning.judging.verdict import BOUNDS
from etw_lightning.metrics.values import harmonic_mean
from etw_lightning.reports.finished_runs import FinishedRun
from etw_lightning.reports.methods import Method, by_method
from etw_lightning.schema import InputError
from etw_lightning.scoring.retain_results import made_of

__all__ = ["RULES", "Place", "Rule", "apart", "comparable", "rank"]

#: Draws of the bootstrap, and its seed.
_DRAWS = 10_000
#: By how much losses of one model may differ that were scored twice, nats and share.
_ROUNDING = 0.02
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Rule:
    """How runs are ordered.

    Args:
        text: The rule in words.
        unit: What the value is called.
        value: Gives it of a run; None where the run lacks a number.
        is_up: More is better.
        needs: Numbers that it reads, for messages.
        passes: Whether a run is ranked before those that do not pass.
        second: Breaks ties of the mean value rounded to ``digits``, up.
        digits: Digits behind the point in which means are compared; None for all.
    """

    text: str
    unit: str
    value: Callable[[FinishedRun], float | None]
    is_up: bool
    needs: str
    passes: Callable[[FinishedRun], bool] = lambda _: True
    second: Callable[[FinishedRun], float | None] = lambda _: None
    digits: int | None = None


def _log_quality(run: FinishedRun) -> float | None:
    value = run.number("neg_log10_forget_quality")
    return None if value is None else -value + 0.0


def _keeps(run: FinishedRun) -> bool:
    mine, start = run.number("model_utility"), _target_utility(run)
    if mine is None or start is None:
        return False
    return 100 * (start - mine) <= BOUNDS["utility_points"]


def _target_utility(run: FinishedRun) -> float | None:
    return run.of("target", "model_utility")


def _relative_utility(run: FinishedRun) -> float | None:
    mine, start = run.number("model_utility"), _target_utility(run)
    return None if mine is None or not start else min(mine / start, 1.0)


def _harmonic(*names: str) -> Callable[[FinishedRun], float | None]:
    def value(run: FinishedRun) -> float | None:
        found = [run.number(name) for name in names] + [_relative_utility(run)]
        known = [one for one in found if one is not None]
        return harmonic_mean(known) if len(known) == len(found) else None

    return value


#: The rules by name.
RULES: Mapping[str, Rule] = {
    "fq_at_utility_floor": Rule(
        "log10 of forget quality, up; first the methods whose every run has a model utility at "
        f"most {BOUNDS['utility_points']:g} points below the target model's",
        "log10 FQ",
        _log_quality,
        True,
        "forget_quality, model_utility and the target model's",
        passes=_keeps,
    ),
    "agg_paper": Rule(
        "the paper's aggregate, -log10 FQ times the utility lost against the target model, down; "
        "it is 0 where no utility was lost, whatever was left, so never judge by it alone",
        "Agg",
        lambda run: run.number("paper_aggregate_target"),
        False,
        "paper_aggregate_target (a Suite computes it)",
    ),
    "hm_mem_util": Rule(
        "harmonic mean of memorisation_score and model utility as a share of the target model's "
        "(at most 1), up",
        "HM",
        _harmonic("memorisation_score"),
        True,
        "memorisation_score, model_utility and the target model's",
    ),
    "hm_mem_priv_util": Rule(
        "harmonic mean of memorisation_score, privacy_score and model utility as a share of the "
        "target model's (at most 1), up; the meta-evaluation's utility also judges fluency by a "
        "classifier, which this leaves out",
        "HM",
        _harmonic("memorisation_score", "privacy_score"),
        True,
        "memorisation_score, privacy_score, model_utility and the target model's",
    ),
    "es_then_utility": Rule(
        "extraction strength, down, its mean rounded to two digits; of equal ones model utility, "
        "up",
        "ES",
        lambda run: run.number("extraction_strength"),
        False,
        "extraction_strength and model_utility",
        second=lambda run: run.number("model_utility"),
        digits=2,
    ),
}


@dataclass(frozen=True)
class Place:
    """A method's place: all runs of equal settings but for the seed.

    Args:
        name: The method, with the numbers it was run with.
        method: The same without lambda.
        weight: Lambda; None where none is known.
        runs: Its runs, by seed.
        mean: Mean of the rule's value.
        deviation: Sample standard deviation; None of one run.
        passes: Whether all its runs pass the rule's bound.
        difference: Mean minus that of the first place; None of the first.
        interval: 95 % bootstrap interval of the difference; None where one of both has one run.
    """

    name: str
    method: str
    weight: float | None
    runs: tuple[FinishedRun, ...]
    mean: float
    deviation: float | None
    passes: bool
    difference: float | None = None
    interval: tuple[float, float] | None = None


def comparable(runs: Sequence[FinishedRun]) -> tuple[list[FinishedRun], list[str]]:
    """Return the runs that can be compared with the first one, and a line for each other.

    They have the same rows, split, template, lengths, conventions, precision and model before
    training, are held against the same retain model, and are of ``fit``.

    Args:
        runs: The runs.
    """
    kept: list[FinishedRun] = []
    lines = []
    for run in runs:
        wrong = ""
        if run.results["command"] != "fit":
            wrong = "it is a run of evaluate, which trains nothing"
        elif kept:
            mine, first = _terms(run), _terms(kept[0])
            both = [name for name in first if name in mine]
            name = next((name for name in both if mine[name] != first[name]), None)
            if name is not None:
                wrong = f"its {name} is {mine[name]}, that of {kept[0].name!r} is {first[name]}"
            elif not _has_same_retain(run, kept):
                wrong = f"its retain model says something else than that of {kept[0].name!r}"
        if wrong:
            lines.append(f"compare: {run.name!r} can't be compared: {wrong}.")
        else:
            kept.append(run)
    return kept, lines


def apart(runs: Sequence[FinishedRun]) -> list[str]:
    """Return a line for each run whose numbers are of other rows, texts or terms than the first's.

    A report shows them side by side all the same: it is of runs, and ``compare`` of methods.

    Args:
        runs: The runs.
    """
    lines = []
    for run in runs[1:]:
        mine, first = _terms(run), _terms(runs[0])
        names = [name for name in first if name != "model.pretrained" and name in mine]
        name = next((name for name in names if mine[name] != first[name]), None)
        if name is not None:
            lines.append(
                f"{run.name!r} with {runs[0].name!r}: its {name} is {mine[name]}, not {first[name]}"
            )
    return lines


def _terms(run: FinishedRun) -> dict[str, str]:
    """Return what must be equal, in words, as far as it is known of a run."""
    model, data = (run.config.get(key) or {} for key in ("model", "data"))
    made = run.results.get("provenance") or {}
    numbers = run.results.get("metrics") or {}
    forget = [one for name, one in numbers.items() if name.startswith("forget_")]
    sizes = [one["n"] for one in forget if isinstance(one.get("n"), int)]
    template = made.get("template") or {}
    terms = {
        "data.benchmark": str(data.get("benchmark")),
        "data.forget_split": str(data.get("forget_split")),
        "n of forget numbers": str(max(sizes, default=None)),
        "template": json.dumps(template, sort_keys=True),
        "model.pretrained": str(model.get("pretrained")),
    }
    for name in ("conventions", "dtype", "precision", "rouge_tokenizer"):
        if name in made:
            terms[name] = json.dumps(made[name], sort_keys=True)
    for name, held in sorted((made.get("sets") or {}).items()):
        for kind, hashed in sorted((held.get("texts") or {}).items()):
            terms[f"hash of the {kind} of {name!r}"] = str(hashed)
        generated = made_of(made, name).get("generation", {})
        for key in ("max_new_tokens", "stop_strings"):
            if key in generated:
                terms[f"{key} of {name!r}"] = str(generated[key])
    return terms


def _has_same_retain(run: FinishedRun, others: Sequence[FinishedRun]) -> bool:
    """Tell whether a run is held against the retain model that others are held against.

    By what these say, for one model may be named in two ways; the quickstart has one of each seed.
    """
    data = run.config.get("data") or {}
    seed = run.settings.get("seed")
    if str(data.get("retain_model")).startswith("quickstart:"):
        others = [one for one in others if one.settings.get("seed") == seed]
    mine = _losses(run)
    for other in others:
        theirs = _losses(other)
        if mine.size and theirs.size:
            return bool(np.allclose(mine, theirs, rtol=_ROUNDING, atol=_ROUNDING))
    return True


def _losses(run: FinishedRun) -> Floats:
    """Return what a run's retain model says of the forget answers, nats; empty if not known."""
    found = [row.answer_loss for row in run.retain.get("forget", ())]
    return np.array([one for one in found if one is not None], dtype=np.float64)


def rank(runs: Sequence[FinishedRun], name: str) -> list[Place]:
    """Return the methods in the order of a rule.

    Args:
        runs: Comparable runs.
        name: One of ``RULES``.

    Raises:
        InputError: If a run lacks a number that the rule reads.
    """
    rule = RULES[name]
    for run in runs:
        if rule.value(run) is None:
            raise InputError(
                f"compare: --rank {name} needs {rule.needs}; run {run.name!r} lacks one of them."
            )
    places = [_place(one, rule) for one in by_method(runs)]
    places.sort(key=lambda place: _order(place, rule))
    return [_against(place, places[0], rule) for place in places]


def _place(method: Method, rule: Rule) -> Place:
    runs = method.runs
    seeds = [run.settings.get("seed") for run in runs]
    twice = next((seed for seed in seeds if seeds.count(seed) > 1), None)
    if twice is not None:
        both = " and ".join(repr(run.name) for run in runs if run.settings["seed"] == twice)
        raise InputError(
            f"compare: {both} are the same run (seed {twice}, equal settings); give one of them."
        )
    values = np.array([rule.value(run) for run in runs], dtype=np.float64)
    return Place(
        method.name,
        method.line,
        method.weight,
        method.runs,
        float(values.mean()),
        float(values.std(ddof=1)) if len(values) > 1 else None,
        all(map(rule.passes, runs)),
    )


def _order(place: Place, rule: Rule) -> tuple[Any, ...]:
    mean = place.mean if rule.digits is None else round(place.mean, rule.digits)
    seconds = [rule.second(run) for run in place.runs]
    second = math.fsum(one or 0.0 for one in seconds) / len(seconds)
    return (not place.passes, -mean if rule.is_up else mean, -second, place.name)


def _against(place: Place, first: Place, rule: Rule) -> Place:
    """Add the difference to the first place, with its interval."""
    if place is first:
        return place
    mine, theirs = ({run.settings.get("seed"): rule.value(run) for run in one.runs}
                    for one in (place, first))  # fmt: skip
    draw = np.random.default_rng(0)
    interval = None
    if len(mine) > 1 and len(theirs) > 1:
        if mine.keys() == theirs.keys():
            # Equal seeds are equal models before training: differences are taken seed by seed.
            gaps = np.array([mine[seed] - theirs[seed] for seed in mine])  # type: ignore[operator]
            drawn = gaps[draw.integers(len(gaps), size=(_DRAWS, len(gaps)))].mean(1)
        else:
            sides = [np.array(list(one.values()), dtype=np.float64) for one in (mine, theirs)]
            means = [one[draw.integers(len(one), size=(_DRAWS, len(one)))].mean(1) for one in sides]
            drawn = means[0] - means[1]
        low, high = np.percentile(drawn, [2.5, 97.5])
        interval = (float(low), float(high))
    fields = {**vars(place), "difference": place.mean - first.mean, "interval": interval}
    return Place(**fields)
