"""The report as one HTML file that asks nothing of anybody, and as plain tables."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import etw_lightning
from etw_lightning.notices import as_markdown_text
from etw_lightning.reports.attack_rows import (
    attack_rows,
    read_attacks,
    robustness_rows,
    unread_attacks,
)
from etw_lightning.reports.charts import make_charts
from etw_lightning.reports.contents import cards, columns, medians, table, texts
from etw_lightning.reports.finished_runs import FinishedRun
from etw_lightning.reports.ranking import apart
from etw_lightning.reports.token_rows import token_rows
from etw_lightning.reports.worlds import World, spread, worlds
from etw_lightning.schema import InputError

__all__ = ["as_csv", "as_html", "as_json", "as_markdown", "as_png", "check_installed"]

#: Forget rows whose tokens are shown by default.
_ROWS = 8
#: Runs whose tokens and texts are shown, all models they began with together, and of each of these.
_MOST_RUNS, _LEAST_RUNS = 20, 4
#: Generations that are shown, all runs together.
_MOST_CELLS = 4000


def check_installed(*names: str) -> None:
    """Refuse what can't be made without packages that are not there.

    Args:
        names: Of modules.

    Raises:
        InputError: Names them, and the way out.
    """
    from importlib.util import find_spec

    missing = [name for name in names if find_spec(name) is None]
    if missing:
        raise InputError(
            f"report: this needs {', '.join(missing)}: pip install -c constraints.txt "
            "'etw-lightning[report]', or take --format md, csv or json."
        )


def as_html(
    runs: Sequence[FinishedRun],
    left_out: Sequence[str] = (),
    title: str = "Unlearning report",
    rows: Sequence[int] = (),
) -> str:
    """Return the report as HTML.

    Args:
        runs: The runs.
        left_out: Lines on what was left out.
        title: Its title.
        rows: Forget rows whose tokens are shown; the first few without.

    Raises:
        InputError: If what draws it is not installed.
    """
    check_installed("altair", "vl_convert", "jinja2")
    import vl_convert
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    keys = columns(runs)
    charts = make_charts(runs)
    attacks = attack_rows(runs)
    groups = worlds(runs)
    known = max((len(run.after.get("forget", ())) for run in runs), default=0)
    wanted = list(rows) or list(range(min(_ROWS, known)))
    absent = [row for row in rows if not 0 <= row < known]
    if absent:
        raise InputError(
            f"report: --row must be from 0 to {known - 1}, as the runs have {known} forget rows; "
            f"got {absent[0]}."
        )
    source = Path(__file__).with_name("report.html.j2").read_text(encoding="utf-8")
    template = Environment(autoescape=True, undefined=StrictUndefined).from_string(source)
    bundle = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return template.render(
        title=title,
        version=etw_lightning.__version__,
        runs=cards(runs),
        left_out=[*left_out, *unread_attacks(runs)],
        apart=apart(runs),
        tabs=[("numbers", "Numbers"), ("charts", "Charts"), ("tokens", "Tokens"),
              ("texts", "Texts"), *[("attacks", "Attacks")] * bool(attacks), ("cards", "Runs")],
        medians=medians(runs, keys),
        attacks=attacks,
        columns=keys,
        rows=table(runs, keys),
        robust=robustness_rows(runs),
        charts=[{**one, "heads": list(one["rows"][0])} for one in charts],
        worlds=[_world(group, wanted, len(groups)) for group in groups],
        # The only parts that are no text: the library, and JSON in which no tag can stand.
        bundle=Markup(bundle.replace("</script", "<\\/script")),
        specs=Markup(_script_json({k: v for one in charts for k, v in one["specs"].items()})),
    )  # fmt: skip


def _world(group: World, wanted: Sequence[int], count: int) -> dict[str, Any]:
    """Return what the runs that began with one model say, token by token and in whole texts."""
    some = spread(group.runs, max(_MOST_RUNS // count, _LEAST_RUNS))
    said, cut = texts(some, _MOST_CELLS // count)
    return {
        "name": group.name,
        "runs": [run.name for run in some],
        "left_out": len(group.runs) - len(some),
        "tokens": token_rows(some, wanted),
        "texts": said,
        "sets": list(dict.fromkeys(row["set"] for row in said)),
        "cut": cut,
    }


def _script_json(value: Any) -> str:
    r"""Return JSON that may stand in a script: no ``<``, no line separators of JavaScript's.

    Example:
        >>> _script_json("</script>")
        '"\\u003c/script\\u003e"'
    """
    text = json.dumps(value, allow_nan=False)
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def as_json(runs: Sequence[FinishedRun], left_out: Sequence[str] = ()) -> str:
    """Return the numbers of all models, the verdicts and what was left out, as JSON."""
    found = {
        "runs": {
            run.name: {
                "settings": dict(run.settings),
                "models": run.models,
                "verdict": run.judgement.get("verdict"),
                "metrics": {k: v["value"] for k, v in run.results.get("metrics", {}).items()},
                "attacks": read_attacks(run),
            }
            for run in runs
        },
        "left_out": list(left_out),
        "not_comparable": apart(runs),
    }
    return json.dumps(found, ensure_ascii=False, indent=2, allow_nan=False) + "\n"


def as_csv(runs: Sequence[FinishedRun]) -> str:
    """Return the table as CSV, numbers in full; a cell that a spreadsheet would run is text."""
    keys = columns(runs)
    page = io.StringIO()
    writer = csv.writer(page, lineterminator="\n")
    writer.writerow(["model", *(one["key"] for one in keys)])
    for row in table(runs, keys):
        name = row["name"]
        safe = f"'{name}" if name[:1] in "=+-@" else name
        writer.writerow([safe, *("" if c["value"] is None else c["value"] for c in row["cells"])])
    return page.getvalue()


def as_markdown(runs: Sequence[FinishedRun], left_out: Sequence[str] = ()) -> str:
    """Return the table, a line a number and a column a model, and the verdicts, as Markdown."""
    keys = columns(runs)
    models = table(runs, keys)
    names = [as_markdown_text(row["name"]) for row in models]
    lines = [f"| | {' | '.join(names)} |", "| --- |" + " ---: |" * len(names)]
    for place, one in enumerate(keys):
        cells = " | ".join(row["cells"][place]["text"] for row in models)
        lines.append(f"| {one['label']} | {cells} |")
    for run in runs:
        verdict = run.judgement.get("verdict") or "no verdict"
        lines += ["", f"**{as_markdown_text(run.name)}**: {verdict}"]
    said = [f"left out: {as_markdown_text(one)}" for one in left_out]
    said += [f"not comparable: {as_markdown_text(one)}" for one in apart(runs)]
    lines += [part for one in said for part in ("", one)]
    return "\n".join(lines) + "\n"


def as_png(runs: Sequence[FinishedRun]) -> bytes:
    """Return the first chart as a picture, forgetting against utility where it can be drawn.

    Raises:
        InputError: If there is none, or what draws it is not installed.
    """
    check_installed("altair", "vl_convert")
    import vl_convert

    charts = make_charts(runs)
    if not charts:
        raise InputError("report: the runs hold nothing that all of them could be drawn by.")
    spec: Mapping[str, Any] = json.loads(
        json.dumps(next(iter(charts[0]["specs"].values()))).replace('"currentColor"', '"black"')
    )
    fixed = {**spec, "width": 640, "background": "white"}
    found: bytes = vl_convert.vegalite_to_png(fixed, scale=2)
    return found
