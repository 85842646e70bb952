"""How the charts of a report look, in light and in dark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["COLOURS", "GREEN", "GREY", "drawn"]

#: Colours that are told apart on white and on black, and of what is compared with.
COLOURS = ("#4c78a8", "#f58518", "#e45756", "#72b7b2", "#b279a2", "#9d755d")
GREY, GREEN = "#8a8a8a", "#2a9d5c"
_CONFIG = {
    "background": None,
    "view": {"stroke": None},
    "axis": {"labelColor": "currentColor", "titleColor": "currentColor", "gridOpacity": 0.2},
    "legend": {"labelColor": "currentColor", "titleColor": "currentColor", "orient": "bottom",
               "columns": 2, "labelLimit": 320, "symbolBaseFillColor": "currentColor",
               "symbolBaseStrokeColor": "currentColor"},
    "title": {"color": "currentColor"},
}  # fmt: skip


def drawn(
    name: str,
    title: str,
    caption: str,
    chart: Any,
    rows: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Return a chart as a report holds it.

    Args:
        name: Its id in the page.
        title: What stands above it.
        caption: What it shows, in words.
        chart: Of Altair; or several by name, which are drawn one beside the other.
        rows: The numbers drawn, for those who can't see it.
    """
    several = chart if isinstance(chart, Mapping) else {"": chart.properties(height=320)}
    specs = {}
    for part, one in several.items():
        spec = one.properties(width="container").to_dict()
        spec.pop("$schema", None)
        spec["config"] = {**spec.get("config", {}), **_CONFIG}
        specs[f"{name}-{part}" if part else name] = spec
    return {"id": name, "title": title, "caption": caption, "specs": specs, "rows": list(rows)}
