"""A model without numbers: its shapes, and which of its weights train."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from etw_lightning.kernels.logits import LogitTransform
from etw_lightning.models.head_probe import configured_transforms, vocabulary_size
from etw_lightning.schema import InputError
from etw_lightning.tuning.decoder import find_layers

__all__ = ["Outline", "TraceError", "build_outline", "bytes_of"]


class TraceError(RuntimeError):
    """What a model does depends on numbers, so that it can't be traced without them."""


class Outline:
    """A model without numbers: shapes, and which weights train.

    Args:
        lm: A ``transformers`` causal language model of fake tensors.
        mode: What they were made in.
    """

    def __init__(self, lm: Any, mode: FakeTensorMode) -> None:
        self.lm, self.mode = lm, mode

    @property
    def weights(self) -> int:
        """Bytes of all weights, shared ones once."""
        return sum(bytes_of(weight) for weight in self.lm.parameters())

    @property
    def num_weights(self) -> int:
        """Number of weights, shared ones once."""
        return sum(weight.numel() for weight in self.lm.parameters())

    @property
    def trained(self) -> list[Tensor]:
        """The weights that train."""
        return [weight for weight in self.lm.parameters() if weight.requires_grad]

    @property
    def head(self) -> Tensor:
        """Weight of the output head, ``(V, D)``."""
        weight: Tensor = self.lm.get_output_embeddings().weight
        return weight

    @property
    def layer_sizes(self) -> list[int]:
        """Bytes of each decoder layer's weights."""
        layers = find_layers(self.lm)
        if layers is None:
            raise TraceError(f"the decoder layers of {type(self.lm).__name__} can't be found")
        return [sum(map(bytes_of, layer.parameters())) for layer in layers]

    @property
    def transform(self) -> LogitTransform | None:
        """What the model may make of its output head's logits at most.

        Without numbers it can't be tried; what takes memory is a soft cap and a cut vocabulary.
        """
        config = self.lm.config.get_text_config()
        caps = [one for one in configured_transforms(config) if one is not None and one.cap]
        size = vocabulary_size(config)
        cut = size if size < len(self.head) else None
        if not caps and cut is None:
            return None
        return replace(caps[0] if caps else LogitTransform(), size=cut)


def build_outline(
    config: Any,
    dtype: torch.dtype,
    attention: str | None = None,
    change: Callable[[Any], None] | None = None,
) -> Outline:
    """Build a model without numbers from its configuration alone.

    Args:
        config: A ``transformers`` configuration.
        dtype: Precision of the weights.
        attention: Attention implementation; a kernel of a package that is not loaded here, such as
            ``flash_attention_2``, is counted as ``sdpa``, which keeps the same tensors.
        change: Changes the model in place: freezes weights, adds an adapter.

    Raises:
        InputError: If no causal language model has such a configuration.
    """
    from transformers import AutoModelForCausalLM

    kind = "eager" if attention == "eager" else "sdpa" if attention else None
    extra = {} if kind is None else {"attn_implementation": kind}
    with torch.device("meta"):
        try:
            lm = AutoModelForCausalLM.from_config(config, dtype=dtype, **extra)
        except ValueError as error:
            reason = " ".join(str(error).split())
            raise InputError(
                f"model.pretrained must be a causal language model: {reason:.150}."
            ) from error
    if change is not None:
        change(lm)
    mode = FakeTensorMode()
    _put_fakes(lm, mode)
    return Outline(lm.train(), mode)


def _put_fakes(lm: nn.Module, mode: FakeTensorMode) -> None:
    """Put a fake tensor of the CPU in the place of each tensor; shared ones stay shared."""
    made: dict[Tensor, Tensor] = {}
    for module in lm.modules():
        for store in (module._parameters, module._buffers):
            for name, old in store.items():
                if old is None:
                    continue
                if old not in made:
                    with mode:
                        new = torch.empty(old.shape, dtype=old.dtype, device="cpu")
                        is_weight = isinstance(old, nn.Parameter)
                        made[old] = nn.Parameter(new, old.requires_grad) if is_weight else new
                cast(dict[str, Any], store)[name] = made[old]


def bytes_of(tensor: Tensor) -> int:
    """Return the bytes of a tensor's numbers."""
    return tensor.numel() * tensor.dtype.itemsize
