"""A scorer of importances learns the same over processes as in one, and all hold the same one."""

import os

import pytest
import torch
from lightning.pytorch import Callback
from toy import ExactModule, forked_ddp, jsonl_data, make_trainer, write_questions

from etw_lightning.weighting import ATWU

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")


class Learnt(Callback):
    """Writes down what each process has learnt."""

    def __init__(self, folder):
        self.folder = folder

    def on_fit_end(self, trainer, pl_module):
        torch.save(pl_module.importance.state(), self.folder / f"{trainer.global_rank}.pt")


def test_two_processes_learn_what_one_does(tmp_path, tiny_model_dir):
    torch.set_num_threads(1)
    lengths = [1 + 7 * number % 40 for number in range(16)]
    root = write_questions(tmp_path, forget=lengths, retain=lengths)
    found = {}
    for devices, batch_size in ((1, 8), (2, 4)):
        folder = tmp_path / str(devices)
        folder.mkdir()
        weighting = ATWU(every=1, rate=0.5, ridge=0.01)
        module = ExactModule(str(tiny_model_dir), weighting=weighting, lr=1e-3)
        strategy = forked_ddp() if devices > 1 else "auto"
        trainer = make_trainer(Learnt(folder), devices=devices, strategy=strategy, max_epochs=2)
        trainer.fit(module, datamodule=jsonl_data(root, batch_size=batch_size))
        found[devices] = [torch.load(folder / f"{rank}.pt") for rank in range(devices)]
    (one,), (first, second) = found[1], found[2]
    assert one["steps"] == first["steps"] == second["steps"] == 4
    assert one["weights"][0].norm() > 0
    for alone, here, there in zip(one["weights"], first["weights"], second["weights"], strict=True):
        assert torch.equal(here, there)
        torch.testing.assert_close(here, alone, rtol=1e-4, atol=1e-6)
