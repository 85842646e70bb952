"""A leaderboard as a table, as JSON, and as a figure of each method over lambda."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from typing import Any

from etw_lightning.notices import as_markdown_text
from etw_lightning.reports.ranking import RULES, Place
from etw_lightning.reports.trade_off import frontier
from etw_lightning.schema import InputError

__all__ = ["as_csv", "as_json", "as_markdown", "as_png"]

_MISSING = "\u2013"


def _rows(places: Sequence[Place]) -> list[dict[str, Any]]:
    return [
        {
            "place": number,
            "method": place.name,
            "mean": place.mean,
            "deviation": place.deviation,
            "n": len(place.runs),
            "difference": place.difference,
            "low": place.interval[0] if place.interval else None,
            "high": place.interval[1] if place.interval else None,
            "passes": place.passes,
            "runs": [run.name for run in place.runs],
        }
        for number, place in enumerate(places, start=1)
    ]


def as_json(places: Sequence[Place], rule: str, left_out: Sequence[str] = ()) -> str:
    """Return the leaderboard with its rule, ready to be kept."""
    found = {"rank": rule, "rule": RULES[rule].text, "places": _rows(places),
             "left_out": list(left_out)}  # fmt: skip
    return json.dumps(found, ensure_ascii=False, indent=2, allow_nan=False) + "\n"


def as_csv(places: Sequence[Place], rule: str) -> str:
    """Return the leaderboard as CSV, the rule in a column of its own."""
    page = io.StringIO()
    rows = _rows(places)
    writer = csv.DictWriter(page, ["rank", *rows[0]], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({"rank": rule, **row, "runs": " ".join(row["runs"])})
    return page.getvalue()


def as_markdown(places: Sequence[Place], rule: str, left_out: Sequence[str] = ()) -> str:
    """Return the leaderboard as Markdown, with its rule."""
    unit = RULES[rule].unit
    lines = [
        f"Ranked by `{rule}`: {RULES[rule].text}. Mean and sample standard deviation over seeds; "
        "the interval is a 95 % bootstrap (10,000 draws) of the difference to the first, by seed "
        "where both have the same seeds.",
        "",
        f"| | method | {unit} | seeds | difference to the first |",
        "| ---: | --- | ---: | ---: | ---: |",
    ]
    for number, place in enumerate(places, start=1):
        mean = f"{place.mean:.4g}"
        mean += f" ± {place.deviation:.2g}" if place.deviation is not None else ""
        gap = _MISSING if place.difference is None else f"{place.difference:+.4g}"
        if place.interval is not None:
            gap += f" [{place.interval[0]:+.4g}, {place.interval[1]:+.4g}]"
        mark = "" if place.passes else " (below the floor)"
        name = as_markdown_text(place.name)
        lines.append(f"| {number} | {name}{mark} | {mean} | {len(place.runs)} | {gap} |")
    lines += ["", *(as_markdown_text(one) for one in left_out)] if left_out else []
    return "\n".join(lines) + "\n"


def as_png(places: Sequence[Place]) -> bytes:
    """Return forgetting against utility, a line for each method over lambda.

    Raises:
        InputError: If the runs lack forget quality or utility, or what draws is not installed.
    """
    from etw_lightning.reports.page import check_installed

    check_installed("altair", "vl_convert")
    import altair as alt
    import vl_convert

    rows = []
    for place in places:
        pairs = [(run.number("model_utility"), run.number("forget_quality")) for run in place.runs]
        known = [(x, y) for x, y in pairs if x is not None and y is not None]
        if not known:
            raise InputError("compare: png needs model_utility and forget_quality of every run.")
        xs, ys = zip(*known, strict=True)
        rows.append(
            {
                "method": place.method,
                "lambda": place.weight,
                "model utility": sum(xs) / len(xs),
                "forget quality": sum(ys) / len(ys),
            }
        )
    best = frontier([(row["model utility"], row["forget quality"]) for row in rows], True)
    axes = {
        "x": alt.X("model utility:Q", scale=alt.Scale(zero=False)),
        "y": alt.Y("forget quality:Q"),
    }
    lines = (
        alt.Chart(alt.Data(values=rows))
        .mark_line(point=True)
        .encode(**axes, color=alt.Color("method:N", legend=alt.Legend(orient="bottom", columns=1,
                labelLimit=600)), order=alt.Order("lambda:Q"))
    )  # fmt: skip
    names = lines.mark_text(dy=-10).encode(text="lambda:N")
    outer = (
        alt.Chart(alt.Data(values=[rows[place] for place in best]))
        .mark_line(strokeDash=[4, 3], color="gray")
        .encode(**axes, order=alt.Order("model utility:Q"))
    )
    chart = (outer + lines + names).properties(width=640, height=360)
    found: bytes = vl_convert.vegalite_to_png(chart.to_dict(), scale=2)
    return found
