"""The processes that a run starts beside its own: none is left behind, and all end with one status.

Lightning's own watch ends the first process by ``SIGKILL`` as soon as another has ended, which a
job script can't tell from a crash; and a process whose first one has been killed while it was
starting would wait for it for half an hour.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, cast

from lightning.pytorch import Trainer
from lightning.pytorch.strategies.launchers import subprocess_script

from etw_lightning.runs.preemption import EXIT_STATUS, INTERRUPTED

__all__ = ["end_with_companions", "end_with_first", "start_companions"]

#: Where processes that a run starts find the number of its first one.
_FIRST = "ETW_FIRST_PROCESS"
#: Seconds between two looks, and those that a process has to end by itself.
_PERIOD, _PATIENCE = 0.2, 5.0


def start_companions(trainer: Trainer) -> None:
    """Have the processes that the trainer will start watched, and watch this one."""
    launcher = trainer.strategy.launcher
    if (
        isinstance(launcher, subprocess_script._SubprocessScriptLauncher)
        and not launcher.cluster_environment.creates_processes_externally
    ):
        os.environ[_FIRST] = str(os.getpid())
        cast(Any, subprocess_script)._launch_process_observer = end_with_companions


def end_with_companions(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """End this process and all others once one of them has failed, or was asked to stop.

    The exit status is ``EXIT_STATUS`` or ``INTERRUPTED`` if any was asked to stop, else 1.

    Args:
        processes: Those that this one has started.
    """
    _start(lambda: _watch_companions(processes))


def end_with_first() -> None:
    """End this process with the first of its run, if that has started it; at once if it is gone."""
    if _FIRST in os.environ and os.environ.get("LOCAL_RANK", "0") != "0":
        first = int(os.environ[_FIRST])
        _start(lambda: _watch_first(first))


def _start(watch: Callable[[], None]) -> None:
    # What waits for another process in compiled code runs no signal handler, but leaves threads be.
    threading.Thread(target=watch, daemon=True).start()


def _watch_companions(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    while not any(one.poll() for one in processes):
        if all(one.returncode == 0 for one in processes):
            return
        time.sleep(_PERIOD)
    # The first process is about to end by itself, unless it waits for one that is gone.
    time.sleep(_PATIENCE)
    codes = [one.poll() for one in processes]
    for one in processes:
        one.kill()
    number, code = next((n, code) for n, code in enumerate(codes, 1) if code)
    is_stop = EXIT_STATUS in codes or INTERRUPTED in codes
    reason = "was asked to stop" if is_stop else f"has ended with status {code}"
    sys.stdout.flush()
    sys.stderr.write(
        f"error: process {number} {reason}, so all end; the same command goes on from the newest "
        "checkpoint, if there is one\n"
    )
    sys.stderr.flush()
    status = INTERRUPTED if INTERRUPTED in codes else EXIT_STATUS
    os._exit(status if is_stop else 1)


def _watch_first(first: int) -> None:
    while os.getppid() == first:
        time.sleep(_PERIOD)
    os._exit(1)
