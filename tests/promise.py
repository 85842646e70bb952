"""What a run has of its forget rows before the first step and after the last one."""

from typing import ClassVar

import torch
from lightning.pytorch import Callback

from etw_lightning.data.pairing import StepRows
from etw_lightning.training.training_batches import PairedRows
from etw_lightning.weighting import Uniform


class Promise(Callback):
    """Measures the forget term and the answers' log-probability over all forget rows at once."""

    measured: ClassVar[list] = []

    def on_train_start(self, trainer, pl_module):
        self.measure(pl_module)

    def on_train_end(self, trainer, pl_module):
        self.measure(pl_module)

    @torch.no_grad()
    def measure(self, module):
        data = module.datamodule
        loader = data.train_dataloader()
        rows = loader.dataset
        assert isinstance(rows, PairedRows)
        forget = tuple(range(len(data.streams["forget"])))
        retain = (0,) if "retain" in data.streams else ()
        batch = rows[StepRows(forget, retain, forget, retain)]
        module.eval()
        signals = module(batch)["forget"]
        share = module.method.forget_share(signals, batch["counts"], module.reduction)
        module.train()
        self.measured.append(
            {
                "term": share.value.item(),
                "forget_logp": signals.logps.mean().item(),
                "is_weighted": not isinstance(module.method.weighting, Uniform),
            }
        )
