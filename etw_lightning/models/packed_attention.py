"""Attention of rows that are laid out as stretches, and whether a model can be fed them so.

All tokens of a step go through a model as one row, each distinct one once; only attention has to
know which of them belong together. It is handed the layout through the keyword arguments that
models of ``transformers`` pass on to their attention, and goes over the layout part by part.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etw_lightning.models.positions import looks_everywhere
from etw_lightning.models.probes import is_alike, last_states, mode_of, probe_ids
from etw_lightning.models.step_layout import Packed, Part, pack
from etw_lightning.tuning.decoder import body_of, layers_of

__all__ = ["may_take_packed", "moved", "reads_packed_alike", "run_packed"]


class LaidOut(NamedTuple):
    """What an attention is told of the rows.

    Args:
        parts: As in ``Packed``.
        last: Number of the layer whose output is read where labels are asked for and nowhere
            else; None if all of it is.
    """

    parts: Sequence[Part]
    last: int | None


#: Settings of an attention that are not heeded here, or that say nothing of what is looked at.
_HARMLESS = ("position_ids", "use_cache", "is_causal", "cache_position", "output_attentions")


def run_packed(lm: Any, packed: Packed) -> Tensor:
    """Return the last hidden states of packed rows, ``(P, D)``.

    Args:
        lm: A ``transformers`` causal language model that ``reads_packed_alike``.
        packed: What is fed; where it says what is read, other states are of no use.
    """
    _take_over()
    reads_some = bool(packed.read.numel())
    layers = layers_of(lm) if reads_some else None
    last = None if layers is None else len(layers) - 1
    # As it has four dimensions, models hand it on as it is; nothing reads it.
    unread = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=packed.input_ids.device)
    with nullcontext() if layers is None else _reading(lm, layers, packed.read):
        out = body_of(lm)(
            input_ids=packed.input_ids,
            position_ids=packed.position_ids,
            attention_mask=unread,
            use_cache=False,
            laid_out=LaidOut(packed.parts, last),
        )
    hidden: Tensor = out.last_hidden_state
    return hidden[0]


@contextmanager
def _reading(lm: Any, layers: nn.ModuleList, read: Tensor) -> Iterator[None]:
    """Have the last layer's feed-forward part work on what is read of its output.

    The others are read by nothing behind it: their keys and values are made before. Not where the
    layer will be computed again, when this is over.
    """
    inner = getattr(layers[-1], "mlp", None)
    if inner is None or getattr(lm, "is_activation_checkpointing", False):
        yield
        return
    shapes: list[tuple[Tensor, ...]] = []

    def pick(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        (hidden,) = args
        shapes.append(hidden.shape)
        return (hidden.index_select(1, read),)

    def put(_module: nn.Module, _args: Any, out: Any) -> Any:
        found = out[0] if isinstance(out, tuple) else out
        whole = found.new_zeros((*shapes[-1][:2], found.shape[-1])).index_copy(1, read, found)
        return (whole, *out[1:]) if isinstance(out, tuple) else whole

    handles = [inner.register_forward_pre_hook(pick), inner.register_forward_hook(put)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


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
    # Of the last layer what is read is computed, as in training: all rows but their beginnings.
    places[:, :6] = -1
    packed = packed.with_sources(places[places >= 0])
    device = lm.get_input_embeddings().weight.device
    with mode_of(lm, training=False):
        alone = [torch.tensor([row], device=device) for row in rows]
        states = [last_states(lm, one, torch.ones_like(one))[0, 6:] for one in alone]
        try:
            found = run_packed(lm, moved(packed, device))
        except (TypeError, ValueError, RuntimeError, IndexError):
            # A model that makes something else of what it is given says so in its own way.
            return False
    right = len(found) == packed.input_ids.shape[1]
    return right and is_alike(found[packed.sources.to(device)], torch.cat(states))


def moved(packed: Packed, device: torch.device) -> Packed:
    """Return the same on a device."""
    parts = tuple(
        part._replace(mask=None if part.mask is None else part.mask.to(device))
        for part in packed.parts
    )
    ids, positions = packed.input_ids.to(device), packed.position_ids.to(device)
    return Packed(ids, positions, packed.sources.to(device), parts, packed.read.to(device))


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
    laid_out: LaidOut | None = None,
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
        laid_out: What is known of the rows.
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
    parts, dtype = laid_out.parts, query.dtype
    # Backward, a processor's kernel takes almost four times as long in 16 bits as in 32.
    widens = query.device.type == "cpu" and dtype in (torch.bfloat16, torch.float16)
    if widens:
        query, key, value = query.float(), key.float(), value.float()
    is_last = laid_out.last is not None and getattr(module, "layer_idx", None) == laid_out.last
    queries, keys, values = (_by_parts(states[0], parts) for states in (query, key, value))
    followed: list[Tensor] = []
    found = []
    for number, part in enumerate(parts):
        own = [keys[number], values[number]]
        if part.path:
            # Those that follow the same stretches come one behind the other.
            if number == 0 or part.path != parts[number - 1].path:
                followed = [_along(states, part.path) for states in (keys, values)]
            own = [_behind(before, states) for before, states in zip(followed, own, strict=True)]
        # Without a mask only the whole is known to be causal.
        skipped = part.unread if is_last and (part.path or part.unread == part.width) else 0
        if skipped == part.width:
            said_here = query.new_zeros(part.num, skipped, query.shape[1], value.shape[-1])
        else:
            with torch.autocast("cpu", enabled=False) if widens else nullcontext():
                said_here = F.scaled_dot_product_attention(
                    queries[number][:, :, skipped:],
                    _repeated(own[0], num_groups),
                    _repeated(own[1], num_groups),
                    attn_mask=None if part.mask is None else part.mask[skipped:],
                    dropout_p=dropout,
                    is_causal=part.mask is None,
                    scale=scaling,
                ).transpose(1, 2)
            if skipped:
                said_here = F.pad(said_here, (0, 0, 0, 0, skipped, 0))
        found.append(said_here.flatten(0, 1))
    return torch.cat(found)[None].to(dtype), None


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
