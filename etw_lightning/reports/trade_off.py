"""Forgetting against utility: each method over lambda, the goal, and what nothing beats."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from etw_lightning.judging.verdict import BOUNDS
from etw_lightning.reports.drawing import GREEN, drawn
from etw_lightning.reports.finished_runs import FinishedRun
from etw_lightning.reports.methods import Method, by_method
from etw_lightning.sweeps.choice import average, log10

__all__ = ["frontier", "trade_off"]

#: Pairs of keeping (x) and forgetting (y), the first that all runs have; whether up is forgotten.
_AXES = (
    ("model_utility", "forget_quality", "model utility", "forget quality (p)", True),
    ("model_utility", "forget_probability", "model utility", "forget probability", False),
    ("retain_rouge", "forget_probability", "retain ROUGE-L", "forget probability", False),
    ("retain_probability", "forget_probability", "retain probability", "forget probability", False),
    ("knowmem_retain", "knowmem_forget", "knowmem retain %", "knowmem forget %", False),
)
#: The models that runs are set against, and what they are called in charts.
_ROLES = ("target", "retain")
#: The least p-value that is drawn; what is below is as good as surely not forgotten.
_LEAST_P = 1e-6


def frontier(points: Sequence[tuple[float, float]], is_up: bool) -> list[int]:
    """Return the places of the points that no other beats in both, by the first coordinate.

    Args:
        points: Keeping, up; and forgetting.
        is_up: More of the second is better.

    Example:
        >>> frontier([(0.5, 0.9), (0.6, 0.2), (0.4, 0.1)], True)
        [0, 1]
    """
    signed = [(x, y if is_up else -y) for x, y in points]
    best = [
        place
        for place, (x, y) in enumerate(signed)
        if not any(a >= x and b >= y and (a, b) != (x, y) for a, b in signed)
    ]
    return sorted(best, key=lambda place: points[place])


def trade_off(runs: Sequence[FinishedRun]) -> dict[str, Any] | None:
    """Draw each method over lambda, the mean over seeds, with the goal and the frontier."""
    import altair as alt

    axes_of_all = (
        axis
        for axis in _AXES
        if all(run.number(name) is not None for run in runs for name in axis[:2])
    )
    chosen = next(axes_of_all, None)
    if chosen is None:
        return None
    x, y, x_title, y_title, is_up = chosen
    is_p = y == "forget_quality"
    methods = by_method(runs)
    means = [_mean_point(method, x, y) for method in methods]
    best = frontier([(row["x"], row["y"]) for row in means], is_up)
    rows = [_point(run, method.line, x, y) for method in methods for run in method.runs]
    others = _other_models(runs, x, y)
    # A p-value of forgetting spans many powers of ten: what is below the least is drawn there.
    low = max(_LEAST_P, min(10.0 ** math.floor(log10(row["y"])) for row in rows)) if is_p else 1.0
    low = min(low, 0.01)
    scale = alt.Scale(type="log", domain=[low, 1], clamp=True) if is_p else alt.Scale()
    powers = range(round(-log10(low)) + 1)
    axis = alt.Axis(values=[10.0**-power for power in powers], format="~g") if is_p else alt.Axis()
    axes: dict[str, Any] = {
        "x": alt.X("x:Q", title=x_title, scale=alt.Scale(zero=False, padding=16)),
        "y": alt.Y("y:Q", title=y_title, scale=scale, axis=axis),
    }
    tips = [alt.Tooltip("model:N"), alt.Tooltip("x:Q", title=x_title),
            alt.Tooltip("y:Q", title=y_title)]  # fmt: skip
    several = any(len(method.runs) > 1 for method in methods)
    colour = alt.Color("method:N", title=None, sort=None)
    data = alt.Chart(alt.Data(values=means))
    large = data.mark_point(size=100, filled=True, opacity=1)
    layers = [
        *_bounds(runs, x, is_p),
        alt.Chart(alt.Data(values=[means[place] for place in best]))
        .mark_line(strokeDash=[4, 3], color="gray")
        .encode(**axes, order=alt.Order("x:Q")),
        data.mark_line(opacity=0.6).encode(**axes, color=colour, order=alt.Order("lambda:Q")),
        large.encode(**axes, color=colour, tooltip=tips),
        data.mark_text(dy=-11, fontSize=11).encode(**axes, color=colour, text="label:N"),
    ]
    if several:
        single = alt.Chart(alt.Data(values=rows)).mark_point(size=25, filled=True, opacity=0.45)
        layers.insert(-2, single.encode(**axes, color=colour, tooltip=tips))
    goal = alt.Chart(alt.Data(values=others)).encode(**axes, tooltip=tips)
    layers += [
        goal.mark_point(size=140, strokeWidth=2.5, color=GREEN).encode(
            shape=alt.Shape(
                "model:N",
                title=None,
                scale=alt.Scale(domain=list(_ROLES), range=["diamond", "cross"]),
            )
        )
    ]
    names = ", ".join(means[place]["model"] for place in best)
    marks = "small points are single seeds, large ones their mean; " * several
    bound = " Grey lines: FQ .05, and the utility that is five points below the target's." * is_p
    least_p = f" (below {low:g} drawn there)" * is_p
    return drawn(
        "trade-off",
        "Forgetting against utility",
        f"{y_title}{least_p} over {x_title}, each method over its lambdas; {marks}the dashed line "
        f"joins what no other beats in both ({names}). The retain model is the goal; past it is "
        f"not better.{bound}",
        alt.layer(*layers).resolve_scale(shape="independent"),
        [{"model": row["model"], x_title: row["x"], y_title: row["y"]} for row in [*rows, *others]],
    )


def _point(run: FinishedRun, method: str, x: str, y: str) -> dict[str, Any]:
    return {"model": run.name, "method": method, "x": run.number(x), "y": run.number(y)}


def _mean_point(method: Method, x: str, y: str) -> dict[str, Any]:
    """Return a method's mean over its seeds; of p-values the geometric one."""
    xs, ys = ([run.number(name) for run in method.runs] for name in (x, y))
    one = len(method.runs) == 1
    return {
        "model": method.runs[0].name if one else f"{method.name}, mean of {len(method.runs)}",
        "method": method.line,
        "lambda": method.weight or 0.0,
        "label": "" if method.weight is None else f"{method.weight:g}",
        "x": average(x, [value for value in xs if value is not None]),
        "y": average(y, [value for value in ys if value is not None]),
    }


def _other_models(runs: Sequence[FinishedRun], x: str, y: str) -> list[dict[str, Any]]:
    """Return the target and retain models, of each seed that has its own."""
    rows = []
    for role in _ROLES:
        found = {(run.of(role, x), run.of(role, y)) for run in runs}
        # The same model scored in batches of other shapes differs in the last digits.
        pairs = {(f"{a:.6g}", f"{b:.6g}"): (a, b) for a, b in found if None not in (a, b)}
        rows += [{"model": role, "x": a, "y": b} for a, b in sorted(pairs.values())]
    return rows


def _bounds(runs: Sequence[FinishedRun], x: str, is_p: bool) -> list[Any]:
    """Return the lines between good and bad: forget quality, and the utility that may be lost."""
    import altair as alt

    if not is_p:
        return []
    levels = [{"y": BOUNDS["forget_quality"]}]
    starts = [run.of("target", x) for run in runs]
    known = [value for value in starts if value is not None]
    floors = [{"x": sum(known) / len(known) - BOUNDS["utility_points"] / 100}] if known else []
    return [
        alt.Chart(alt.Data(values=values)).mark_rule(color="gray", opacity=0.5).encode(**axis)
        for values, axis in ((levels, {"y": "y:Q"}), (floors, {"x": "x:Q"}))
        if values
    ]
