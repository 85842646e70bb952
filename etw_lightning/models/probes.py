"""How a model behaves, tried on a few tokens when it is loaded: what no configuration tells.

Random states and the model itself are left as they were. Of a model in shards these are asked of
the whole one, by the process that has loaded it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from etw_lightning.models.head_probe import vocabulary_size
from etw_lightning.schema import InputError
from etw_lightning.tuning.decoder import body_of

__all__ = ["check_reading", "is_alike", "last_states", "mode_of", "probe_ids"]

#: Tokens of a row, and of the beginning of it that is read alone.
_LENGTH, _PREFIX = 12, 7


def probe_ids(lm: Any, length: int = _LENGTH) -> Tensor:
    """Return a row of different tokens, ``(1, length)``."""
    device = lm.get_input_embeddings().weight.device
    return ((torch.arange(length, device=device) + 3) * 7919 % vocabulary_size(lm.config))[None]


def is_alike(found: Tensor, wanted: Tensor) -> bool:
    """Tell whether two results are one but for rounding.

    That makes 1e-6 of the whole in float32 and 1e-2 in 16 bits; what is not heeded makes more.
    """
    low = wanted.dtype.itemsize < 4 or torch.is_autocast_enabled(wanted.device.type)
    found, wanted = found.double(), wanted.double()
    return bool((found - wanted).norm() <= (0.05 if low else 1e-4) * wanted.norm())


@torch.no_grad()
def check_reading(lm: Any, key: str = "model.pretrained") -> None:
    """Refuse a model that does not read a row from its beginning on, token by token.

    Args:
        lm: A ``transformers`` causal language model with its weights.
        key: Configuration key that errors name.

    Raises:
        InputError: If what is said of a token depends on those behind it, or on padding there; or
            is no finite number.
    """
    chunk = _chunk_length(lm)
    length, prefix = _LENGTH + 2 * chunk, _PREFIX + chunk
    ids = probe_ids(lm, length)
    mask = torch.ones_like(ids)
    with mode_of(lm, training=False):
        alone = last_states(lm, ids[:, :prefix], mask[:, :prefix])
        whole = last_states(lm, ids, mask)
        mask[:, prefix:] = 0
        padded = last_states(lm, ids, mask)
    if not whole.isfinite().all():
        kind = str(whole.dtype).removeprefix("torch.")
        raise InputError(
            f"{key}: {type(lm).__name__} says of a few tokens what is no finite number: its "
            f"weights are broken, or {kind} is too narrow for it."
        )
    if alone.shape[1] != prefix or whole.shape[1] != length:
        raise _refused(lm, key, "answers at other positions than those of the tokens it is given")
    if not is_alike(whole[:, :prefix], alone):
        raise _refused(lm, key, "looks ahead: what it says of a token depends on those behind it")
    if not is_alike(padded[:, :prefix], alone):
        raise _refused(lm, key, "says something else of a row that is padded behind its end")


def last_states(lm: Any, ids: Tensor, mask: Tensor) -> Tensor:
    """Return the last hidden states of a row, ``(1, T, D)``."""
    states: Tensor = body_of(lm)(
        input_ids=ids, attention_mask=mask, use_cache=False
    ).last_hidden_state
    return states


@contextmanager
def mode_of(lm: nn.Module, *, training: bool) -> Iterator[None]:
    """Put a model in a mode while the context lasts; nothing random is used up."""
    before = lm.training
    devices = {weight.device for weight in lm.parameters() if weight.is_cuda}
    try:
        with torch.random.fork_rng(devices=[device.index for device in devices]):
            lm.train(training)
            yield
    finally:
        lm.train(before)


def _chunk_length(lm: Any) -> int:
    """Return up to which length a model attends to all, before it cuts rows in chunks (Reformer).

    0 for others; what they leave out of long rows lies behind, not ahead.
    """
    settings = lm.config.get_text_config().to_dict()
    return max(settings.get(f"{kind}_attn_chunk_length") or 0 for kind in ("local", "lsh"))


def _refused(lm: Any, key: str, what: str) -> InputError:
    return InputError(
        f"{key}: {type(lm).__name__} {what}; it can't be scored or trained as a model that is "
        "asked for the next token. Give a causal language model."
    )
