"""Gradients are clipped once a step, by the norm of the whole effective batch's gradient."""

import os

import pytest
import torch
from lightning.pytorch import Callback
from toy import ExactModule, forked_ddp, jsonl_data, make_trainer, write_questions

#: Processes, rows of a micro-batch, micro-batches of a step: eight rows a step each time.
SPLITS = {
    "accumulated": (1, 4, 2),
    "two processes": (2, 4, 1),
    "both": (2, 2, 2),
}

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")


class Clipped(Callback):
    """Writes down the gradients of each step before they are clipped and after."""

    def __init__(self, path):
        self.path, self.before, self.after = path, [], []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.before.append(_gradient(pl_module))

    def on_train_batch_end(self, trainer, pl_module, *args):
        if trainer.global_step > len(self.after):
            self.after.append(_gradient(pl_module))

    def on_fit_end(self, trainer, pl_module):
        if trainer.is_global_zero:
            torch.save((self.before, self.after), self.path)


def _gradient(module):
    return torch.cat([weight.grad.flatten() for weight in module.scorer.parameters()])


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Rows so different in length that the parts of a batch have very different gradients."""
    lengths = [1 + 7 * number % 40 for number in range(16)]
    return write_questions(tmp_path_factory.mktemp("rows"), forget=lengths, retain=lengths)


@pytest.fixture(scope="module")
def fit(root, tiny_model_dir, tmp_path_factory):
    """Train two steps with weights that stay put; return the gradients before and after."""
    torch.set_num_threads(1)
    path = tmp_path_factory.mktemp("clipping") / "clipped.pt"

    def run(clip, devices=1, batch_size=8, accumulate=1):
        module = ExactModule(
            str(tiny_model_dir), lr=1e-15, weight_decay=0.0, share_beginnings=False
        )
        data = jsonl_data(
            root,
            batch_size=batch_size,
        )
        forked = forked_ddp()
        trainer = make_trainer(
            Clipped(path),
            devices=devices,
            strategy=forked if devices > 1 else "auto",
            accumulate_grad_batches=accumulate,
            gradient_clip_val=clip,
        )
        trainer.fit(module, datamodule=data)
        return torch.load(path)

    return run


@pytest.fixture(scope="module")
def whole(fit):
    """The gradients of whole batches, before and after."""
    return fit(clip=0.5)


@pytest.mark.parametrize("split", SPLITS)
def test_every_split_clips_the_gradient_of_the_whole_batch(fit, whole, split):
    before, expected = whole
    assert len(expected) == 2
    for gradient, clipped in zip(before, expected, strict=True):
        assert gradient.norm() > 1
        assert clipped.norm().item() == pytest.approx(0.5, rel=1e-5)
    _, found = fit(0.5, *SPLITS[split])
    for one, other in zip(expected, found, strict=True):
        assert (one - other).abs().max() <= 1e-10 * one.abs().max()


def test_a_gradient_within_the_bound_is_left_alone(fit):
    before, after = fit(clip=1e3)
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
