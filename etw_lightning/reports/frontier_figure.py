"""The frontiers of a sweep's methods as one figure: a panel a method, and the areas."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from etw_lightning.reports.comparison import Comparison
from etw_lightning.reports.drawing import COLOURS, GREY

__all__ = ["as_svg", "steps"]

#: A card of its own colours, which light and dark pages can hold.
_CARD, _INK, _PALE = "#fbfaf7", "#2b2925", "#d8d4ca"
_PANELS, _WIDTH, _HEIGHT = 4, 170, 130
_OWN, _OTHER = COLOURS[0], COLOURS[1]
#: Pixels: height and width of a letter of a label, and a point's half width with its rim.
_LETTER, _POINT = (10, 6), 5


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


def label_places(
    points: Sequence[tuple[float, float]], labels: Sequence[str], width: float, height: float
) -> list[tuple[float, float]]:
    """Return where the middle of each point's label stands, clear of points and other labels.

    Each label takes the nearest free place around its point; where none is free, the one that
    covers least. Points that stand alone go first, as crowded ones have more to give way to.

    Args:
        points: Pixels from the panel's left and upper edge.
        labels: Text of each.
        width: Of the panel, in pixels.
        height: Of the panel, in pixels.

    Example:
        >>> label_places([(50.0, 50.0), (50.0, 50.0)], ["3", "8"], 100, 100)
        [(50.0, 39.0), (50.0, 61.0)]
    """
    dots = [(x - _POINT, y - _POINT, x + _POINT, y + _POINT) for x, y in points]
    placed: dict[int, tuple[float, float]] = {}
    boxes: list[_Box] = []

    def crowd(at: int) -> int:
        (x, y), reach = points[at], 4 * _LETTER[0]
        return sum(abs(x - u) < reach and abs(y - v) < reach for u, v in points)

    for at in sorted(range(len(points)), key=crowd):
        size = (len(labels[at]) * _LETTER[1], _LETTER[0])

        def covered(middle: tuple[float, float], size: tuple[int, int] = size) -> float:
            box = _around(middle, size)
            inside = _shared(box, (0, 0, width, height))
            out = size[0] * size[1] - inside
            return round(out + sum(_shared(box, other) for other in [*dots, *boxes]))

        placed[at] = min(_near(points[at], size), key=covered)
        boxes.append(_around(placed[at], size))
    return [placed[at] for at in range(len(points))]


_Box = tuple[float, float, float, float]


def _near(point: tuple[float, float], size: tuple[int, int]) -> Iterator[tuple[float, float]]:
    """Yield places for a label around its point, the best first."""
    x, y = point
    for ring in (0, 1, 2):
        up = _POINT + 1 + size[1] / 2 + ring * (size[1] + 1)
        side = _POINT + 2 + size[0] / 2 + ring * size[0] / 2
        yield from ((x, y - up), (x, y + up), (x + side, y), (x - side, y))
        yield from ((x + side, y - up), (x - side, y - up), (x + side, y + up), (x - side, y + up))


def _around(middle: tuple[float, float], size: tuple[int, int]) -> _Box:
    (x, y), (wide, high) = middle, size
    return x - wide / 2, y - high / 2, x + wide / 2, y + high / 2


def _shared(one: _Box, other: _Box) -> float:
    """Area that two boxes share."""
    wide = min(one[2], other[2]) - max(one[0], other[0])
    high = min(one[3], other[3]) - max(one[1], other[1])
    return max(wide, 0.0) * max(high, 0.0)


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
    shown = sorted(found.frontiers.methods[method], key=lambda one: one.kept)
    labels = [", ".join(value for _, value in one.point.values) for one in shown]
    least, most = _domain(found)
    per_pixel = (most - least) / _WIDTH, -1 / _HEIGHT
    pixels = [
        (min(max(one.kept - least, 0.0), most - least) / per_pixel[0], one.distance * _HEIGHT)
        for one in shown
    ]
    for one, label, (at_x, at_y) in zip(
        shown, labels, label_places(pixels, labels, _WIDTH, _HEIGHT), strict=True
    ):
        points.append(
            {"u": one.kept, "f": 1 - one.distance, "label": label, "chosen": one.point is chosen,
             "label_u": least + at_x * per_pixel[0], "label_f": 1 + at_y * per_pixel[1]}
        )  # fmt: skip
    seeds = [
        {"u": kept, "f": 1 - distance}
        for one in found.frontiers.methods[method]
        for kept, distance in (one.seeds if len(one.seeds) > 1 else ())
    ]
    x = alt.X("u:Q", title="utility / target's", axis=alt.Axis(tickCount=4, labelFlush=False),
              scale=alt.Scale(domain=_domain(found), clamp=True))  # fmt: skip
    y = alt.Y("f:Q", title="1 - KS distance", axis=alt.Axis(tickCount=5, titlePadding=8),
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
        marks.mark_text(fontSize=10, color=_INK).encode(
            x="label_u:Q", y="label_f:Q", text="label:N"
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
            x=alt.X("low:Q", title=title, axis=alt.Axis(labelFlush=False),
                    scale=alt.Scale(zero=False)),
            x2="high:Q", y=y, color=colour,
        ),
        data.mark_point(size=60, filled=True, opacity=1).encode(x="area:Q", y=y, color=colour),
    ).properties(width=3 * _WIDTH, height=22 * len(rows))  # fmt: skip
