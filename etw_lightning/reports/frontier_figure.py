"""The frontiers of a sweep's methods as one figure: a panel a method, and the areas."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from etw_lightning.reports.comparison import Comparison
from etw_lightning.reports.drawing import COLOURS, GREY

__all__ = ["as_svg", "steps"]

#: A card of its own colours, which light and dark pages can hold.
_CARD, _INK, _PALE = "#fbfaf7", "#2b2925", "#d8d4ca"
_PANELS, _WIDTH, _HEIGHT = 4, 170, 130
_OWN, _OTHER = COLOURS[0], COLOURS[1]


def steps(
    places: Sequence[tuple[float, float]], floor: float, base: float
) -> list[tuple[float, float]]:
    """Return the corners of a method's staircase, from the highest utility down to the floor.

    Args:
        places: Kept and forgotten of each point.
        floor: Least utility that counts.
        base: Forgetting of the target model, which keeps 1.

    Example:
        >>> steps([(0.75, 0.8), (1.0, 0.4)], 0.5, 0.0)
        [(1.0, 0.0), (1.0, 0.4), (0.75, 0.4), (0.75, 0.8), (0.5, 0.8)]
    """
    corners, height = [(1.0, base)], base
    for kept, forgotten in sorted(places, reverse=True):
        if kept > floor and forgotten > height:
            corners += [(min(kept, 1.0), height), (min(kept, 1.0), forgotten)]
            height = forgotten
    return list(dict.fromkeys([*corners, (floor, height)]))


def as_svg(found: Comparison) -> str:
    """Return the figure: SVG on a light card, texts as texts.

    Args:
        found: The comparison.
    """
    import altair as alt
    import vl_convert

    methods = list(found.frontiers.methods)
    panels = [_panel(found, method) for method in methods]
    rows = [alt.hconcat(*panels[at : at + _PANELS]) for at in range(0, len(panels), _PANELS)]
    chart = alt.vconcat(*rows, _areas(found), spacing=18).configure(
        background=_CARD,
        padding=14,
        view=alt.ViewConfig(stroke=None),
        axis=alt.AxisConfig(labelColor=_INK, titleColor=_INK, gridColor=_PALE, domainColor=_PALE,
                            tickColor=_PALE),
        title=alt.TitleConfig(color=_INK, fontSize=12, anchor="start"),
    )  # fmt: skip
    svg: str = vl_convert.vegalite_to_svg(chart.to_dict())
    return svg


def _panel(found: Comparison, method: str) -> Any:
    """Draw one method's points and staircase before those of all others."""
    import altair as alt

    floor, base = found.sweep.frontier.floor, found.frontiers.base
    lines, points = [], []
    for name, places in found.frontiers.methods.items():
        corners = steps([(one.kept, 1 - one.distance) for one in places], floor, base)
        kind = "own" if name == method else "baseline" if name == found.baseline else "other"
        lines += [
            {"method": name, "kind": kind, "u": u, "f": f, "order": at}
            for at, (u, f) in enumerate(corners)
        ]
    chosen = {one.method: one.chosen for one in found.methods}[method]
    for at, one in enumerate(sorted(found.frontiers.methods[method], key=lambda one: one.kept)):
        label = ", ".join(value for _, value in one.point.values)
        points.append(
            {"u": one.kept, "f": 1 - one.distance, "label": label, "below": at % 2,
             "chosen": one.point is chosen}
        )  # fmt: skip
    seeds = [
        {"u": kept, "f": 1 - distance}
        for one in found.frontiers.methods[method]
        for kept, distance in (one.seeds if len(one.seeds) > 1 else ())
    ]
    x = alt.X("u:Q", title="utility / target's", axis=alt.Axis(tickCount=4),
              scale=alt.Scale(domain=_domain(found), clamp=True))  # fmt: skip
    y = alt.Y("f:Q", title="1 - KS distance", axis=alt.Axis(tickCount=5),
              scale=alt.Scale(domain=[0, 1]))  # fmt: skip
    colour = alt.Color("kind:N", legend=None, scale=alt.Scale(
        domain=["own", "baseline", "other"], range=[_OWN, _OTHER, GREY]))  # fmt: skip
    frontiers = alt.Chart(alt.Data(values=lines)).mark_line().encode(
        x=x, y=y, color=colour, detail="method:N", order="order:Q",
        opacity=alt.condition("datum.kind == 'other'", alt.value(0.25), alt.value(0.9)),
        strokeWidth=alt.condition("datum.kind == 'own'", alt.value(2.5), alt.value(1.2)),
    )  # fmt: skip
    marks = alt.Chart(alt.Data(values=points))
    filled = alt.condition("datum.chosen", alt.value(_OWN), alt.value(_CARD))
    layers = [frontiers]
    if seeds:
        layers.append(alt.Chart(alt.Data(values=seeds)).mark_point(
            size=10, filled=True, color=_OWN, opacity=0.5).encode(x=x, y=y))  # fmt: skip
    layers += [
        marks.mark_point(size=55, filled=True, stroke=_OWN, strokeWidth=1.5, opacity=1).encode(
            x=x, y=y, fill=filled
        ),
        *(
            marks.transform_filter(f"datum.below == {below}")
            .mark_text(dy=offset, fontSize=10, color=_INK)
            .encode(x=x, y=y, text="label:N")
            for below, offset in enumerate((-10, 12))
        ),
    ]
    return alt.layer(*layers).properties(width=_WIDTH, height=_HEIGHT, title=method)


def _domain(found: Comparison) -> list[float]:
    """Return the utilities that are drawn: those there are, as far as they count."""
    kept = [
        kept
        for places in found.frontiers.methods.values()
        for one in places
        for kept in (one.kept, *(kept for kept, _ in one.seeds))
    ]
    return [max(found.sweep.frontier.floor, min(kept) - 0.02), max(1.02, *kept)]


def _areas(found: Comparison) -> Any:
    """Draw each method's area with its interval, the largest first."""
    import altair as alt

    rows = []
    for method in found.frontiers.methods:
        area = found.frontiers.area(method, found.baseline)
        low, high = area.interval
        kind = "baseline" if method == found.baseline else "own"
        rows.append({"method": method, "area": area.value, "low": low, "high": high, "kind": kind})
    y = alt.Y("method:N", title=None, sort=alt.EncodingSortField("area", order="descending"),
              axis=alt.Axis(labelFontSize=11))  # fmt: skip
    colour = alt.Color("kind:N", legend=None, scale=alt.Scale(
        domain=["own", "baseline"], range=[_OWN, _OTHER]))  # fmt: skip
    title = "area under the frontier, with 95 % bootstrap interval"
    data = alt.Chart(alt.Data(values=rows))
    line = alt.Chart(alt.Data(values=[{"base": found.frontiers.base}]))
    return alt.layer(
        line.mark_rule(strokeDash=[4, 3], color=GREY).encode(x="base:Q"),
        data.mark_rule(strokeWidth=2).encode(
            x=alt.X("low:Q", title=title, scale=alt.Scale(zero=False)), x2="high:Q", y=y,
            color=colour,
        ),
        data.mark_point(size=60, filled=True, opacity=1).encode(x="area:Q", y=y, color=colour),
    ).properties(width=3 * _WIDTH, height=22 * len(rows))  # fmt: skip
