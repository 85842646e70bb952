"""``python -m etw_lightning``."""

import sys

from etw_lightning.cli import main

sys.exit(main())
