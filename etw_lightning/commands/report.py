"""``report``: finished runs in one HTML file, or as a table."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from etw_lightning.commands.refusals.options import Options
from etw_lightning.notices import printable
from etw_lightning.schema import InputError

__all__ = ["parser", "report", "write_out"]

_FORMATS = ("html", "md", "csv", "json", "png")


def report(args: Sequence[str]) -> int:
    """Run ``report``.

    Args:
        args: Words after ``report``.

    Returns:
        0.

    Raises:
        InputError: If no run can be read, or the report can't be written.
    """
    options = parser().parse_args(list(args))
    output = None if options.output is None else Path(options.output).expanduser()
    ending = "" if output is None else output.suffix.removeprefix(".")
    kind = options.format or (ending if ending in _FORMATS else "html")
    if output is None and kind in ("html", "png"):
        raise InputError(f"report: -o must be given for {kind}, such as -o report.{kind}.")
    for key in ("title", "row"):
        given = getattr(options, key)
        if kind != "html" and given not in (None, []):
            raise InputError(
                f"report: --{key} belongs to the html page, and this makes {kind}; got {given!r}. "
                "Leave it out."
            )
    if output is not None and not output.parent.is_dir():
        raise InputError(f"report: -o {str(output)!r} is in no folder that exists.")
    title = "Unlearning report" if options.title is None else options.title
    from etw_lightning.reports import page
    from etw_lightning.reports.finished_runs import read_runs
    from etw_lightning.reports.ranking import apart

    runs, left_out = read_runs(options.runs)
    for line in left_out:
        sys.stderr.write(f"left out: {printable(line)}\n")
    for line in apart(runs):
        sys.stderr.write(f"not comparable: {printable(line)}\n")
    made = {
        "html": lambda: page.as_html(runs, left_out, title, options.row).encode("utf-8"),
        "md": lambda: page.as_markdown(runs, left_out).encode("utf-8"),
        "csv": lambda: page.as_csv(runs).encode("utf-8"),
        "json": lambda: page.as_json(runs, left_out).encode("utf-8"),
        "png": lambda: page.as_png(runs),
    }[kind]()
    write_out("report", made, output, len(runs))
    return 0


def write_out(command: str, made: bytes, output: Path | None, count: int) -> None:
    """Write what was made, or print it where no file is named.

    Args:
        command: The command, for messages.
        made: What was made.
        output: The file; None prints.
        count: Runs that are in it.

    Raises:
        InputError: If the file can't be written.
    """
    if output is None:
        sys.stdout.write(made.decode("utf-8"))
        return
    try:
        output.write_bytes(made)
    except OSError as error:
        raise InputError(
            f"{command}: -o {str(output)!r} can't be written ({error.strerror or error})."
        ) from error
    number = f"{count} run{'s' * (count != 1)}"
    sys.stdout.write(f"{number} in {output} ({len(made) / 2**20:.1f} MiB)\n")


def parser() -> Options:
    """Return the command's options."""
    parser = Options("report", __doc__)
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="folder of a finished run, or one that holds some"
    )
    parser.add_argument("-o", "--output", metavar="FILE", help="file to write; without: printed")
    parser.add_argument(
        "--format", choices=_FORMATS, help="what to make; by default what FILE ends in"
    )
    parser.add_argument("--title", help="title of the page; without: Unlearning report")
    parser.add_argument(
        "--row",
        type=int,
        action="append",
        default=[],
        metavar="N",
        help="forget row whose tokens are shown, from 0; may be given again",
    )
    return parser
