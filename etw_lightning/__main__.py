"""``python -m etw_lightning``."""

import os
import sys

# A thread that waits for work must not spin: next to another job on the same cores, spinning
# makes a step of a small model a hundred times slower. Read when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from etw_lightning.runs.preemption import StopSignals

if sys.argv[1:2] == ["fit"]:
    # A scheduler's signal must not find Python's own way to end, which no job script goes on from.
    StopSignals().install()

from etw_lightning.commands.cli import main

sys.exit(main())
