"""The processes of a sweep's runs: started, waited for, and ended with all they have started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from etw_lightning.data.encode_many import num_cores
from etw_lightning.files.checkpoint_folder import saved_checkpoints
from etw_lightning.runs.folder import finished_command, remove_run
from etw_lightning.runs.newer_options import is_of
from etw_lightning.schema import InputError
from etw_lightning.sweeps.runs import Run, is_finished

__all__ = ["FIT", "LOG", "PROGRAM", "Kind", "held", "run_all", "say"]

#: What a run prints, in its folder.
LOG = "log.txt"
#: What a run's command begins with.
PROGRAM = ("python", "-m", "etw_lightning")
#: How long a run that is stopped may take to end by itself, seconds.
_GRACE = 10.0


@contextmanager
def held(folder: Path, kind: str) -> Iterator[None]:
    """Hold a folder of runs, which one command at a time may run in, and end as on Ctrl-C.

    Args:
        folder: The folder; made where it is absent.
        kind: What the runs make up: a ``sweep`` or a ``sequence``.

    Raises:
        InputError: If another command holds it, or it can't be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".sweep.lock")
        lock.acquire(blocking=False)
    except Timeout:
        raise InputError(
            f"another command of this {kind} is at work in {str(folder)!r}; wait for it."
        ) from None
    except OSError as error:
        raise InputError(
            f"output_dir {str(folder)!r} can't be written ({error.strerror or error}); give "
            "another folder."
        ) from None
    # Slurm and `kill` end a program with SIGTERM; the runs must not outlive it.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        lock.release()


@dataclass(frozen=True)
class Kind:
    """A kind of runs.

    Args:
        is_done: Whether a run has left its results.
        goes_on: Whether what its folder holds is of use to its command.
    """

    is_done: Callable[[Run], bool]
    goes_on: Callable[[Run], bool]


def run_all(todo: Sequence[Run], jobs: int, kind: Kind | None = None) -> int:
    """Run commands, some at a time, and say of each how it ended.

    Args:
        todo: The runs.
        jobs: How many at a time.
        kind: What they are; None for runs of ``fit``.

    Returns:
        How many failed.
    """
    kind = kind or FIT
    waiting, working, failed = list(todo), dict[str, tuple[Run, Any, float]](), 0
    threads = str(max(num_cores() // jobs, 1))
    environment = {"OMP_NUM_THREADS": threads, **os.environ}
    try:
        while waiting or working:
            while waiting and len(working) < jobs:
                run = waiting.pop(0)
                working[run.name] = run, _start(run, environment, kind), time.monotonic()
            time.sleep(0.1)
            for run, process, started in list(working.values()):
                if process.poll() is not None:
                    del working[run.name]
                    failed += not _ended(run, process.returncode, time.monotonic() - started, kind)
    finally:
        _stop([(run, process) for run, process, _ in working.values()], kind)
    return failed


def _start(run: Run, environment: Mapping[str, str], kind: Kind) -> subprocess.Popen[bytes]:
    if not kind.goes_on(run):
        # What an earlier try left would stand beside the new curves.
        remove_run(run.folder)
    run.folder.mkdir(parents=True, exist_ok=True)
    say(f"start {run.name} (log {run.folder / LOG})")
    with (run.folder / LOG).open("wb") as log:
        return subprocess.Popen(
            [sys.executable, *PROGRAM[1:], *run.words],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            # A group of its own: what the run starts is stopped with it, and by us alone.
            start_new_session=True,
        )


def _ended(run: Run, status: int, seconds: float, kind: Kind) -> bool:
    """Say how a run ended; return whether it left its results."""
    if status == 0 and kind.is_done(run):
        say(f"done {run.name}: {seconds:.1f} s")
        return True
    log = run.folder / LOG
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines()]
    last = next((line for line in reversed(lines) if line), "it printed nothing")
    say(f"failed {run.name}: {last} (exit status {status}; {log})")
    return False


def _stop(working: Sequence[tuple[Run, subprocess.Popen[bytes]]], kind: Kind) -> None:
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
            goes_on = kind.goes_on(run)
            if not goes_on:
                remove_run(run.folder)
            what = "goes on with it" if goes_on else "runs it again"
            say(f"stopped {run.name}: the same command {what}")


def _goes_on(run: Run) -> bool:
    """Tell whether a run's folder holds checkpoints that its command goes on from."""
    found = [one.manifest for one in saved_checkpoints(run.folder)]
    return any(one.get("key") == run.key or is_of(one, run.settings) for one in found)


#: Runs of ``fit``.
FIT = Kind(is_finished, _goes_on)


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def say(line: str) -> None:
    """Print a line at once: a log file is read while the runs go on."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
