"""``sweep``: runs of a grid, or of a search, run here or by Slurm, and reported in one table."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from etw_lightning.commands.refusals.options import Options
from etw_lightning.commands.refusals.refused_values import either
from etw_lightning.notices import program
from etw_lightning.schema import InputError
from etw_lightning.scoring.retain_results import write_atomically
from etw_lightning.sweeps.choice import choose_all, gather
from etw_lightning.sweeps.grid import Sweep, as_typed, has_ranges, load_sweep
from etw_lightning.sweeps.parts import check_parts
from etw_lightning.sweeps.processes import PROGRAM, held, run_all, say
from etw_lightning.sweeps.reading import Parse, with_keys
from etw_lightning.sweeps.report import check_metrics, report
from etw_lightning.sweeps.runs import Finished, Run, expand, find_finished, strangers
from etw_lightning.sweeps.search import Searches
from etw_lightning.sweeps.study import check_optuna

__all__ = ["parser", "plan", "sweep"]


def sweep(args: Sequence[str], reader: Callable[[], Parse]) -> int:
    """Run ``sweep plan``, ``sweep run``, ``sweep search`` or ``sweep report``.

    Args:
        args: Words after ``sweep``.
        reader: Makes what gives the configuration that the words of a ``fit`` command mean; called
            once the sweep's file has been found to be in order.

    Returns:
        0 if all went well, 1 if a run failed or there is nothing to report yet.

    Raises:
        InputError: If the sweep's file, a run's configuration or a run's folder can't be used, or
            the rule names a number that no metric gives.
    """
    options = parser().parse_args(list(args))
    try:
        return _answer(options, args, reader)
    except InputError as error:
        typed = [*options.set, *options.over]
        raise InputError(as_typed(str(error), options.config, typed)) from error


def _answer(options: argparse.Namespace, args: Sequence[str], reader: Callable[[], Parse]) -> int:
    for name, commands in _READ_BY.items():
        if options.command not in commands and getattr(options, name):
            raise InputError(_unread(name, options))
    given = load_sweep(options.config, options.output_dir, options.set, options.over)
    is_search = options.command == "search" or (options.command == "report" and has_ranges(given))
    if options.seed is not None and not is_search:
        raise InputError(_unread("seed", options))
    failed = 0
    if is_search:
        check_optuna()
        searches = Searches(given, reader(), given.seed if options.seed is None else options.seed)
        if options.command == "search":
            _check_parts(given, searches.ends, whole=True)
            with held(Path(given.output_dir), "sweep"):
                failed = searches.run(options.trials or given.trials, options.jobs or 1)
        runs = searches.drawn_runs()
        found = find_finished(runs)
    else:
        runs = with_keys(expand(given), reader())
        check_metrics(given, (run.settings for run in runs))
        found = find_finished(runs)
    if options.command == "plan":
        unknown = _check_parts(given, runs, whole=False)
        if unknown:
            say(f"# {unknown}")
        plan(given, runs, found)
        return 0
    if options.command == "run":
        _check_parts(given, runs, whole=True)
        failed = _run(given, runs, options.jobs or 1)
    elif not found:
        way = "search" if is_search else "run"
        words = ["sweep", *(way if word == "report" else word for word in args)]
        line = f"{program()} {shlex.join(words)}"
        say(f"nothing is finished in {given.output_dir!r}; {line} runs what there is")
        return 1
    if options.frontier:
        _compare(given, runs)
    else:
        text = report(given, runs)
        write_atomically(Path(given.output_dir) / "report.md", text.encode("utf-8"))
        say(text)
    return 1 if failed else 0


#: Which commands read an option that not all of them read.
_READ_BY = {
    "jobs": ("run", "search"),
    "trials": ("search",),
    "frontier": ("run", "search", "report"),
}


def _unread(name: str, options: argparse.Namespace) -> str:
    takers = _READ_BY.get(name, ("search",))
    said = f"{either(takers, 'and')} {'read' if len(takers) > 1 else 'reads'} it"
    value = getattr(options, name)
    got = "" if value is True else f"; got {value!r}"
    return f"sweep: --{name} is not read by sweep {options.command}: {said}{got}. Leave it out."


def _check_parts(given: Sweep, runs: Sequence[Run], *, whole: bool) -> str:
    """Refuse a validation part without rows; return why it could not be counted, if so."""
    if given.select.validation is None:
        return ""
    from etw_lightning.commands.parser import data_of

    return check_parts(given, runs, data_of, whole=whole)


def _compare(given: Sweep, runs: Sequence[Run]) -> None:
    """Print the methods' frontiers beside one another; write the table and the figure."""
    from etw_lightning.reports.comparison import compare_methods
    from etw_lightning.reports.comparison_table import as_markdown
    from etw_lightning.reports.frontier_figure import as_svg
    from etw_lightning.reports.page import check_installed

    check_installed("altair", "vl_convert")
    found = compare_methods(given, runs)
    text, folder = as_markdown(found), Path(given.output_dir)
    write_atomically(folder / "frontier.md", text.encode("utf-8"))
    write_atomically(folder / "frontier.svg", as_svg(found).encode("utf-8"))
    say(text)


def plan(given: Sweep, runs: Sequence[Run], found: Mapping[str, Finished]) -> None:
    """Print the commands and write them to ``plan.txt``.

    The file holds every run, finished or not, in the grid's order: a task of an array job that
    waits must find its own line still in its place when the plan is made again. Only the numbers of
    those that are not finished stand in the line for ``sbatch``.
    """
    said: list[str] = []
    lines: list[str] = []
    todo: list[int] = []
    seeds = given.select.seeds
    wanted = {run.key for run in runs if not seeds or run.seed in seeds}
    wanted |= {run.key for run in chosen_runs(given, runs)} if seeds else set()
    for run in runs:
        line = shlex.join([*PROGRAM, *run.words])
        if run.equal_to is not None:
            said.append(f"# {run.name} equals {run.equal_to}, which is run once")
            continue
        if run.key in found:
            said.append(f"# finished, {found[run.key].folder}: {line}")
        elif run.key not in wanted:
            said.append(f"# if its point is chosen: {line}")
        else:
            said.append(line)
            todo.append(len(lines))
        lines.append(line)
    path = Path(given.output_dir) / "plan.txt"
    write_atomically(path, "".join(f"{line}\n" for line in lines).encode("utf-8"))
    others = strangers(runs, found)
    say("\n".join([*said, *([f"# {others}"] if others else [])]))
    say(f"# {len(todo)} of {len(lines)} runs to do")
    if todo:
        say(f"# sbatch --array={_ranges(todo)} slurm/array.sh {shlex.quote(str(path))}")


def _ranges(numbers: Sequence[int]) -> str:
    """Return numbers as Slurm writes them.

    Example:
        >>> _ranges([0, 1, 2, 5])
        '0-2,5'
    """
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ",".join(str(one[0]) if len(one) == 1 else f"{one[0]}-{one[-1]}" for one in parts)


def _run(given: Sweep, runs: Sequence[Run], jobs: int) -> int:
    """Run what is not finished; return how many runs failed.

    Where points are chosen by some seeds, these come first, and the others of what was chosen.
    """
    with held(Path(given.output_dir), "sweep"):
        first = [run for run in runs if run.seed in given.select.seeds]
        if not first:
            return _run_some(runs, runs, jobs)
        failed = _run_some(first, runs, jobs)
        return failed + _run_some(chosen_runs(given, runs), runs, jobs)


def chosen_runs(given: Sweep, runs: Sequence[Run]) -> list[Run]:
    """Return the runs of the points that are chosen, as far as what is finished tells.

    Args:
        given: The sweep.
        runs: All its runs, with their keys.
    """
    taken = choose_all(gather(runs), given.select)
    return [run for point, _ in taken.values() if point is not None for run in point.runs]


def _run_some(some: Sequence[Run], runs: Sequence[Run], jobs: int) -> int:
    """Run some of the runs, as far as they are not finished; return how many failed."""
    found = find_finished(runs)
    first = {run.key: run for run in reversed(runs)}
    todo: dict[str, Run] = {}
    for run in some:
        if run.equal_to is not None:
            say(f"skipped {run.name}: equals {run.equal_to}")
        elif run.key in found:
            say(f"skipped {run.name}: finished, {found[run.key].folder}")
        if run.key not in found:
            # What stands for it may be a run of no point that was chosen.
            todo[run.key] = first[run.key]
    return run_all(list(todo.values()), jobs)


def parser() -> Options:
    """Return the command's options."""
    parser = Options("sweep", __doc__)
    parser.add_argument(
        "command",
        choices=("plan", "run", "search", "report"),
        help="print the commands; run them; draw points from ranges and run these; print the table "
        "(exit status 1: nothing to report yet)",
    )
    parser.add_file(
        "sweep",
        "sweep/quickstart_lambda",
        "setting of every run; takes the place of the file's value or grid; what is given to plan "
        "must be given to run and report too",
    )
    parser.add_argument(
        "--frontier",
        action="store_true",
        help="compare the methods' frontiers of forgetting against utility in a table and a "
        "figure, which are written beside the runs (run, search, report)",
    )
    parser.add_argument("--jobs", type=_positive, help="runs at a time (run, search); else 1")
    parser.add_settings(
        "--over",
        "key=range",
        "what search draws from, as model.lambda=log:0.01..1, model.lr=1e-5..1e-3 or "
        "'model.weighting.temperature=[0.5, 1, 2]'; takes the place of the file's value or grid",
    )
    parser.add_argument(
        "--trials", type=_positive, help="points of each method (search); the file's, else 20"
    )
    parser.add_argument(
        "--seed", type=_whole, help="seed of the draws (search, and its report); the file's, else 0"
    )
    return parser


def _whole(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a whole number >= 0; got {text!r}")
    return int(text)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number > 0; got {text!r}")
    return int(text)
