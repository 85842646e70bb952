"""``compare``: a leaderboard of runs over seeds, under a named rule."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from etw_lightning.commands.refusals.options import Options
from etw_lightning.commands.report import write_out
from etw_lightning.notices import printable
from etw_lightning.schema import InputError

__all__ = ["compare", "parser"]

_FORMATS = ("md", "csv", "json", "png")
_RULES = (
    *("fq_at_utility_floor", "agg_paper", "hm_mem_util", "hm_mem_priv_util", "es_then_utility"),
)


def compare(args: Sequence[str]) -> int:
    """Run ``compare``.

    Args:
        args: Words after ``compare``.

    Returns:
        0.

    Raises:
        InputError: If no run can be read, the rule can't be applied, or the file not be written.
    """
    options = parser().parse_args(list(args))
    output = None if options.output is None else Path(options.output).expanduser()
    ending = "" if output is None else output.suffix.removeprefix(".")
    kind = options.format or (ending if ending in _FORMATS else "md")
    if output is None and kind == "png":
        raise InputError("compare: -o must be given for png, such as -o frontier.png.")
    from etw_lightning.reports import leaderboard
    from etw_lightning.reports.finished_runs import read_runs
    from etw_lightning.reports.ranking import comparable, rank

    runs, left_out = read_runs(options.runs, "compare")
    kept, others = comparable(runs)
    left_out += others
    for line in left_out:
        sys.stderr.write(f"left out: {printable(line)}\n")
    if not kept:
        raise InputError("compare: no run of fit was given.")
    places = rank(kept, options.rank)
    made = {
        "md": lambda: leaderboard.as_markdown(places, options.rank, left_out).encode("utf-8"),
        "csv": lambda: leaderboard.as_csv(places, options.rank).encode("utf-8"),
        "json": lambda: leaderboard.as_json(places, options.rank, left_out).encode("utf-8"),
        "png": lambda: leaderboard.as_png(places),
    }[kind]()
    write_out("compare", made, output, len(kept))
    return 0


def parser() -> Options:
    """Return the command's options."""
    parser = Options("compare", __doc__)
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="folder of a finished run, or one that holds some"
    )
    parser.add_argument("--rank", choices=_RULES, required=True, help="rule that orders methods")
    parser.add_argument("-o", "--output", metavar="FILE", help="file to write; without: printed")
    parser.add_argument(
        "--format", choices=_FORMATS, help="what to make; by default what FILE ends in, else md"
    )
    return parser
