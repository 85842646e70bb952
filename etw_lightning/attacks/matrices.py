"""The matrices of a model's decoder: what is pruned and quantised."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from etw_lightning.models.loading import LabelScorer

__all__ = ["all_matrices", "decoder_matrices"]


def all_matrices(lm: Any) -> dict[str, Tensor]:
    """Return every weight of two or more dimensions by name, tied ones once."""
    return {name: weight for name, weight in lm.named_parameters() if weight.dim() >= 2}


def decoder_matrices(lm: Any) -> dict[str, Tensor]:
    """Return the matrices of the decoder's layers by their names in the model.

    Embeddings and output head are none of them.
    """
    layers = LabelScorer(lm).layer_stack
    inside = {id(weight) for layer in layers for weight in layer.parameters()}
    return {name: weight for name, weight in all_matrices(lm).items() if id(weight) in inside}
