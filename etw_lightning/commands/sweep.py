"""``sweep``: the runs of a grid as commands, run here or by Slurm, and reported in one table."""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from etw_lightning.commands.options import Options
from etw_lightning.files.checkpoint_folder import saved_checkpoints
from etw_lightning.notices import program
from etw_lightning.runs.folder import finished_command, remove_run
from etw_lightning.runs.key import run_key, that_count
from etw_lightning.runs.newer_options import is_of
from etw_lightning.schema import InputError
from etw_lightning.scoring.retain_results import write_atomically
from etw_lightning.sweeps.grid import Sweep, load_sweep
from etw_lightning.sweeps.reading import SettingsReader
from etw_lightning.sweeps.report import check_metrics, report
from etw_lightning.sweeps.runs import Finished, Run, expand, find_finished, is_finished, strangers

__all__ = ["parser", "plan", "sweep", "with_keys"]

#: What a run prints, in its folder.
LOG = "log.txt"
_PROGRAM = ("python", "-m", "etw_lightning")
#: How long a run that is stopped may take to end by itself, seconds.
_GRACE = 10.0
#: So many runs take seconds to read.
_MANY = 50
_Parse = Callable[[Sequence[str]], Mapping[str, Any]]


def sweep(args: Sequence[str], reader: Callable[[], _Parse]) -> int:
    """Run ``sweep plan``, ``sweep run`` or ``sweep report``.

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
    changes = [text for texts in options.set for text in texts]
    given = load_sweep(options.config, options.output_dir, changes)
    runs = with_keys(expand(given), reader())
    check_metrics(given, (run.settings for run in runs))
    found = find_finished(runs)
    if options.command == "plan":
        plan(given, runs, found)
        return 0
    failed = 0
    if options.command == "run":
        failed = _run_locked(given, runs, found, options.jobs)
    elif not found:
        words = ["sweep", *("run" if word == "report" else word for word in args)]
        line = f"{program()} {shlex.join(words)}"
        _say(f"nothing is finished in {given.output_dir!r}; {line} runs what there is")
        return 1
    text = report(given, runs)
    write_atomically(Path(given.output_dir) / "report.md", text.encode("utf-8"))
    _say(text)
    return 1 if failed else 0


def with_keys(runs: Sequence[Run], parse: _Parse) -> list[Run]:
    """Give each run its content key, and the name of an earlier run that equals it."""
    first: dict[str, str] = {}
    keyed = []
    reader = SettingsReader(parse, runs)
    for run in _shown(runs):
        try:
            settings = reader.settings(run)
        except InputError as error:
            raise InputError(f"{error} (run {run.name})") from error
        key = run_key(settings)
        name = first.setdefault(key, run.name)
        equal_to = None if name == run.name else name
        keyed.append(replace(run, key=key, settings=that_count(settings), equal_to=equal_to))
    return keyed


def _shown(runs: Sequence[Run]) -> Iterable[Run]:
    """Return runs one by one, with a bar on a terminal while there are many of them."""
    if len(runs) < _MANY or not sys.stderr.isatty():
        return runs
    from rich.console import Console
    from rich.progress import track

    return track(runs, "reading the runs", console=Console(stderr=True), transient=True)


def plan(given: Sweep, runs: Sequence[Run], found: Mapping[str, Finished]) -> None:
    """Print the commands and write them to ``plan.txt``.

    The file holds every run, finished or not, in the grid's order: a task of an array job that
    waits must find its own line still in its place when the plan is made again. Only the numbers of
    those that are not finished stand in the line for ``sbatch``.
    """
    said: list[str] = []
    lines: list[str] = []
    todo: list[int] = []
    for run in runs:
        line = shlex.join([*_PROGRAM, *run.words])
        if run.equal_to is not None:
            said.append(f"# {run.name} equals {run.equal_to}, which is run once")
            continue
        if run.key in found:
            said.append(f"# finished, {found[run.key].folder}: {line}")
        else:
            said.append(line)
            todo.append(len(lines))
        lines.append(line)
    path = Path(given.output_dir) / "plan.txt"
    write_atomically(path, "".join(f"{line}\n" for line in lines).encode("utf-8"))
    others = strangers(runs, found)
    _say("\n".join([*said, *([f"# {others}"] if others else [])]))
    _say(f"# {len(todo)} of {len(lines)} runs to do")
    if todo:
        _say(f"# sbatch --array={_ranges(todo)} slurm/array.sh {shlex.quote(str(path))}")


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


def _run_locked(given: Sweep, runs: Sequence[Run], found: Mapping[str, Finished], jobs: int) -> int:
    """Run what is not finished; return how many runs failed."""
    folder = Path(given.output_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".sweep.lock")
        lock.acquire(blocking=False)
    except Timeout:
        raise InputError(f"another sweep run is at work in {str(folder)!r}; wait for it.") from None
    except OSError as error:
        raise InputError(
            f"output_dir {str(folder)!r} can't be written ({error.strerror or error}); give "
            "another folder."
        ) from None
    for run in runs:
        if run.equal_to is not None:
            _say(f"skipped {run.name}: equals {run.equal_to}")
        elif run.key in found:
            _say(f"skipped {run.name}: finished, {found[run.key].folder}")
    todo = [run for run in runs if run.equal_to is None and run.key not in found]
    # Slurm and `kill` end a program with SIGTERM; the runs must not outlive it.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return _run_all(todo, jobs)
    finally:
        signal.signal(signal.SIGTERM, before)
        lock.release()


def _run_all(todo: Sequence[Run], jobs: int) -> int:
    waiting, working, failed = list(todo), dict[str, tuple[Run, Any, float]](), 0
    threads = str(max(_num_cores() // jobs, 1))
    environment = {"OMP_NUM_THREADS": threads, **os.environ}
    try:
        while waiting or working:
            while waiting and len(working) < jobs:
                run = waiting.pop(0)
                working[run.name] = run, _start(run, environment), time.monotonic()
            time.sleep(0.1)
            for run, process, started in list(working.values()):
                if process.poll() is not None:
                    del working[run.name]
                    failed += not _ended(run, process.returncode, time.monotonic() - started)
    finally:
        _stop([(run, process) for run, process, _ in working.values()])
    return failed


def _num_cores() -> int:
    """Return the number of cores this process may use, where the system tells."""
    has_affinity = hasattr(os, "sched_getaffinity")
    return len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1


def _start(run: Run, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    if not _goes_on(run):
        # What an earlier try left would stand beside the new curves.
        remove_run(run.folder)
    run.folder.mkdir(parents=True, exist_ok=True)
    _say(f"start {run.name} (log {run.folder / LOG})")
    with (run.folder / LOG).open("wb") as log:
        return subprocess.Popen(
            [sys.executable, *_PROGRAM[1:], *run.words],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            # A group of its own: what the run starts is stopped with it, and by us alone.
            start_new_session=True,
        )


def _ended(run: Run, status: int, seconds: float) -> bool:
    """Say how a run ended; return whether it left its results."""
    if status == 0 and is_finished(run):
        _say(f"done {run.name}: {seconds:.1f} s")
        return True
    log = run.folder / LOG
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines()]
    last = next((line for line in reversed(lines) if line), "it printed nothing")
    _say(f"failed {run.name}: {last} (exit status {status}; {log})")
    return False


def _stop(working: Sequence[tuple[Run, subprocess.Popen[bytes]]]) -> None:
    """End runs with all they started, and remove what is of no use without the rest."""
    for _, process in working:
        process.terminate()
    end = time.monotonic() + _GRACE
    for run, process in working:
        try:
            process.wait(max(end - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            pass
        finally:
            _kill_group(process)
        process.wait()
        if finished_command(run.folder) is None:
            goes_on = _goes_on(run)
            if not goes_on:
                remove_run(run.folder)
            what = "goes on with it" if goes_on else "runs it again"
            _say(f"stopped {run.name}: the same command {what}")


def _goes_on(run: Run) -> bool:
    """Tell whether a run's folder holds checkpoints that its command goes on from."""
    found = [one.manifest for one in saved_checkpoints(run.folder)]
    return any(one.get("key") == run.key or is_of(one, run.settings) for one in found)


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def parser() -> Options:
    """Return the command's options."""
    parser = Options("sweep", __doc__)
    parser.add_argument(
        "command",
        choices=("plan", "run", "report"),
        help="print the commands; run them; print the table (exit status 1: nothing to report yet)",
    )
    parser.add_argument(
        "--config",
        required=True,
        help="a sweep's file, or the name of a shipped one, as sweep/quickstart_lambda",
    )
    parser.add_argument("--output_dir", help="folder of the runs; takes the file's place")
    parser.add_argument("--jobs", type=_positive, default=1, help="runs at a time (run)")
    parser.add_argument(
        "--set",
        action="append",
        nargs="+",
        default=[],
        metavar="key=value",
        help="setting of every run; takes the place of the file's value or grid; what is given to "
        "plan must be given to run and report too",
    )
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number > 0; got {text!r}")
    return int(text)


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    # A log file is read while the runs go on.
    sys.stdout.flush()
