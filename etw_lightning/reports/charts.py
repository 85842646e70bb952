"""The charts of a report as Vega-Lite specifications, made with Altair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from etw_lightning import metrics
from etw_lightning.reports.finished_runs import FinishedRun
from etw_lightning.schema import InputError

__all__ = ["frontier", "make_charts"]

#: Pairs of keeping (x) and forgetting (y), the first that all runs have; whether up is forgotten.
_AXES = (
    ("model_utility", "forget_quality", "model utility", "forget quality (p)", True),
    ("model_utility", "forget_probability", "model utility", "forget probability", False),
    ("retain_rouge", "forget_probability", "retain ROUGE-L", "forget probability", False),
    ("retain_probability", "forget_probability", "retain probability", "forget probability", False),
    ("knowmem_retain", "knowmem_forget", "knowmem retain %", "knowmem forget %", False),
)
_CURVES = (
    *("forget_quality", "forget_probability", "model_utility", "retain_probability"),
    *("verbmem", "knowmem_forget", "knowmem_retain"),
)
_CONFIG = {
    "background": None,
    "view": {"stroke": None},
    "axis": {"labelColor": "currentColor", "titleColor": "currentColor", "gridOpacity": 0.2},
    "legend": {"labelColor": "currentColor", "titleColor": "currentColor", "orient": "bottom",
               "columns": 2, "labelLimit": 320, "symbolBaseFillColor": "currentColor",
               "symbolBaseStrokeColor": "currentColor"},
    "title": {"color": "currentColor"},
}  # fmt: skip


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


def make_charts(runs: Sequence[FinishedRun]) -> list[dict[str, Any]]:
    """Return the charts there is something to show in: id, title, caption, specification, rows.

    Args:
        runs: The runs.
    """
    made = (_trade_off(runs), _curves(runs), _truth_ratios(runs))
    return [one for one in made if one is not None]


def _trade_off(runs: Sequence[FinishedRun]) -> dict[str, Any] | None:
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
    rows: list[dict[str, Any]] = [
        {"model": run.name, "kind": "run", "x": run.number(x), "y": run.number(y)} for run in runs
    ]
    best = frontier([(row["x"], row["y"]) for row in rows], is_up)
    line = [rows[place] for place in best]
    for role, kind in (("target", "target model"), ("retain", "retain model, the goal")):
        found = {(run.of(role, x), run.of(role, y)) for run in runs}
        for a, b in sorted(pair for pair in found if None not in pair):
            rows.append({"model": role, "kind": kind, "x": a, "y": b})
    axes = {
        "x": alt.X("x:Q", title=x_title, scale=alt.Scale(zero=False)),
        "y": alt.Y("y:Q", title=y_title),
    }
    tips = [alt.Tooltip("model:N"), alt.Tooltip("x:Q", title=x_title),
            alt.Tooltip("y:Q", title=y_title)]  # fmt: skip
    points = (
        alt.Chart(alt.Data(values=rows))
        .mark_point(size=90, filled=True, opacity=1)
        .encode(
            **axes,
            color=alt.Color("model:N", title=None),
            shape=alt.Shape("kind:N", title=None),
            tooltip=tips,
        )
    )
    drawn = (
        alt.Chart(alt.Data(values=line))
        .mark_line(strokeDash=[4, 3], color="gray")
        .encode(**axes, order=alt.Order("x:Q"))
    )
    names = ", ".join(row["model"] for row in line)
    return _chart(
        "trade-off",
        "Forgetting against utility",
        f"{y_title} over {x_title}; the dashed line joins the runs that no other beats in both "
        f"({names}). The retain model is the goal; past it is not better.",
        drawn + points,
        [{"model": row["model"], x_title: row["x"], y_title: row["y"]} for row in rows],
    )


def _all_have(runs: Sequence[FinishedRun], names: Sequence[str]) -> bool:
    return all(run.number(name) is not None for run in runs for name in names)


def _curves(runs: Sequence[FinishedRun]) -> dict[str, Any] | None:
    import altair as alt

    rows = [
        {"run": run.name, "epoch": at["epoch"], "number": name,
         "value": at["metrics"][name]["value"]}
        for run in runs
        for at in run.results.get("history", ())
        for name in _CURVES
        if name in at["metrics"]
    ]  # fmt: skip
    epochs: dict[str, set[int]] = {}
    for row in rows:
        epochs.setdefault(row["number"], set()).add(row["epoch"])
    # What was computed once is a point, no curve.
    rows = [row for row in rows if len(epochs[row["number"]]) > 1]
    if not rows:
        return None
    chart = (
        alt.Chart(alt.Data(values=rows))
        .mark_line(point=True)
        .encode(
            x=alt.X("epoch:Q", axis=alt.Axis(tickMinStep=1)),
            y=alt.Y("value:Q", title=None),
            color=alt.Color("run:N", title=None),
            tooltip=["run:N", "epoch:Q", "value:Q"],
        )
        .properties(width=300, height=180)
        .facet(facet=alt.Facet("number:N", title=None,
                               header=alt.Header(labelColor="currentColor")), columns=1)
        .resolve_scale(y="independent")
    )  # fmt: skip
    return _chart("curves", "Epoch by epoch", "Epoch 0 is the model before training.", chart, rows)


def _truth_ratios(runs: Sequence[FinishedRun]) -> dict[str, Any] | None:
    """Draw the distributions that forget quality compares, with the KS distance."""
    import altair as alt

    curves, gaps = [], []
    for run in runs:
        try:
            retain = np.sort(metrics.truth_ratios(run.retain["forget"]))
            mine = np.sort(metrics.truth_ratios(run.after["forget"]))
        except (InputError, KeyError):
            continue
        both = np.concatenate([mine, retain])
        shares = [np.searchsorted(one, both, side="right") / len(one) for one in (mine, retain)]
        place = int(np.argmax(np.abs(shares[0] - shares[1])))
        low, high = sorted((float(shares[0][place]), float(shares[1][place])))
        gaps.append({"model": run.name, "x": float(both[place]), "low": low, "high": high,
                     "KS distance": high - low})  # fmt: skip
        curves += _steps(run.name, mine)
        if not any(row["model"] == "retain model" for row in curves):
            curves += _steps("retain model", retain)
    if not gaps:
        return None
    x = alt.X("x:Q", title="truth ratio", scale=alt.Scale(type="log"))
    steps = (
        alt.Chart(alt.Data(values=curves))
        .mark_line(interpolate="step-after")
        .encode(x=x, y=alt.Y("share:Q", title="share of rows"),
                color=alt.Color("model:N", title=None))
    )  # fmt: skip
    rules = (
        alt.Chart(alt.Data(values=gaps))
        .mark_rule(strokeWidth=3)
        .encode(
            x=x,
            y=alt.Y("low:Q"),
            y2="high:Q",
            color=alt.Color("model:N", title=None),
            tooltip=["model:N", alt.Tooltip("KS distance:Q")],
        )
    )
    shown = [{"model": row["model"], "KS distance": row["KS distance"]} for row in gaps]
    return _chart(
        "truth-ratios",
        "Truth ratios",
        "Share of forget rows up to each truth ratio; the thick line is the KS distance to the "
        "retain model, of which forget quality is the p-value.",
        steps + rules,
        shown,
    )


def _steps(model: str, values: np.ndarray) -> list[dict[str, Any]]:
    n = len(values)
    return [
        {"model": model, "x": max(float(value), 1e-12), "share": (place + 1) / n}
        for place, value in enumerate(values)
    ]


def _chart(
    name: str, title: str, caption: str, chart: Any, rows: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    if not hasattr(chart, "facet") or chart.to_dict().get("facet") is None:
        chart = chart.properties(width="container", height=320)
    spec = chart.to_dict()
    spec.pop("$schema", None)
    spec["config"] = {**spec.get("config", {}), **_CONFIG}
    return {"id": name, "title": title, "caption": caption, "spec": spec, "rows": list(rows)}
