"""Runs whose weights are learnt: what is scored, when it is learnt, how it goes on."""

from itertools import pairwise

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from toy import jsonl_data, make_trainer, text, write_rows
from transformers import AutoModelForCausalLM

from etw_lightning.models.loading import LabelScorer
from etw_lightning.schema import IGNORE_INDEX
from etw_lightning.training.module import UnlearningModule
from etw_lightning.tuning.importances import ImportanceScorer
from etw_lightning.weighting import ATWU, Random

HOW = ATWU(every=2, rate=0.5, ridge=0.01)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    for name in ("forget", "retain"):
        rows = [
            {"question": f"What of {name} {n}?", "answer": text(n, 1 + 3 * n % 8)} for n in range(8)
        ]
        write_rows(folder / f"{name}.jsonl", rows)
    return folder


class Weights(Callback):
    """Keeps the weights of each micro-batch."""

    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.seen.append(pl_module.last_weights[2].clone())


@pytest.fixture(scope="module")
def fit(root, tiny_model_dir):
    """Trains two steps an epoch of four rows each; returns the module and its weights."""

    def run(*callbacks, trainer=None, resumes=None, batch_size=4, weighting=HOW):
        module = UnlearningModule(str(tiny_model_dir), weighting=weighting, lr=1e-3)
        seen = Weights()
        made = make_trainer(seen, *callbacks, **{"max_epochs": 3, **(trainer or {})})
        made.fit(module, datamodule=jsonl_data(root, batch_size=batch_size), ckpt_path=resumes)
        return module, seen.seen

    return run


def test_scores_are_learnt_at_every_second_step(fit, monkeypatch):
    """All are 1/2 until the second step has been used; the third and fourth see the same scorer."""
    said, plain = [], ImportanceScorer.scores

    def kept(self, signals):
        said.append(([one.clone() for one in self._weights], plain(self, signals)))
        return said[-1][1]

    monkeypatch.setattr(ImportanceScorer, "scores", kept)
    module, seen = fit()
    assert len(said) == len(seen) == 6
    assert all((scores == 0.5).all() for _, scores in said[:2])
    assert all((scores != 0.5).any() for _, scores in said[2:])
    changes = [not torch.equal(one[0], other[0]) for (one, _), (other, _) in pairwise(said[1:])]
    assert changes == [True, False, True, False]
    assert module.importance.state()["steps"] == 3
    assert not any("importance" in name for name in module.state_dict())


def test_a_step_in_parts_learns_the_same(fit):
    whole, _ = fit(trainer={"max_epochs": 1})
    parted, seen = fit(batch_size=2, trainer={"max_epochs": 1, "accumulate_grad_batches": 2})
    assert len(seen) == 4
    pairs = zip(
        whole.importance.state()["weights"], parted.importance.state()["weights"], strict=True
    )
    for one, other in pairs:
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_a_run_that_goes_on_ends_as_one_that_was_never_broken_off(fit, tmp_path):
    """Broken off after the third of six steps, of which the second was learnt from."""
    whole, _ = fit(trainer={"max_epochs": 2})
    saving = ModelCheckpoint(tmp_path, filename="part", every_n_train_steps=3)
    fit(saving, trainer={"max_epochs": 2, "max_steps": -1})
    resumed, seen = fit(trainer={"max_epochs": 2}, resumes=tmp_path / "part.ckpt")
    assert len(seen) == 1
    for one, other in zip(
        [*whole.scorer.parameters(), *whole.importance.state()["weights"]],
        [*resumed.scorer.parameters(), *resumed.importance.state()["weights"]],
        strict=True,
    ):
        assert torch.equal(one, other)


def test_what_is_shuffled_is_learnt_too(fit):
    module, seen = fit(weighting=Random(of=HOW))
    assert module.importance.weighting == HOW
    assert module.importance.state()["steps"] == 3
    assert module.importance.state()["weights"][0].norm() > 0
    assert all((weights >= 0).all() and (weights <= 1).all() for weights in seen)


def test_a_last_step_of_fewer_parts_is_learnt_from(fit):
    """Three micro-batches, two a step: the second step, which is due, has one."""
    module, seen = fit(batch_size=3, trainer={"max_epochs": 1, "accumulate_grad_batches": 2})
    assert len(seen) == 3
    assert module.importance.state()["steps"] == 1


def test_a_module_that_is_fitted_anew_learns_anew(fit, root):
    module, _ = fit(trainer={"max_epochs": 1})
    make_trainer(max_epochs=1).fit(module, datamodule=jsonl_data(root, batch_size=4))
    assert module.importance.state()["steps"] == 1


def test_states_are_those_of_the_library_at_the_labels(tiny_model_dir):
    """Behind the last norm, as ``output_hidden_states`` has them, where the label is the input."""
    lm = AutoModelForCausalLM.from_pretrained(tiny_model_dir).eval()
    ids = torch.tensor([[5, 6, 7, 8, 9], [9, 8, 7, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    labels = ids.masked_fill(mask == 0, IGNORE_INDEX)
    labels[0, :2] = IGNORE_INDEX
    with torch.no_grad():
        signals = LabelScorer(lm)(ids, mask, labels, {"states"}, layers=(-1,))
        last = lm(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states[-1]
    # The second row's first token is labelled, but nothing predicts it.
    expected = torch.cat([last[0, 2:5], last[1, 1:3]])
    torch.testing.assert_close(signals.states.of_labels(-1, signals), expected)
    assert len(signals.states.layers[-1]) == 6
