"""``python -m etw_lightning`` and ``etw``: Ctrl-C ends either with one line from the start on."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

__all__ = ["run"]


def run() -> int:
    """Run the command line; return its exit status."""
    # One that is ignored, as in the background of a shell, stays so.
    is_usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if is_usual:
        signal.signal(signal.SIGINT, _end)
    from etw_lightning.commands.entry import main

    if is_usual:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return main()


def _end(_number: int, _frame: FrameType | None) -> None:
    """End at once: what an exception meets in the middle of an import may swallow or show it."""
    os.write(2, b"interrupted; nothing was written\n")
    os._exit(128 + signal.SIGINT)


if __name__ == "__main__":
    sys.exit(run())
