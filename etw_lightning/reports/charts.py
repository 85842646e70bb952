"""The charts of a report as Vega-Lite specifications, made with Altair."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from etw_lightning import metrics
from etw_lightning.reports.drawing import COLOURS, GREY, drawn
from etw_lightning.reports.finished_runs import FinishedRun
from etw_lightning.reports.methods import by_method
from etw_lightning.reports.trade_off import trade_off
from etw_lightning.schema import InputError

__all__ = ["make_charts"]

#: Numbers that move little, so that their axis need not begin at 0.
_FLAT = ("model_utility", "retain_probability")
#: Methods that Vega's colours tell apart.
_MOST_COLOURS = 10
#: Points of a curve of truth ratios that are drawn at most.
_MOST_POINTS = 120
#: Runs whose truth ratios are drawn one beside the other; more are chosen from a list.
_MOST_TOGETHER = 4
_CURVES = (
    *("forget_quality", "forget_probability", "model_utility", "retain_probability"),
    *("verbmem", "knowmem_forget", "knowmem_retain"),
)


def make_charts(runs: Sequence[FinishedRun]) -> list[dict[str, Any]]:
    """Return the charts there is something to show in: id, title, caption, specification, rows.

    Args:
        runs: The runs.
    """
    made = (trade_off(runs), _curves(runs), _truth_ratios(runs))
    return [one for one in made if one is not None]


def _curves(runs: Sequence[FinishedRun]) -> dict[str, Any] | None:
    import altair as alt

    methods = by_method(runs)
    # Of more methods than there are colours one can't be told from another: lambda by lambda.
    is_told = len(methods) <= _MOST_COLOURS
    rows = [
        {"run": run.name, "method": method.name if is_told else method.line,
         "epoch": at["epoch"], "number": name, "value": at["metrics"][name]["value"]}
        for method in methods
        for run in method.runs
        for at in run.results.get("history", ())
        for name in _CURVES
        if name in at["metrics"]
    ]  # fmt: skip
    points = Counter((row["run"], row["number"]) for row in rows)
    # What was computed once is a point, no curve.
    curves = {number for (_, number), count in points.items() if count > 1}
    rows = [row for row in rows if row["number"] in curves]
    if not rows:
        return None
    charts: dict[str, Any] = {}
    for name in dict.fromkeys(row["number"] for row in rows):
        shown = [row for row in rows if row["number"] == name]
        # Two columns of names are wider than one of several charts.
        legend = alt.Legend(columns=1) if not charts else None
        charts[name] = (
            alt.Chart(alt.Data(values=shown), title=name.replace("_", " "))
            .mark_line(point=True, opacity=0.7)
            .encode(
                x=alt.X("epoch:Q", axis=alt.Axis(tickMinStep=1)),
                y=alt.Y("value:Q", title=None, scale=alt.Scale(zero=name not in _FLAT)),
                color=alt.Color("method:N", title=None, sort=None, legend=legend),
                detail="run:N",
                tooltip=["run:N", "epoch:Q", "value:Q"],
            )
            .properties(height=180)
        )
    return drawn("curves", "Epoch by epoch", "Epoch 0 is the model before training.", charts, rows)


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
        gaps.append({"run": run.name, "model": run.name, "kind": "run", "x": float(both[place]),
                     "low": low, "high": high, "KS distance": high - low})  # fmt: skip
        curves += _steps(run.name, run.name, mine)
        curves += _steps(run.name, "retain model", retain)
    if not gaps:
        return None
    names = [str(row["run"]) for row in gaps]
    x = alt.X("x:Q", title="truth ratio", scale=alt.Scale(type="log"))
    colour = alt.Color("model:N", title=None, sort=None, scale=alt.Scale(
        domain=[*names, "retain model"],
        range=[COLOURS[place % len(COLOURS)] for place in range(len(names))] + [GREY],
    ))  # fmt: skip
    y = alt.Y("low:Q", title="share of rows")
    steps = (
        alt.Chart(alt.Data(values=curves))
        .mark_line(interpolate="step-after")
        .encode(x=x, y=alt.Y("share:Q", title="share of rows"), color=colour, detail="run:N")
    )
    rules = (
        alt.Chart(alt.Data(values=gaps))
        .mark_rule(strokeWidth=3)
        .encode(
            x=x,
            y=y,
            y2="high:Q",
            color=colour,
            tooltip=["model:N", alt.Tooltip("KS distance:Q")],
        )
    )
    chart = steps + rules
    if len(names) > _MOST_TOGETHER:
        # One run at a time, or nothing could be told from anything.
        pick = alt.param("run", value=names[0], bind=alt.binding_select(options=names, name="Run "))
        one = alt.Color("kind:N", title=None, scale=alt.Scale(
            domain=["run", "retain model"], range=[COLOURS[0], GREY]
        ))  # fmt: skip
        chart = alt.layer(
            *(
                part.transform_filter("datum.run == run").encode(color=one)
                for part in (steps, rules)
            )
        ).add_params(pick)
    shown = [{"model": row["model"], "KS distance": row["KS distance"]} for row in gaps]
    return drawn(
        "truth-ratios",
        "Truth ratios",
        "Share of forget rows up to each truth ratio, of the run in colour and of the retain model "
        "in grey; the thick line is the KS distance, of which forget quality is the p-value.",
        chart,
        shown,
    )


def _steps(run: str, model: str, values: np.ndarray) -> list[dict[str, Any]]:
    """Return the share of rows up to each value; of many rows some, the last among them."""
    n = len(values)
    places = np.unique(np.linspace(0, n - 1, min(n, _MOST_POINTS)).round().astype(int))
    return [
        {"run": run, "model": model, "kind": "run" if model == run else model,
         "x": float(f"{max(values[place], 1e-12):.4g}"), "share": round((int(place) + 1) / n, 4)}
        for place in places
    ]  # fmt: skip
