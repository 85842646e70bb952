"""Where the quickstart's first run spends its time before its second could begin.

    python tests/benchmarks/first_run.py

trains the target and the retain model on one thread for a few of their twelve passes; its last line
is JSON, CPU seconds: ``start`` (corpus, tokenizer, random weights), ``pass`` (the middle of the
passes of each model), ``models`` (what that makes of all passes of both). ``percent`` is of one
pass more, under PyTorch's profiler: the operators that take most by themselves.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.profiler import profile

from etw_lightning.training import quickstart_models
from etw_lightning.training.quickstart_models import Recipe

#: Passes that are timed; the first of them finds out what is found out once.
_TIMED = 2


class Passes(Callback):
    """Times passes, and profiles the last one."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.percent: dict[str, float] = {}
        self.steps = 0
        self._watch = profile()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin."""
        self._start = time.process_time()
        if trainer.current_epoch == _TIMED:
            self._watch.__enter__()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note what a pass took."""
        if trainer.current_epoch < _TIMED:
            self.seconds.append(time.process_time() - self._start)
            self.steps = trainer.global_step // (trainer.current_epoch + 1)
            return
        self._watch.__exit__(None, None, None)
        events = self._watch.key_averages()
        whole = sum(one.self_cpu_time_total for one in events)
        most = sorted(events, key=lambda one: -one.self_cpu_time_total)[:12]
        self.percent = {one.key: round(100 * one.self_cpu_time_total / whole, 1) for one in most}


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    said: dict[str, Any] = {"pass": {}, "steps": {}, "percent": {}, "models": 0.0}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        start = time.process_time()
        quickstart_models._save_random_model(folder / "start", Recipe())
        said["start"] = round(time.process_time() - start, 2)
        for role in ("target", "retain"):
            watch = Passes()
            watched = partial(Trainer, callbacks=[watch], enable_progress_bar=False)
            with patch.object(quickstart_models, "Trainer", watched):
                quickstart_models._train(role, folder, Recipe(passes=_TIMED + 1))
            seconds = statistics.median(watch.seconds)
            said["pass"][role], said["steps"][role] = round(seconds, 2), watch.steps
            said["percent"][role] = watch.percent
            said["models"] = round(said["models"] + Recipe().passes * seconds, 1)
    sys.stdout.write(json.dumps({**said, "torch": torch.__version__}) + "\n")


if __name__ == "__main__":
    main()
