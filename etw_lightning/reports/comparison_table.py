"""The comparison of a sweep's methods as Markdown: what each comes to, and what the words mean."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from etw_lightning.metrics.values import mean_of
from etw_lightning.reports.comparison import Compared, Comparison
from etw_lightning.sweeps.choice import log10, rule
from etw_lightning.sweeps.parts import PartName
from etw_lightning.sweeps.report import table, written

__all__ = ["as_markdown"]

_MISSING = "\u2013"


def as_markdown(found: Comparison) -> str:
    """Return the comparison as three tables, each with what its columns mean."""
    blocks = [_at_chosen(found), _against_retain(found), _frontiers(found)]
    notes = [written(note) for note in found.notes]
    return "\n\n".join([*blocks, *notes]) + "\n"


def _at_chosen(found: Comparison) -> str:
    """Return each method at its chosen point, by what it is chosen by."""
    rows = []
    for one in found.methods:
        if one.chosen is None:
            rows.append([one.method, "missing"])
            continue
        values = ", ".join(f"{name} {value}" for name, value in one.chosen.values)
        distances = found.frontiers.place_of(one.chosen).distances
        rows.append(
            [
                one.method,
                f"{values or 'as in its file'}{'' if one.keeps else ' *'}",
                str(len(one.chosen.found)),
                *(_quality(one, part) for part in found.parts),
                _spread(distances, ".3f"),
                _spread(one.spread("model_utility"), ".4f"),
                _spread(one.spread("utility_drop_target"), ".2f"),
                _spread(one.spread("paper_aggregate_target", "all"), ".2f"),
            ]
        )
    quality = [f"FQ, {'all rows' if part == 'all' else part} (-log10)" for part in found.parts]
    heads = ["method", "chosen", "seeds", *quality, "KS distance", "MU", "points lost", "Agg"]
    select, n = found.sweep.select, found.frontiers.num_rows
    text = f"**Each method at its chosen point.** Chosen: {rule(select)}. "
    text += "* where none does, and the nearest was taken. " * bool(select.bounds)
    text += "Medians over the seeds, with lowest to highest. FQ: forget quality, the p-value; "
    text += "p-values of other numbers of rows do not compare. "
    rest = " of the test rows, which are those that are not validation," * bool(select.validation)
    text += f"KS distance: of the truth ratios{rest} to the retain model's ({n} rows, down). MU: "
    text += "model utility; points lost: against the target model. Agg: the paper's, -log10 FQ of "
    text += "all rows times points lost (down; 0 without loss whatever was left)."
    return _table(text, heads, rows)


def _against_retain(found: Comparison) -> str:
    """Return the distance of each method's chosen point to the retain model."""
    attacks = list(dict.fromkeys(name for one in found.methods for name in one.attacked))
    shown = {"privleak": "+.1f", "extraction_strength": ".3f", "forget_repetition_4": ".3f"}
    rows = []
    for one in found.methods:
        if one.chosen is None:
            rows.append([one.method])
            continue
        named = [[each[name] for name in found.groups] for each in one.distances]
        totals = [mean_of(some) for some in named if some]
        rows.append(
            [
                one.method,
                *([_spread(totals, ".3f")] if found.groups else []),
                *(_spread([each[name] for each in one.distances], ".3f") for name in found.groups),
                *(_spread(one.spread(name), form) for name, form in shown.items()),
                *(_spread(one.attacked.get(name, ()), ".2f") for name in attacks),
            ]
        )
    heads = ["method", *(["distance", *found.groups] if found.groups else [])]
    heads += ["privleak", "extraction strength", "repetition"]
    heads += [f"-log10 FQ after {name}" for name in attacks]
    text = _distance_text(found) if found.groups else "**The chosen point, further numbers.** "
    text += "Numbers of forget rows are of the test rows. " * bool(found.sweep.select.validation)
    text += "After an attack: all rows." * bool(attacks)
    return _table(text.rstrip(), heads, rows)


def _distance_text(found: Comparison) -> str:
    return (
        "**Distance of the chosen point to the retain model**, 0 to 1, down: the mean of "
        f"{', '.join(found.groups)}, each the mean of shares cut at 1. forgotten: |x - retain| / "
        "|target - retain| of D*n, forget probability, forget ROUGE-L and extraction strength; "
        "kept: |x - retain| / retain of model utility and retain probability; sane: |x - retain| "
        "of the repeated 4-grams of forget and of retain answers; private: |privleak| / 100. Both "
        "sides count: forgotten more than the retain model is as far as less. "
    )


def _frontiers(found: Comparison) -> str:
    """Return the areas under the frontiers, with intervals."""
    rows = []
    given = found.sweep.frontier
    for method, places in found.frontiers.methods.items():
        area = found.frontiers.area(method, found.baseline)
        runs = sum(len(place.point.found) for place in places)
        rows.append([method, str(len(places)), str(runs), f"{area.value:.3f}"])
        rows[-1].append(_interval(area.interval, ".3f"))
        if area.difference is not None and area.difference_interval is not None:
            rows[-1] += [f"{area.difference:+.3f}", _interval(area.difference_interval, "+.3f")]
    versus = f"less {found.baseline}'s"
    heads = ["method", "points", "runs", "area", "95 %", versus, "95 %"]
    block = "rows" if found.sweep.select.validation is None else "blocks of forget rows"
    text = (
        "**Area under the frontier of forgetting against utility**, up: the mean, over all shares "
        f"u of the target's utility from {given.floor:g} to 1, of the highest 1 - KS distance that "
        f"a method's points reach with a utility of u or more. The target model ({_base(found)}) "
        "belongs to every method, as lambda 0. Points are means over their seeds. Bootstrap "
        f"intervals ({given.draws:,} draws of {block}, of the rows that utility is made of, and of "
        "the seeds where a point has several; the same draws for all methods): basic ones of the "
        "areas, percentiles of the differences."
    )
    return _table(text, heads, rows)


def _base(found: Comparison) -> str:
    return f"{found.frontiers.base:.3f}"


def _quality(one: Compared, part: PartName) -> str:
    """Return the median of forget quality, with its logarithm and their range."""
    found = one.spread("forget_quality", part)
    if not found:
        return _MISSING
    middle = statistics.median(found)
    text = f"{middle:.3f}" if middle >= 1e-3 else f"{middle:.1e}"
    logs = [-log10(value) + 0.0 for value in found]
    ends = f"; {logs[-1]:.2f} to {logs[0]:.2f}" if len(logs) > 1 else ""
    return f"{text} ({statistics.median(logs):.2f}{ends})"


def _spread(values: Sequence[float], form: str) -> str:
    """Return the median of some values, with the lowest and the highest."""
    if not values:
        return _MISSING
    text = f"{statistics.median(values):{form}}"
    ends = f" ({min(values):{form}} to {max(values):{form}})" if len(values) > 1 else ""
    return f"{text}{ends}"


def _interval(ends: tuple[float, float], form: str) -> str:
    return f"{ends[0]:{form}} to {ends[1]:{form}}"


def _table(text: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table below its text; cells that a row lacks are dashes."""
    filled = [[*row, *[_MISSING] * (len(heads) - len(row))] for row in rows]
    return "\n".join([text, "", *table(heads, filled)])
