"""Entropy-guided token weights for a training loop of one's own: tensors in, tensors out."""

from __future__ import annotations

import torch
from torch import Tensor

from etw_lightning.kernels.signals import TokenSignals
from etw_lightning.schema import IGNORE_INDEX
from etw_lightning.weighting.entropy import ETW

__all__ = ["etw_weights"]

#: Positions whose float32 logits are in memory at a time.
_CHUNK = 1024


def etw_weights(logits: Tensor, labels: Tensor, temperature: float = 1.0) -> Tensor:
    """Return the weight of each labelled token, as ``ETW`` gives it.

    For a row with n labelled tokens, ``w_i = n * H_i / sum_j H_j``, where ``H_i`` is the entropy
    of ``softmax(logits / temperature)`` at the position that predicts token i. The weights of a
    row sum to n. Entropies are computed in float32 (in float64 of float64 logits).

    Args:
        logits: What the model says at every position, ``(B, T, V)``; as ``transformers`` models
            return them: those at ``t - 1`` predict the token at ``t``.
        labels: Token ids, -100 where nothing is trained on, ``(B, T)``; not shifted. The first
            token of a row is predicted by nothing, so it counts as -100.
        temperature: T > 0, of the entropy alone.

    Returns:
        Weights aligned with ``labels``, detached, >= 0, ``(B, T)``; 0 where nothing is labelled.

    Raises:
        ValueError: If the shapes don't belong together, or the temperature is not > 0.

    Example:
        The forget term in a loop, or in ``compute_loss`` of a ``Trainer``, beside whatever loss
        the retain rows have; it pushes the likelihood of the labels down:

        >>> from torch.nn.functional import cross_entropy
        >>> def forget_loss(logits: Tensor, labels: Tensor) -> Tensor:
        ...     weights = etw_weights(logits, labels)[:, 1:]
        ...     flat, shifted = logits[:, :-1].flatten(0, 1), labels[:, 1:]
        ...     nll = cross_entropy(flat.float(), shifted.flatten(), reduction="none")
        ...     return -(weights * nll.view_as(weights)).sum() / (shifted != -100).sum()
        >>> logits = torch.tensor([[[0.0, 0.0], [0.0, 3.0], [0.0, 0.0]]], requires_grad=True)
        >>> labels = torch.tensor([[-100, 1, 0]])
        >>> etw_weights(logits, labels)
        tensor([[0.0000, 1.5682, 0.4318]])
        >>> forget_loss(logits, labels)
        tensor(-1.2017, grad_fn=<DivBackward0>)
    """
    if logits.ndim != 3 or labels.shape != logits.shape[:2]:
        raise ValueError(
            "logits must be (B, T, V) and labels (B, T); got "
            f"{tuple(logits.shape)} and {tuple(labels.shape)}."
        )
    weighting = ETW(temperature=temperature)
    is_label = labels[:, 1:] != IGNORE_INDEX
    said = logits.detach()[:, :-1][is_label]
    wide = torch.promote_types(said.dtype, torch.float32)
    entropies = said.new_empty(len(said), dtype=wide)
    for start in range(0, len(said), _CHUNK):
        part = slice(start, start + _CHUNK)
        logps = (said[part].to(wide) / temperature).log_softmax(1)
        entropies[part] = torch.special.entr(logps.exp()).sum(1)
    signals = TokenSignals(
        labels=labels[:, 1:][is_label],
        rows=is_label.nonzero()[:, 0],
        num_rows=len(labels),
        logps=torch.zeros_like(entropies),
        entropies=entropies,
    )
    weights = said.new_zeros(labels.shape, dtype=wide)
    weights[:, 1:][is_label] = weighting(signals)
    return weights
