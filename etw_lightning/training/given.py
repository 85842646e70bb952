"""A model that is in memory already, in the place of one that is loaded by name."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from typing import Any, cast

import torch

from etw_lightning.models.loading import DType
from etw_lightning.schema import InputError

__all__ = ["GivenModel"]


@dataclass(frozen=True)
class GivenModel:
    """A loaded model with its tokenizer.

    Args:
        lm: A ``transformers`` causal language model.
        tokenizer: Its tokenizer.
    """

    lm: Any
    tokenizer: Any

    @property
    def name(self) -> str:
        """What the model was loaded from, or its class."""
        return str(getattr(self.lm, "name_or_path", "") or type(self.lm).__name__)

    @property
    def dtype_name(self) -> DType:
        """Precision of its output head, for most models that of all weights."""
        dtype = self.lm.get_output_embeddings().weight.dtype
        return cast(DType, str(dtype).removeprefix("torch."))

    def check(self) -> None:
        """Refuse what can't be trained or scored as it is.

        Raises:
            InputError: Names the argument.
        """
        kind = type(self.lm).__name__
        head = getattr(self.lm, "get_output_embeddings", lambda: None)()
        if head is None:
            raise InputError(
                f"model must be a causal language model of transformers; got {kind}, which has no "
                "output head: load it by AutoModelForCausalLM."
            )
        if hasattr(self.lm, "peft_config"):
            raise InputError(
                f"model must be a plain model; got {kind} with an adapter: give "
                "model.merge_and_unload(), and peft={...} to train a new adapter."
            )
        if getattr(self.lm, "is_quantized", False):
            raise InputError(
                f"model must have weights that train; got a quantized {kind}: load it without "
                "quantization_config."
            )
        devices = {weight.device for weight in self.lm.parameters()}
        if len(devices) > 1:
            raise InputError(
                f"model must be on one device; got {kind} on {', '.join(sorted(map(str, devices)))}"
                ": load it without device_map."
            )
        if not callable(self.tokenizer) or not hasattr(self.tokenizer, "eos_token_id"):
            raise InputError(
                f"tokenizer must be the model's tokenizer; got {type(self.tokenizer).__name__}: "
                "load it by AutoTokenizer."
            )

    def identity(self) -> str:
        """Return a hash of configuration and weights as they are when it is first asked for."""
        return self._identity

    @functools.cached_property
    def _identity(self) -> str:
        digest = hashlib.sha256(self.lm.config.to_json_string(use_diff=False).encode())
        for name, weight in sorted(self.lm.state_dict().items()):
            digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
            flat = weight.detach().contiguous().cpu().reshape(-1)
            digest.update(flat.view(torch.uint8).numpy().data)
        return digest.hexdigest()
