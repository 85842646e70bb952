"""A budget for the retain loss: the dual step, what is measured and when, and what is resumed."""

import math
import os
import warnings

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from toy import ExactModule, forked_ddp, jsonl_data, make_trainer, text, write_rows
from transformers import AutoModelForCausalLM

from etw_lightning.callbacks.retain_budget import RetainBudget
from etw_lightning.models.export import export_model
from etw_lightning.schema import InputError
from etw_lightning.training.datamodule import UnlearningDataModule
from etw_lightning.training.module import UnlearningModule
from etw_lightning.weighting import Uniform


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Eight forget and twelve retain rows of different lengths."""
    folder = tmp_path_factory.mktemp("rows")
    for name, count in (("forget", 8), ("retain", 12)):
        rows = [
            {
                "question": f"What of {name} {number}?",
                "answer": f"{name} {text(number, 2 + 3 * number % 8)}",
            }
            for number in range(count)
        ]
        write_rows(folder / f"{name}.jsonl", rows)
    return folder


class Watch(Callback):
    """Keeps the weight each micro-batch is trained with, and what was logged after it."""

    def __init__(self):
        self.weights, self.logged = [], []

    def on_train_batch_start(self, trainer, pl_module, *args):
        self.weights.append(pl_module.forget_weight)

    def on_train_batch_end(self, trainer, *args):
        self.logged.append({name: float(value) for name, value in trainer.callback_metrics.items()})


@pytest.fixture
def fit(root, tiny_model_dir):
    """Trains; returns the module and what was watched."""

    def run(*callbacks, model=None, batch_size=4, kind=UnlearningModule, ckpt=None, **settings):
        trainer = settings.pop("trainer", {})
        module = kind(
            str(model or tiny_model_dir),
            **{"lr": 1e-3, "weighting": Uniform(), "weight_decay": 0.0, **settings},
        )
        data = jsonl_data(
            root,
            batch_size=batch_size,
            eval_batch_size=5,
        )
        watch = Watch()
        own = make_trainer(*callbacks, watch, **trainer)
        own.fit(module, datamodule=data, ckpt_path=ckpt, weights_only=True if ckpt else None)
        return module, watch, data

    return run


def plain_loss(folder, rows):
    """Mean negative log-likelihood of all labels, row by row, by the library's own model."""
    model = AutoModelForCausalLM.from_pretrained(folder).double().eval()
    total, tokens = 0.0, 0
    for row in rows:
        with torch.no_grad():
            logits = model(torch.tensor([row.input_ids])).logits[0]
        for place, label in enumerate(row.labels):
            if label >= 0 and place:
                total -= logits[place - 1].log_softmax(-1)[label].item()
                tokens += 1
    return total / tokens


# The dual step.


def test_dual_step_by_hand():
    budget = RetainBudget(0.05, update=0.03, penalty=0.25, lookahead=8.0)
    budget.begin(loss=2.0, weight=0.2)
    # 2 % after 4 steps is half a point a step: 2 + 8 * 0.5 - 5 = 1 point too much ahead.
    assert budget.step(2.04, 4) == pytest.approx(0.2 * math.exp(-(4 * 0.03 + 0.25)), rel=1e-12)
    # 10 %, 2 points a step: 10 + 16 - 5 = 21 points, of which 3 count.
    assert budget.step(2.20, 8) == pytest.approx(
        0.2 * math.exp(-(4 * 0.03 + 4 * 0.03 * 3 + 0.25 * 3)), rel=1e-12
    )
    # At rest on the budget the penalty is gone and the dual variable stays.
    budget.rise = 5.0
    assert budget.step(2.10, 9) == pytest.approx(0.2 * math.exp(-0.48), rel=1e-12)
    # A point too little counts half in the dual variable, whole in the penalty.
    budget.rise = 4.0
    assert budget.step(2.08, 11) == pytest.approx(
        0.2 * math.exp(-(0.48 - 2 * 0.03 / 2 - 0.25)), rel=1e-12
    )


@pytest.mark.parametrize(
    ("ramp", "progress", "target"), [(0.6, 0.3, 2.5), (0.6, 0.9, 5.0), (1.0, 0.9, 4.5), (0, 0, 5.0)]
)
def test_budget_is_approached_on_a_line(ramp, progress, target):
    budget = RetainBudget(0.05, update=0.03, penalty=0.0, lookahead=0.0, ramp=ramp)
    budget.begin(loss=2.0, weight=0.2)
    loss = 2.0 * (1 + (target + 1) / 100)
    assert budget.step(loss, 4, progress) == pytest.approx(0.2 * math.exp(-0.12), rel=1e-9)


@pytest.mark.parametrize(("lr_factor", "gain"), [(1.0, 1.0), (0.5, 2.0), (0.1, 4.0), (0.0, 4.0)])
def test_penalty_grows_as_the_learning_rate_falls(lr_factor, gain):
    budget = RetainBudget(0.05, update=1e-12, penalty=0.25, lookahead=0.0)
    budget.begin(loss=2.0, weight=0.2)
    weight = budget.step(2.12, 4, lr_factor=lr_factor)
    assert weight == pytest.approx(0.2 * math.exp(-0.25 * gain), rel=1e-9)


def test_weight_stays_in_bounds_and_comes_back():
    for loss, factor in ((9.0, 0.01), (0.5, 6.0)):
        budget = RetainBudget(0.05, max_factor=6.0)
        budget.begin(loss=1.0, weight=0.2)
        for step in range(1, 400):
            weight = budget.step(loss, step)
        assert weight == pytest.approx(0.2 * factor)
    # What was beyond the bound is not remembered.
    weights = [budget.step(1.5, step) for step in range(400, 420)]
    assert weights[-1] < 0.2


# What is measured, and when.


def test_start_is_the_target_models_plain_loss(fit, root, tiny_model_dir):
    budget = RetainBudget(0.05)
    *_, data = fit(budget, kind=ExactModule)
    rows = data.streams["retain"]
    assert len(rows) == 12
    assert budget.start_loss == pytest.approx(plain_loss(tiny_model_dir, rows), rel=1e-6)
    few = RetainBudget(0.05, num_rows=4)
    fit(few)
    expected = plain_loss(tiny_model_dir, rows[::3])
    assert few.start_loss == pytest.approx(expected, rel=1e-5)
    many = RetainBudget(0.05, num_rows=100)
    fit(many)
    assert many.start_loss == pytest.approx(budget.start_loss, rel=1e-5)


def test_last_measurement_is_of_the_trained_model(fit, tmp_path):
    budget = RetainBudget(0.05, every_n_steps=1)
    module, watch, data = fit(budget, trainer={"max_epochs": 2})
    export_model(module.scorer.lm, data.encoder.tokenizer, tmp_path / "model")
    loss = plain_loss(tmp_path / "model", data.streams["retain"])
    assert watch.logged[-1]["budget/retain_loss"] == pytest.approx(loss, rel=1e-5)
    assert watch.logged[-1]["budget/rise"] == pytest.approx(
        100 * (loss / budget.start_loss - 1), abs=1e-3
    )
    assert watch.logged[-1]["budget/forget_weight"] == pytest.approx(budget.weight)
    assert module.forget_weight == budget.weight != 0.1
    assert module.scorer.training


@pytest.mark.parametrize(("accumulate", "every"), [(1, 1), (2, 1), (2, 2), (1, 3)])
def test_weight_moves_every_n_steps_and_never_in_a_window(fit, accumulate, every):
    trainer = {"max_epochs": 3, "accumulate_grad_batches": accumulate}
    budget = RetainBudget(0.05, every_n_steps=every, max_factor=1e3)
    _, watch, _ = fit(budget, batch_size=2, trainer=trainer)
    assert len(watch.weights) == 12
    for place in range(1, 12):
        is_due = place % (accumulate * every) == 0
        assert (watch.weights[place] != watch.weights[place - 1]) == is_due, place
    assert watch.weights[0] == 0.1


def test_measuring_changes_nothing_but_the_weight(fit):
    class Idle(RetainBudget):
        def step(self, *args):
            super().step(*args)
            self.weight = self.start_weight
            return self.weight

    torch.manual_seed(1)
    plain, *_ = fit()
    state = torch.get_rng_state()
    torch.manual_seed(1)
    measured, *_ = fit(Idle(0.05, every_n_steps=1))
    assert torch.equal(torch.get_rng_state(), state)
    for one, other in zip(plain.parameters(), measured.parameters(), strict=True):
        assert torch.equal(one, other)


# Resume.


@pytest.mark.parametrize("saved_at", [2, 3])
def test_resumed_run_is_bit_equal(fit, tmp_path, saved_at):
    """Saved on a measurement, and between two."""
    settings = {"max_epochs": 4, "accumulate_grad_batches": 2}
    saver = ModelCheckpoint(
        tmp_path, every_n_train_steps=saved_at, save_top_k=-1, filename="{step}"
    )
    whole = RetainBudget(0.05, every_n_steps=2)
    module, watch, _ = fit(whole, saver, batch_size=2, trainer=settings)
    path = tmp_path / f"step={saved_at}.ckpt"
    torch.load(path, weights_only=True)
    rest = RetainBudget(0.05, every_n_steps=2)
    resumed, again, _ = fit(rest, batch_size=2, trainer=settings, ckpt=str(path))
    assert len(again.weights) == len(watch.weights) - 2 * saved_at
    assert again.weights == watch.weights[2 * saved_at :]
    assert rest.state_dict() == whole.state_dict()
    for one, other in zip(module.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


def test_state_is_plain_numbers():
    budget = RetainBudget(0.05)
    budget.begin(loss=2.0, weight=0.2)
    budget.step(2.1, 4)
    state = budget.state_dict()
    assert {type(value) for value in state.values()} <= {int, float}
    other = RetainBudget(0.05)
    other.load_state_dict(state)
    assert other.step(2.3, 8) == budget.step(2.3, 8)


# Several processes.


class Keep(Callback):
    """Writes down what each process trained with."""

    def __init__(self, folder):
        self.folder, self.weights = folder, []

    def on_train_batch_start(self, trainer, pl_module, *args):
        self.weights.append(pl_module.forget_weight)

    def on_fit_end(self, trainer, pl_module):
        torch.save(self.weights, self.folder / f"rank{trainer.global_rank}.pt")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")
@pytest.mark.parametrize("num_rows", [None, 3])
def test_two_processes_share_the_rows_out_and_the_weight(fit, tmp_path, num_rows):
    """Twelve rows are three batches of at most five: one process measures one less; of 3 none."""
    settings = {"kind": ExactModule, "lr": 1e-3}
    found = {}
    for devices in (1, 2):
        folder = tmp_path / str(devices)
        folder.mkdir()
        strategy = forked_ddp()
        fit(
            RetainBudget(0.05, num_rows=num_rows, every_n_steps=1, max_factor=1e3),
            Keep(folder),
            batch_size=4 // devices,
            trainer={
                "max_epochs": 2,
                "devices": devices,
                "strategy": strategy if devices > 1 else "auto",
            },
            **settings,
        )
        found[devices] = [torch.load(folder / f"rank{rank}.pt") for rank in range(devices)]
    assert found[2][0] == found[2][1]
    assert len(set(found[2][0])) == 4
    assert found[2][0] == pytest.approx(found[1][0], rel=1e-6)


# The promise, on a model that knows its rows.


@pytest.fixture(scope="module")
def trained_dir(root, tiny_model_dir, tmp_path_factory):
    """A small model fine-tuned on both sets."""
    folder = tmp_path_factory.mktemp("trained") / "model"
    joined = tmp_path_factory.mktemp("joined")
    lines = [(root / f"{name}.jsonl").read_text() for name in ("forget", "retain")]
    (joined / "both.jsonl").write_text("".join(lines))
    data = UnlearningDataModule("jsonl", root=str(joined), split="both", batch_size=10, seed=0)
    module = UnlearningModule(str(tiny_model_dir), forget=None, lr=3e-3)
    make_trainer(max_epochs=60).fit(module, datamodule=data)
    export_model(module.scorer.lm, data.encoder.tokenizer, folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("percent", [2, 5, 10])
def test_retain_loss_ends_on_the_budget(fit, trained_dir, percent):
    budget = RetainBudget(percent / 100)
    _, watch, _ = fit(
        budget,
        model=trained_dir,
        forget_weight=0.5,
        lr=1e-4,
        schedule="linear",
        trainer={"max_epochs": 60},
    )
    assert watch.logged[-1]["budget/rise"] == pytest.approx(percent, abs=1.0)
    assert len(set(watch.weights)) > 10


def test_weight_at_its_bound_short_of_the_budget_is_said(fit, trained_dir):
    settings = {"model": trained_dir, "trainer": {"max_epochs": 3}, "lr": 1e-6}
    with pytest.warns(UserWarning, match=r"% of the 5 % allowed .* upper bound of 0\.4; start"):
        fit(RetainBudget(0.05, every_n_steps=1), forget_weight=0.1, **settings)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        fit(RetainBudget(0.05, every_n_steps=1, max_factor=1e3), **settings)
    assert not any("RetainBudget" in str(one.message) for one in said)


# Bad input.


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"budget": 0.0}, "RetainBudget.budget must be > 0; got 0.0."),
        ({"budget": math.nan}, "RetainBudget.budget must be > 0; got nan."),
        ({"budget": 0.1, "update": -1.0}, "RetainBudget.update must be > 0; got -1.0."),
        ({"budget": 0.1, "penalty": -1.0}, "RetainBudget.penalty must be >= 0; got -1.0."),
        ({"budget": 0.1, "lookahead": -1.0}, "RetainBudget.lookahead must be >= 0; got -1.0."),
        ({"budget": 0.1, "ramp": 1.5}, "RetainBudget.ramp must be from 0 to 1; got 1.5."),
        ({"budget": 0.1, "max_factor": 0.5}, "RetainBudget.max_factor must be >= 1; got 0.5."),
        ({"budget": 0.1, "num_rows": 0}, "RetainBudget.num_rows must be > 0 or null; got 0."),
        ({"budget": 0.1, "every_n_steps": 0}, "RetainBudget.every_n_steps must be > 0; got 0."),
    ],
)
def test_numbers_out_of_range(settings, message):
    with pytest.raises(InputError) as error:
        RetainBudget(**settings)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("callbacks", "settings", "named"),
    [
        (1, {"forget": None}, "model.forget is null"),
        (1, {"retain": None}, "model.retain is null"),
        (2, {}, "RetainBudget twice"),
    ],
)
def test_run_without_a_term_or_with_two_budgets(fit, callbacks, settings, named):
    class Other(RetainBudget):
        """Has a state key of its own, so that the trainer takes both."""

    with pytest.raises(InputError, match=named) as error:
        fit(*[RetainBudget(0.05), Other(0.05)][:callbacks], **settings)
    assert "\n" not in str(error.value)


def test_broken_model_is_said_at_once(fit):
    with pytest.raises(InputError, match=r"retain loss of (nan|inf) at step 1"):
        fit(RetainBudget(0.05, every_n_steps=1), lr=1e30)
