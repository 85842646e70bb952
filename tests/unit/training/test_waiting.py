"""A training step never waits for the device but once, for the guard to look before the step."""

from collections import Counter

import pytest
import torch
from lightning.pytorch import Callback
from torch.utils._python_dispatch import TorchDispatchMode
from toy import jsonl_data, make_trainer, text, write_rows

from etw_lightning.benchmarks.tofu import Columns
from etw_lightning.callbacks.collapse import Collapse
from etw_lightning.callbacks.guards import FiniteGuard
from etw_lightning.forget import DPO, GA, NPO
from etw_lightning.training.module import UnlearningModule
from etw_lightning.weighting import ETW, Uniform

#: What a GPU must have finished before it can answer: numbers, and sizes that hang on values.
WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "_unique2"}
#: Of a tensor in memory these reach no dispatcher.
READING = ("tolist", "numpy", "cpu")


class Waits(TorchDispatchMode):
    """Counts what waits for the device."""

    def __init__(self):
        super().__init__()
        self.found = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        by_mask = name.startswith("index") and any(
            isinstance(one, torch.Tensor) and one.dtype in (torch.bool, torch.uint8)
            for part in args
            if isinstance(part, list | tuple)
            for one in part
        )
        if name in WAITING or by_mask:
            self.found["index by a mask" if by_mask else name] += 1
        return func(*args, **(kwargs or {}))


class Count(Callback):
    """Counts from a batch to the end of its step; the last of all callbacks."""

    def __init__(self, monkeypatch):
        self.steps, self.monkeypatch, self.mode = [], monkeypatch, None

    def on_train_batch_start(self, *args):
        self.mode = Waits()
        for name in READING:
            self.monkeypatch.setattr(torch.Tensor, name, self.reading(name))
        self.mode.__enter__()

    def reading(self, name):
        original, found = getattr(torch.Tensor, name), self.mode.found

        def read(*args, **kwargs):
            found[name] += 1
            return original(*args, **kwargs)

        return read

    def on_train_batch_end(self, *args):
        self.mode.__exit__(None, None, None)
        self.monkeypatch.undo()
        self.steps.append(dict(self.mode.found))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    for name in ("forget", "retain"):
        rows = [
            {
                "question": f"What of {name} {number}?",
                "answer": text(number, 1 + 3 * number % 8),
                "alternative_answer": f"I do not know {text(number, 2)}.",
            }
            for number in range(8)
        ]
        write_rows(folder / f"{name}.jsonl", rows)
    return folder


CASES = {
    "etw": {"weighting": ETW(), "forget": GA()},
    "graddiff": {"weighting": Uniform(), "forget": GA()},
    "npo": {"weighting": Uniform(), "forget": NPO()},
    "dpo": {"weighting": Uniform(), "forget": DPO()},
    "whole rows": {"weighting": ETW(), "forget": GA(), "share_beginnings": False},
    "one stream": {"forget": None},
}


@pytest.mark.parametrize("case", CASES)
def test_a_step_waits_once_for_the_guard(case, root, tiny_model_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("ETW_CACHE", str(tmp_path))
    settings = dict(CASES[case])
    module = UnlearningModule(str(tiny_model_dir), lr=1e-3, **settings)
    data = jsonl_data(root, batch_size=2, columns=Columns())
    with pytest.MonkeyPatch.context() as patches:
        count = Count(patches)
        callbacks = (FiniteGuard(), Collapse(action="warn"), count)
        trainer = make_trainer(
            *callbacks, gradient_clip_val=1.0, accumulate_grad_batches=2, log_every_n_steps=50
        )
        trainer.fit(module, datamodule=data)
    assert len(count.steps) == 4
    # In the first step the model is tried, and what the parts return is looked at.
    library = {"_local_scalar_dense": 2} if case == "whole rows" else {}
    assert count.steps[2] == library, "the library asks whether a padded row is padded"
    assert count.steps[3] == {"_local_scalar_dense": 1 + sum(library.values())}


def test_what_waits_is_seen():
    values = torch.arange(4.0)
    with Waits() as waits:
        _ = values[values > 1]
        values[values > 1] = 0.0
        bool(values.any())
        values.nonzero()
    assert waits.found["index by a mask"] == 2
    assert waits.found["_local_scalar_dense"] == 1
    assert waits.found["nonzero"] >= 1
