"""Steps with surgery, and lambda counted in gradients: worked out from plain steps' gradients."""

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from toy import ExactModule, jsonl_data, make_trainer, text, write_rows

from etw_lightning.schema import InputError
from etw_lightning.training.module import UnlearningModule

LAMBDA = 0.5


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    for name, count in (("forget", 8), ("retain", 8)):
        rows = [
            {"question": f"What of {name} {n}?", "answer": text(n, 1 + 3 * n % 8)}
            for n in range(count)
        ]
        write_rows(folder / f"{name}.jsonl", rows)
    return folder


class Gradients(Callback):
    """Keeps each step's gradient, as one vector."""

    def __init__(self):
        self.steps = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        parts = [weight.grad.flatten() for weight in pl_module.scorer.parameters()]
        self.steps.append(torch.cat(parts))


@pytest.fixture(scope="module")
def fit(root, tiny_model_dir):
    """Trains two steps an epoch of four rows each; returns the module and its gradients."""

    def run(*callbacks, kind=ExactModule, trainer=None, resumes=None, **settings):
        # Weights stay put: all steps are those of the same model.
        given = {"lr": 1e-15, "weight_decay": 0.0, "schedule": "constant"}
        module = kind(str(tiny_model_dir), **{**given, "forget_weight": LAMBDA, **settings})
        seen = Gradients()
        made = make_trainer(seen, *callbacks, **(trainer or {}))
        data = jsonl_data(root, batch_size=4)
        made.fit(module, datamodule=data, ckpt_path=resumes)
        return module, seen.steps

    return run


@pytest.fixture(scope="module")
def terms(fit):
    """Each step's gradient of the forget and of the retain term."""
    (_, small), (_, large) = fit(forget_weight=1.0), fit(forget_weight=2.0)
    return [(two - one, 2 * one - two) for one, two in zip(small, large, strict=True)]


def assert_close(found, expected):
    """Norms are computed in float32 in any model."""
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6 * float(other.abs().max()))


def test_a_step_is_the_retain_term_and_what_of_the_forget_term_is_at_right_angles(fit, terms):
    for rule in ("conflict", "orthogonal"):
        expected = []
        for forget, retain in terms:
            share = forget @ retain / (retain @ retain)
            share = min(share, 0) if rule == "conflict" else share
            expected.append(retain + LAMBDA * (forget - share * retain))
        _, steps = fit(surgery=rule)
        assert_close(steps, expected)


def test_lambda_counts_the_ratio_of_the_mean_gradients(fit, terms):
    lengths = [[float(one.norm()) for one in step] for step in terms]
    factor = sum(retain for _, retain in lengths) / sum(forget for forget, _ in lengths)
    module, steps = fit(forget_unit="gradient")
    assert module.forget_scale.factor == pytest.approx(factor, rel=1e-6)
    assert module.forget_scale.steps == 2
    assert_close(steps, [retain + LAMBDA * factor * forget for forget, retain in terms])
    # At lambda 1 both terms pull alike, however the objective counts.
    pull = module.forget_scale.factor * sum(forget for forget, _ in lengths)
    assert pull == pytest.approx(sum(retain for _, retain in lengths))


def test_a_run_that_goes_on_ends_as_one_that_was_never_broken_off(fit, tmp_path):
    settings = {
        "kind": UnlearningModule,
        "lr": 1e-2,
        "surgery": "orthogonal",
        "surgery_average": 0.5,
        "surgery_geometry": "adam",
        "forget_unit": "gradient",
    }
    whole, _ = fit(trainer={"max_epochs": 2}, **settings)
    saving = ModelCheckpoint(tmp_path, filename="half")
    fit(saving, **settings)
    resumed, steps = fit(trainer={"max_epochs": 2}, resumes=tmp_path / "half.ckpt", **settings)
    assert len(steps) == 2
    assert resumed.forget_scale == whole.forget_scale
    for one, other in zip(whole.scorer.parameters(), resumed.scorer.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("settings", "trainer", "said"),
    [
        ({"retain": None}, {}, "but model.retain is null; give both"),
        ({"forget": None}, {}, "but model.forget is null; give both"),
        ({"dtype": "float16"}, {"precision": "16-true"}, "trainer.precision 16-true"),
    ],
)
@pytest.mark.parametrize(
    ("asks", "key"),
    [({"surgery": "conflict"}, "model.surgery"), ({"forget_unit": "gradient"}, "forget_unit")],
)
def test_two_gradients_are_refused_where_there_are_none(fit, settings, trainer, said, asks, key):
    with pytest.raises(InputError) as caught:
        fit(kind=UnlearningModule, trainer=trainer, **settings, **asks)
    assert key in str(caught.value)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"surgery_average": 0.2}, "surgery_average is 0.2, but model.surgery is null"),
        ({"surgery_geometry": "adam"}, "surgery_geometry is adam, but model.surgery is null"),
        (
            {"surgery": "conflict", "surgery_geometry": "adam", "optimizer": "torch.optim.SGD"},
            "model.optimizer must be torch.optim.AdamW or torch.optim.Adam; got torch.optim.SGD",
        ),
    ],
)
def test_what_surgery_is_told_must_fit(settings, said):
    with pytest.raises(InputError, match=said):
        UnlearningModule("nothing", **settings)
