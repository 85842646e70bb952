"""What a trainer's strategy means for the model, and what it can't have."""

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, ModelParallelStrategy
from sharded import CPUDeepSpeed
from toy import make_trainer

from etw_lightning.schema import InputError
from etw_lightning.training.strategies import (
    check_layout,
    computing_precision,
    engine_dtype,
    layout_of,
    make_ready,
    steps_by_count,
)


@pytest.fixture(autouse=True)
def _on_a_cpu(monkeypatch):
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    pytest.importorskip("deepspeed")


def trainer_with(strategy, **settings):
    return make_trainer(strategy=strategy, devices=1, **settings)


STRATEGIES = {
    "auto": lambda: "auto",
    "ddp": DDPStrategy,
    "fsdp2": ModelParallelStrategy,
    "zero2": lambda: CPUDeepSpeed(stage=2),
    "zero3": lambda: CPUDeepSpeed(stage=3),
}


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_model_is_whole_or_in_shards(name):
    trainer = trainer_with(STRATEGIES[name]())
    assert layout_of(trainer) == (name if name in ("fsdp2", "zero3") else "whole")
    assert steps_by_count(trainer) == name.startswith("zero")
    check_layout(trainer, has_adapter=False)


def test_without_a_trainer_a_model_is_whole():
    assert layout_of(None) == "whole"
    assert not steps_by_count(None)


@pytest.mark.parametrize("name", STRATEGIES)
def test_an_adapter_is_not_trained_in_shards(name):
    trainer = trainer_with(STRATEGIES[name]())
    if name in ("fsdp2", "zero3"):
        with pytest.raises(InputError, match=r"^model.peft must be null with trainer.strategy .*;"):
            check_layout(trainer, has_adapter=True)
    else:
        check_layout(trainer, has_adapter=True)


def test_deepspeed_needs_cuda():
    trainer = trainer_with(DeepSpeedStrategy(stage=2))
    with pytest.raises(
        InputError, match=r"DeepSpeedStrategy .*on CUDA devices only.*strategy/fsdp or"
    ):
        check_layout(trainer, has_adapter=False)


def test_the_old_fsdp_is_refused_with_the_new_one(monkeypatch):
    from lightning.pytorch.strategies import FSDPStrategy

    trainer = trainer_with("auto")
    monkeypatch.setattr(Trainer, "strategy", property(lambda self: FSDPStrategy()))
    with pytest.raises(InputError, match=r"got FSDPStrategy: give --config strategy/fsdp,"):
        check_layout(trainer, has_adapter=False)


@pytest.mark.parametrize(
    ("name", "precision", "dtype", "computes"),
    [
        ("zero2", "bf16-mixed", torch.bfloat16, "bf16-true"),
        ("zero3", "32-true", None, "32-true"),
        ("fsdp2", "bf16-mixed", None, "bf16-mixed"),
        ("ddp", "bf16-mixed", None, "bf16-mixed"),
    ],
)
def test_only_deepspeed_casts_the_whole_model(name, precision, dtype, computes):
    trainer = trainer_with(STRATEGIES[name](), precision=precision)
    assert engine_dtype(trainer) == dtype
    assert computing_precision(trainer) == computes


@pytest.mark.parametrize(
    ("name", "precision", "infers"),
    [
        ("auto", "32-true", True),
        ("auto", "bf16-true", True),
        ("auto", "bf16-mixed", False),
        ("ddp", "bf16-mixed", False),
        ("fsdp2", "32-true", False),
    ],
)
def test_where_weights_are_cast_evaluations_are_not_in_inference_mode(name, precision, infers):
    trainer = trainer_with(STRATEGIES[name](), precision=precision)
    make_ready(trainer)
    assert trainer.validate_loop.inference_mode == infers
    # Lightning's own way while it trains.
    assert not trainer.fit_loop.epoch_loop.val_loop.inference_mode
