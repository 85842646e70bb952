"""Signals that ask a run to end: noted when they come, obeyed where the run can go on from."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType

__all__ = [
    "EXIT_STATUS",
    "INTERRUPTED",
    "SIGNALS",
    "Preempted",
    "StopSignals",
    "take_for_termination",
]

#: What ends a run: a scheduler's and the operating system's request, Slurm's before a time limit
#: or a preemption (``--signal=USR1``), and the user's (Ctrl-C).
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
#: What a shell reports of a process that ``SIGTERM`` has ended; the job scripts requeue on it.
EXIT_STATUS = 128 + signal.SIGTERM
#: The same of Ctrl-C, after which nobody requeues.
INTERRUPTED = 128 + signal.SIGINT


class Preempted(SystemExit):
    """The end of a run that was asked to stop.

    Its exit status is ``EXIT_STATUS``; after Ctrl-C ``INTERRUPTED``.

    Args:
        name: The signal; empty if another process got it.
        is_told: Whether the user has been told.
    """

    def __init__(self, name: str = "", *, is_told: bool = False) -> None:
        super().__init__(INTERRUPTED if name == signal.SIGINT.name else EXIT_STATUS)
        self.name, self.is_told = name, is_told


class StopSignals:
    """Notes signals while a run is busy; at other times they end it at once.

    A handler may run between any two instructions, so it saves nothing.
    """

    def __init__(self) -> None:
        #: Name of the first signal that came; empty if none has.
        self.received = ""
        #: Whether the run looks at ``received`` itself and ends at the next good place.
        self.is_watched = False

    def install(self) -> None:
        """Handle the signals; again after a library may have put its own handlers there."""
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                signal.signal(number, self._note)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.received == signal.SIGINT.name:
            raise KeyboardInterrupt  # who asks again does not want to wait
        self.received = self.received or signal.Signals(number).name
        if not self.is_watched:
            raise Preempted(self.received)


def take_for_termination() -> None:
    """Let ``SIGUSR1``, Slurm's before a time limit, do what ``SIGTERM`` does at that moment.

    For commands without checkpoints, which by itself it would end with a status that no job script
    requeues on.
    """

    def hand_on(_number: int, _frame: FrameType | None) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGUSR1, hand_on)
