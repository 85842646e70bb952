"""``python -m etw_lightning``."""

import os
import sys

# A thread that waits for work must not spin: next to another job on the same cores, spinning
# makes a step of a small model a hundred times slower. Read when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from etw_lightning.cli import main

sys.exit(main())
