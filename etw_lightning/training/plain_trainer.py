"""What a trainer that the command line has not made is asked and set, before it sets up."""

from __future__ import annotations

from typing import Any, cast

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info

from etw_lightning.schema import InputError

__all__ = ["keep_order", "score_whole"]


def score_whole(trainer: Trainer) -> None:
    """Have evaluation sets scored whole, before training too; a part of a set has no metric.

    Args:
        trainer: Of a run in which something is scored. Its sanity check, two batches by default,
            becomes the evaluation of the model before training; 0 leaves that out.

    Raises:
        InputError: If it is to validate on a part of the rows.
    """
    limit, is_dev = trainer.limit_val_batches, bool(cast(Any, trainer).fast_dev_run)
    if is_dev or not (limit == 0 or (isinstance(limit, float) and limit == 1.0)):
        key = "fast_dev_run" if is_dev else "limit_val_batches"
        raise InputError(
            f"Trainer({key}={getattr(trainer, key)}) would score evaluation sets in part, and a "
            "part of a set has no metric; leave it out and take fewer rows by data.rows, or leave "
            "out the callbacks that score."
        )
    if trainer.num_sanity_val_steps not in (0, float("inf")):
        rank_zero_info(
            "The model is scored before training too, each set whole; "
            "Trainer(num_sanity_val_steps=0) leaves that out."
        )
        trainer.num_sanity_val_steps = float("inf")


def keep_order(trainer: Trainer) -> None:
    """Leave rows to the data module, which shares them out over processes itself."""
    cast(Any, trainer)._accelerator_connector.use_distributed_sampler = False
