"""What a model says of one fixed text: by this a saved model is compared with the trained one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from etw_lightning.models.head_probe import vocabulary_size
from etw_lightning.models.label_scorer import LabelScorer

__all__ = ["text_logits", "text_logps"]


def _ids(lm: Any, device: torch.device) -> Tensor:
    """Return the ids of the text, 32 tokens, ``(1, 32)``."""
    size = vocabulary_size(lm.config)
    return (torch.arange(32, device=device) * 7919 % size)[None]


@torch.no_grad()
def text_logits(lm: Any) -> Tensor:
    """Return a model's logits on the text, float32, ``(32, V)``."""
    was_training = lm.training
    ids = _ids(lm, lm.get_output_embeddings().weight.device)
    logits: Tensor = lm.eval()(input_ids=ids, use_cache=False).logits[0].float()
    lm.train(was_training)
    return logits


@torch.no_grad()
def text_logps(scorer: LabelScorer, device: torch.device) -> Tensor:
    """Return log-probabilities of the text's tokens but the first, nats, float32, ``(31,)``.

    Of a model in shards all processes must call it.

    Args:
        scorer: The model.
        device: Where it computes.
    """
    was_training = scorer.training
    ids = _ids(scorer.lm, device)
    logps: Tensor = scorer.eval()(ids, torch.ones_like(ids), ids).logps.float()
    scorer.train(was_training)
    return logps
