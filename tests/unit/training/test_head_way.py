"""Which way a run's logits go: as it is asked for, alike in its references, kept on resuming."""

import pytest
import torch
from toy import jsonl_data, make_trainer, text, write_rows

from etw_lightning.benchmarks.tofu import Columns
from etw_lightning.forget import NPO
from etw_lightning.kernels import fused_rows
from etw_lightning.models import label_scorer
from etw_lightning.schema import InputError
from etw_lightning.training import prepared_module
from etw_lightning.training.module import UnlearningModule


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    for name in ("forget", "retain"):
        rows = [{"question": f"What of {name} {n}?", "answer": text(n, 3)} for n in range(4)]
        write_rows(folder / f"{name}.jsonl", rows)
    return folder


@pytest.fixture
def ways(monkeypatch):
    """Which way each call of the head was to go; the plain one is gone, which needs no Triton."""
    found, original = [], label_scorer.linear_scores

    def scores(*given, fused=False, **settings):
        found.append(fused)
        return original(*given, **settings)

    monkeypatch.setattr(label_scorer, "linear_scores", scores)
    monkeypatch.setattr(fused_rows, "missing", lambda device: "")
    return found


@pytest.fixture
def run(root, tiny_model_dir):
    """Trains a module for some epochs of a step."""

    def fit(epochs, checkpoint=None, **settings):
        data = jsonl_data(root, batch_size=4, columns=Columns())
        module = UnlearningModule(str(tiny_model_dir), lr=1e-3, **settings)
        trainer = make_trainer(max_epochs=epochs)
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=False)
        return module, trainer

    return fit


def measured(monkeypatch, way):
    """Have the faster way be found; return what was measured."""
    calls = []

    def faster(*given):
        calls.append(given)
        return way

    monkeypatch.setattr(prepared_module, "faster_way", faster)
    return calls


@pytest.mark.parametrize(("kernel", "fused"), [("plain", False), ("triton", True)])
def test_all_of_a_step_goes_the_way_that_is_asked_for(run, ways, monkeypatch, kernel, fused):
    calls = measured(monkeypatch, "triton")
    run(1, head_kernel=kernel, forget=NPO(), reference="live")
    assert ways == [fused] * 2
    assert not calls


def test_the_fastest_is_measured_once_and_kept_by_checkpoints(run, ways, monkeypatch, tmp_path):
    calls = measured(monkeypatch, "triton")
    module, trainer = run(1, head_kernel="fastest", chunk_size=7)
    vocabulary = module.scorer.lm.config.vocab_size
    assert calls == [(7, vocabulary, torch.float32, torch.device("cpu"))]
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    calls = measured(monkeypatch, "plain")
    run(2, tmp_path / "one.ckpt", head_kernel="fastest")
    assert not calls
    assert ways == [True, True]
    # What is asked for outright is not the checkpoint's to say.
    run(2, tmp_path / "one.ckpt", head_kernel="plain")
    assert ways == [True, True, False]
    monkeypatch.setattr(fused_rows, "missing", lambda device: "the device is cpu, not cuda")
    with pytest.raises(InputError, match="is triton in the checkpoint, but the device is cpu"):
        run(2, tmp_path / "one.ckpt", head_kernel="fastest")


def test_a_way_that_is_not_there_is_refused_before_the_model_is_read(monkeypatch):
    monkeypatch.setattr(fused_rows, "missing", lambda device: "it is not there")
    module = UnlearningModule("nowhere", head_kernel="triton")
    with pytest.raises(InputError, match=r"^model\.head_kernel is triton, but it is not there;"):
        module.load_ahead(make_trainer())


def test_evaluations_are_plain(run, ways, monkeypatch):
    """Their numbers are kept under keys that say nothing of kernels."""
    module, _ = run(1, head_kernel="triton")
    ways.clear()
    hidden = torch.zeros(2, module.scorer.head.weight.shape[1])
    module.scorer._score_at(hidden, torch.tensor([1, 2]), torch.tensor([False, True]))
    assert ways == [False]
