"""What one lambda is worth: how the terms' gradients compare before the first step."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy
from torch import Tensor

from etw_lightning.schema import InputError
from etw_lightning.training.strategies import layout_of
from etw_lightning.tuning.two_gradients import TermGradients, inner_product

if TYPE_CHECKING:
    from etw_lightning.training.module import UnlearningModule

__all__ = ["ForgetScale", "check_whole_gradients", "measure_forget_scale"]

#: Steps whose gradients are looked at, or as many as an epoch has.
_STEPS = 8


class ForgetScale(NamedTuple):
    """How long the gradients of both terms were, before training.

    Args:
        factor: What lambda is multiplied by: ``retain / forget``.
        forget: Mean length of the forget term's gradient over the steps.
        retain: The same of the retain term's, its weight in it.
        steps: How many.
    """

    factor: float
    forget: float
    retain: float
    steps: int


def check_whole_gradients(trainer: Trainer, key: str) -> None:
    """Refuse what asks for the gradient of each term where it can't be had.

    Args:
        trainer: Of the run.
        key: What asks, as it is typed.

    Raises:
        InputError: If processes hold shards, an engine of its own keeps the gradients, or losses
            are scaled.
    """
    strategy = trainer.strategy
    if layout_of(trainer) != "whole" or isinstance(strategy, DeepSpeedStrategy):
        raise InputError(
            f"{key} needs the gradient of each term whole on each process, and trainer.strategy "
            f"{type(strategy).__name__} never has it; give --config strategy/ddp or one device, or "
            "leave it out."
        )
    if str(trainer.precision) in ("16-mixed", "16-true"):
        raise InputError(
            f"{key} can't be had with trainer.precision {trainer.precision}, in which gradients "
            "are scaled or too small to be kept; give bf16-mixed, bf16-true or 32-true."
        )


def measure_forget_scale(module: UnlearningModule) -> ForgetScale:
    """Compare the gradients of both terms over the first steps' rows, without stepping.

    The lengths are those of whole effective batches, whatever they are split over: 2-norms over
    all weights that train.

    Args:
        module: In a trainer that is about to train; all processes must call it.

    Raises:
        InputError: If a term has no gradient, or one that is not finite.
    """
    trainer, data = module.trainer, module.datamodule
    pairing, rank = data.pairing(), trainer.global_rank
    rows = data.paired_rows()
    weights = [weight for weight in module.parameters() if weight.requires_grad]
    sums = TermGradients(weights)
    num_batches = min(pairing.num_batches, int(trainer.num_training_batches))
    lengths: dict[str, list[float]] = {"forget": [], "retain": []}
    for start in range(0, num_batches, pairing.accumulate)[:_STEPS]:
        for number in range(start, min(start + pairing.accumulate, num_batches)):
            batch = rows[pairing.step_rows(0, number, rank)]
            batch = data.transfer_batch_to_device(batch, module.device, 0)
            with trainer.precision_plugin.train_step_context():
                shares = module.shares(batch)
            sums.add(shares["forget"].value, module.retain_weight * shares["retain"].value)
        forget, retain = sums.take(module.sum_over_processes)
        for name, found in (("forget", forget), ("retain", retain)):
            lengths[name].append(_length(found))
    steps = len(lengths["forget"])
    means = {name: math.fsum(found) / steps for name, found in lengths.items()}
    for name, mean in means.items():
        if not 0 < mean < math.inf:
            raise InputError(
                f"model.forget_unit gradient: the {name} term's gradient is {mean} before "
                "training, so that lambda has no unit; give model.forget_unit loss."
            )
    return ForgetScale(means["retain"] / means["forget"], means["forget"], means["retain"], steps)


@torch.no_grad()
def _length(gradients: list[Tensor]) -> float:
    return math.sqrt(float(inner_product(gradients, gradients)))
