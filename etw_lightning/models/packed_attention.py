"""Attention of rows that are laid out as stretches, and whether a model can be fed them so.

All tokens of a step go through a model as one row, each distinct one once; only attention has to
know which of them belong together. It is handed the layout through the keyword arguments that
models of ``transformers`` pass on to their attention, and goes over the layout part by part.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from etw_lightning.models.positions import looks_everywhere
from etw_lightning.models.probes import is_alike, last_states, mode_of, probe_ids
from etw_lightning.models.step_layout import Packed, Part, pack
from etw_lightning.tuning.decoder import body_of

__all__ = ["may_take_packed", "reads_packed_alike", "run_packed"]

#: Settings of an attention that are not heeded here, or that say nothing of what is looked at.
_HARMLESS = ("position_ids", "use_cache", "is_causal", "cache_position", "output_attentions")


def run_packed(lm: Any, packed: Packed) -> Tensor:
    """Return the last hidden states of packed rows, ``(P, D)``.

    Args:
        lm: A ``transformers`` causal language model that ``reads_packed_alike``.
        packed: What is fed.
    """
    _take_over()
    # As it has four dimensions, models hand it on as it is; nothing reads it.
    unread = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=packed.input_ids.device)
    out = body_of(lm)(
        input_ids=packed.input_ids,
        position_ids=packed.position_ids,
        attention_mask=unread,
        use_cache=False,
        laid_out=packed.parts,
    )
    hidden: Tensor = out.last_hidden_state
    return hidden[0]


def may_take_packed(lm: Any) -> bool:
    """Tell by its configuration and class whether a model may be fed packed rows."""
    config = lm.config.get_text_config()
    given = inspect.signature(body_of(lm).forward).parameters
    return (
        bool(getattr(lm, "_supports_attention_backend", False))
        and config._attn_implementation == "sdpa"
        and looks_everywhere(lm)
        and "position_ids" in given
        and any(one.kind == inspect.Parameter.VAR_KEYWORD for one in given.values())
    )


@torch.no_grad()
def reads_packed_alike(lm: Any) -> bool:
    """Compare packed rows with the same ones one by one, in forward passes."""
    ids = probe_ids(lm, 12)[0].tolist()
    # A beginning of all, one of two of them, and their ends.
    rows = [tuple(ids[:7]), (*ids[:5], *ids[7:12]), (*ids[:5], *ids[7:10]), (*ids[:2], ids[9])]
    packed, places = pack(rows, part_cost=0)
    device = lm.get_input_embeddings().weight.device
    with mode_of(lm, training=False):
        alone = [torch.tensor([row], device=device) for row in rows]
        wanted = torch.cat([last_states(lm, one, torch.ones_like(one))[0] for one in alone])
        try:
            found = run_packed(lm, _moved(packed, device))
        except (TypeError, ValueError, RuntimeError, IndexError):
            # A model that makes something else of what it is given says so in its own way.
            return False
    places = places[places >= 0].to(device)
    return len(found) == packed.input_ids.shape[1] and is_alike(found[places], wanted)


def _moved(packed: Packed, device: torch.device) -> Packed:
    parts = tuple(
        part._replace(mask=None if part.mask is None else part.mask.to(device))
        for part in packed.parts
    )
    ids, positions = packed.input_ids.to(device), packed.position_ids.to(device)
    return Packed(ids, positions, packed.sources.to(device), parts)


def _take_over() -> None:
    """Have ``transformers`` call the attention here for its own: for other rows that is the same.

    A name of its own would have to be set in a model's configuration, and stand there still when
    activations are computed again in a backward pass.
    """
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if ALL_ATTENTION_FUNCTIONS["sdpa"] is not _attend:
        ALL_ATTENTION_FUNCTIONS["sdpa"] = _attend


def _attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *args: Any,
    laid_out: Sequence[Part] | None = None,
    **settings: Any,
) -> tuple[Tensor, None]:
    """Attend as the library does; in rows that are laid out, to what a token follows.

    Args:
        module: The attention's module.
        query: ``(B, H, T, d)``; of rows that are laid out B is 1.
        key: ``(B, G, T, d)``, where G divides H.
        value: As ``key``.
        attention_mask: The library's; of rows that are laid out unread.
        args: The library's further ones.
        laid_out: Parts of what is fed.
        settings: The library's further ones by name.

    Returns:
        ``(B, T, H, d)``, and no weights.

    Raises:
        ValueError: If a model asks its attention for more than this one knows.
    """
    if laid_out is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        said: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, *args, **settings
        )
        return said
    dropout, scaling = settings.pop("dropout", 0.0), settings.pop("scaling", None)
    asked = [name for name, one in settings.items() if one is not None and name not in _HARMLESS]
    if args or asked:
        raise ValueError(f"attention of rows that are laid out has no {', '.join(asked)}")
    num_groups = query.shape[1] // key.shape[1]
    queries, keys, values = (_by_parts(states[0], laid_out) for states in (query, key, value))
    followed: list[Tensor] = []
    found = []
    for number, part in enumerate(laid_out):
        own = [keys[number], values[number]]
        if part.path:
            # Those that follow the same stretches come one behind the other.
            if number == 0 or part.path != laid_out[number - 1].path:
                followed = [_along(states, part.path) for states in (keys, values)]
            own = [_behind(before, states) for before, states in zip(followed, own, strict=True)]
        said_here = F.scaled_dot_product_attention(
            queries[number],
            _repeated(own[0], num_groups),
            _repeated(own[1], num_groups),
            attn_mask=part.mask,
            dropout_p=dropout,
            is_causal=part.mask is None,
            scale=scaling,
        )
        found.append(said_here.transpose(1, 2).flatten(0, 1))
    return torch.cat(found)[None], None


def _by_parts(states: Tensor, parts: Sequence[Part]) -> list[Tensor]:
    """Return ``(H, P, d)`` as ``(stretches, H, width, d)`` of each part."""
    pieces = states.split([part.num * part.width for part in parts], dim=1)
    return [
        piece.unflatten(1, (part.num, part.width)).transpose(0, 1)
        for piece, part in zip(pieces, parts, strict=True)
    ]


def _along(parts: list[Tensor], path: Sequence[Sequence[int]]) -> Tensor:
    """Return the states that a part follows, ``(G, tokens, d)``."""
    return torch.cat([parts[part][place, :, :size] for part, place, size in path], dim=1)


def _behind(before: Tensor, own: Tensor) -> Tensor:
    """Return the states of each stretch behind those that all of a part follow."""
    return torch.cat([before.expand(len(own), -1, -1, -1), own], dim=2)


def _repeated(states: Tensor, times: int) -> Tensor:
    """Return ``(B, G, T, d)`` with each group of heads as often as it is read, ``(B, H, T, d)``."""
    return states if times == 1 else states.repeat_interleave(times, dim=1)
