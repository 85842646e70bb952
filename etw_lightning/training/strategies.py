"""What a trainer's strategy means for the model: whole on each process, or in shards over them."""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.accelerators import CUDAAccelerator
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_only

from etw_lightning.models.label_scorer import LabelScorer
from etw_lightning.schema import InputError

__all__ = [
    "Layout",
    "check_layout",
    "computing_precision",
    "engine_dtype",
    "is_first_process",
    "layout_of",
    "make_ready",
    "place_whole",
    "settle_shards",
    "steps_by_count",
]

#: The whole model on each process, or shards of it: PyTorch's FSDP2, DeepSpeed's ZeRO stage 3.
Layout = Literal["whole", "fsdp2", "zero3"]


def layout_of(trainer: Trainer | None) -> Layout:
    """Return how a trainer lays its model out; without a trainer it is whole."""
    strategy = None if trainer is None else trainer.strategy
    if isinstance(strategy, ModelParallelStrategy):
        return "fsdp2"
    if isinstance(strategy, DeepSpeedStrategy) and strategy.zero_stage_3:
        return "zero3"
    return "whole"


def check_layout(trainer: Trainer, *, has_adapter: bool) -> None:
    """Refuse what can't be had under a strategy, before anything is loaded.

    Args:
        trainer: Names the strategy.
        has_adapter: Whether ``model.peft`` is given.

    Raises:
        InputError: If the strategy is not supported, needs a GPU that is not there, or can't train
            an adapter.
    """
    strategy = trainer.strategy
    name = type(strategy).__name__
    if isinstance(strategy, FSDPStrategy):
        raise InputError(
            f"trainer.strategy must be a strategy of ours; got {name}: give --config "
            "strategy/fsdp, which shards with FSDP2."
        )
    # Only a subclass for tests does without CUDA.
    is_plain = type(strategy).setup_environment is DeepSpeedStrategy.setup_environment
    if is_plain and not isinstance(trainer.accelerator, CUDAAccelerator):
        raise InputError(
            f"trainer.strategy {name} runs on CUDA devices only, of which none is used here; give "
            "--config strategy/fsdp or strategy/ddp."
        )
    if has_adapter and layout_of(trainer) != "whole":
        raise InputError(
            f"model.peft must be null with trainer.strategy {name}: an adapter is not trained in "
            "shards; give --config strategy/ddp or strategy/deepspeed_zero2 instead."
        )


def make_ready(trainer: Trainer) -> None:
    """Settle what a strategy would else find out in a way that does not fit; before it sets up."""
    strategy = trainer.strategy
    if isinstance(strategy, DeepSpeedStrategy):
        # Only said in logs; to find it out, the training loader would be made too early.
        assert isinstance(strategy.config, dict)
        strategy.config.setdefault("train_micro_batch_size_per_gpu", 1)
    if layout_of(trainer) != "whole" or _casts(trainer):
        # Shards gathered in inference mode could not be trained with afterwards, and autocast
        # casts a weight anew at each product there.
        for loop in (trainer.validate_loop, trainer.fit_loop.epoch_loop.val_loop):
            loop.inference_mode = False


def _casts(trainer: Trainer) -> bool:
    """Tell whether wide weights are cast in each operation."""
    kind = trainer.strategy.root_device.type
    with trainer.precision_plugin.forward_context():
        return torch.is_autocast_enabled(kind)


def settle_shards(trainer: Trainer) -> None:
    """Bring all weights back to their shards, those too that are on their way to be whole.

    ZeRO-3 gathers ahead of what is run, and FSDP2 leaves the root's weights whole after a pass
    that no backward pass follows.
    """
    if layout_of(trainer) == "zero3":
        cast(Any, trainer.strategy.model).empty_partition_cache()
    elif layout_of(trainer) == "fsdp2":
        for module in cast(torch.nn.Module, trainer.strategy.model).modules():
            if hasattr(module, "reshard"):
                cast(Any, module).reshard()


def engine_dtype(trainer: Trainer) -> torch.dtype | None:
    """Return the 16-bit type that DeepSpeed casts the whole model to; None for no cast.

    Under other strategies mixed precision casts in each operation, and the weights stay wide.
    """
    if not isinstance(trainer.strategy, DeepSpeedStrategy):
        return None
    kinds = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
    return kinds.get(str(trainer.precision))


def computing_precision(trainer: Trainer) -> str:
    """Return the trainer's precision as numbers come out of it, for keys of what is kept.

    DeepSpeed's mixed precision computes as true 16-bit precision does; the wide weights are its
    optimiser's.
    """
    precision = str(trainer.precision)
    return precision if engine_dtype(trainer) is None else precision.replace("mixed", "true")


def place_whole(trainer: Trainer, scorer: LabelScorer) -> LabelScorer:
    """Put a whole model where the run's own computes, in the precision it computes in."""
    module = cast(Any, trainer.precision_plugin.convert_module(scorer))
    moved = module.to(trainer.strategy.root_device)
    dtype = engine_dtype(trainer)
    return cast(LabelScorer, moved if dtype is None else moved.to(dtype))


def steps_by_count(trainer: Trainer | None) -> bool:
    """Tell whether the optimiser steps at each n-th micro-batch, be it the last of an epoch or not.

    DeepSpeed counts by itself: an epoch must then be whole steps.
    """
    return trainer is not None and isinstance(trainer.strategy, DeepSpeedStrategy)


def is_first_process() -> bool:
    """Tell whether this is the process that loads and writes, before the trainer knows."""
    return bool(cast(Any, rank_zero_only).rank == 0)
