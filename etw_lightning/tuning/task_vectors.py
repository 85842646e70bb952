"""Task vectors: what fine-tuning changed of a model's weights, taken the other way."""

from __future__ import annotations

import torch
from torch import nn

from etw_lightning.schema import InputError

__all__ = ["negate"]


@torch.no_grad()
def negate(start: nn.Module, tuned: nn.Module, scale: float) -> None:
    """Move a model against its task vector: start - scale * (tuned - start), in place.

    Source: Ilharco et al. 2022, arXiv:2212.04089, negation; MUSE's task vector (arXiv:2407.06460)
        fine-tunes on the forget set.
    Differs from it: nothing. Each weight is computed in float64 and rounded once.

    Args:
        start: The model that fine-tuning began with, changed in place.
        tuned: The same, fine-tuned on what is to be forgotten.
        scale: The papers' alpha, > 0.

    Raises:
        InputError: If ``scale`` is not positive, or the two are not of the same shape.
    """
    if not 0 < scale < float("inf"):
        raise InputError(f"negate must be a number > 0; got {scale}.")
    theirs = dict(tuned.named_parameters())
    mine = dict(start.named_parameters())
    for name in {**mine, **theirs}:
        shapes = [tuple(one[name].shape) if name in one else None for one in (mine, theirs)]
        if shapes[0] != shapes[1]:
            raise InputError(
                f"negate: {name} is {shapes[0]} in the model that was begun with, and {shapes[1]} "
                "in the fine-tuned one; both must be whole models of one shape."
            )
    for name, weight in mine.items():
        before = weight.double()
        weight.copy_(before - scale * (theirs[name].to(weight.device).double() - before))
