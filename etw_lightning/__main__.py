"""``python -m etw_lightning``."""

import sys

from etw_lightning.commands.entry import main

sys.exit(main())
