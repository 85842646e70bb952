"""A callback that makes an evaluation last, and tells that it runs."""

import time
from pathlib import Path

from lightning.pytorch.callbacks import Callback

__all__ = ["SlowScoring"]


class SlowScoring(Callback):
    """Touches a file as soon as a batch is scored, and waits after each.

    Args:
        mark: The file.
        seconds: Of waiting.
    """

    def __init__(self, mark: str, seconds: float = 0.5):
        self.mark, self.seconds = Path(mark), seconds

    def on_validation_batch_end(self, trainer, *args):
        if not trainer.sanity_checking:
            self.mark.touch()
            time.sleep(self.seconds)
