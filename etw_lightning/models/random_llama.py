"""A small Llama with random weights, to be trained from nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["LlamaShape", "save_random_llama"]


@dataclass(frozen=True)
class LlamaShape:
    """Sizes of a Llama.

    Args:
        num_layers: Decoder layers.
        hidden_size: Width.
        intermediate_size: Width of the feed-forward part.
        num_heads: Attention heads.
        tied: Whether the head is the embedding.
    """

    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    tied: bool = False


def save_random_llama(folder: Path, tokenizer: Any, shape: LlamaShape) -> int:
    """Save a Llama with random weights for rows of 256 tokens.

    The weights are drawn from torch's generator as it stands; seed it first.

    Args:
        folder: Where to; it is made if it does not exist.
        tokenizer: Of the ``tokenizers`` package, with the entries ``<|bos|>``, ``<|eos|>`` and
            ``<|pad|>``; it is not saved.
        shape: Sizes.

    Returns:
        The number of weights.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    ids: dict[str, Any] = {
        f"{name}_token_id": tokenizer.token_to_id(f"<|{name}|>") for name in ("bos", "eos", "pad")
    }
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_heads,
        max_position_embeddings=256,
        tie_word_embeddings=shape.tied,
        **ids,
    )
    lm = LlamaForCausalLM(config)
    lm.save_pretrained(folder)
    return int(lm.num_parameters())
