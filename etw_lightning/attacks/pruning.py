"""Pruning: the smallest weights of each matrix are set to zero."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from etw_lightning.attacks.interface import Attack, Subject
from etw_lightning.attacks.matrices import decoder_matrices
from etw_lightning.schema import InputError

__all__ = ["Prune"]


@dataclass(frozen=True)
class Prune(Attack):
    """Set the weights of smallest size to zero, the same share of each matrix of the decoder.

    Embeddings, output head, norms and biases stay. Of m weights floor(share * m) become zero,
    those first in the matrix where sizes are equal.

    Source: magnitude pruning by layer, Han et al. 2015, arXiv:1506.02626, without training after.
    Differs from it: nothing is trained afterwards.

    Args:
        share: Share of each matrix, from 0 to below 1.

    Raises:
        InputError: If ``share`` is out of range.
    """

    share: float = 0.2

    def __post_init__(self) -> None:
        if not 0 <= self.share < 1:
            raise InputError(f"attack.share must be from 0 to below 1; got {self.share}.")

    @torch.no_grad()
    def change_model(self, subject: Subject) -> Any:
        """Return the model, pruned in place."""
        for weight in decoder_matrices(subject.lm).values():
            count = int(self.share * weight.numel())
            smallest = weight.abs().flatten().argsort(stable=True)[:count]
            weight.view(-1)[smallest] = 0
        return subject.lm
