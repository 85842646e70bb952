"""How far a model looks back, and how many positions it knows, by its configuration and tables."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from torch import nn

from etw_lightning.notices import warn_first
from etw_lightning.schema import EncodedRow, InputError

__all__ = [
    "Extent",
    "Limits",
    "check_extents",
    "limits_of",
    "looks_everywhere",
    "narrowest_window",
    "row_extents",
]

#: Modules and buffers that hold something for each position; there is nothing beyond their end.
_TABLES = ("wpe", "embed_positions", "position_embeddings", "pos_encoding")
#: Settings that let attention reach only so far back.
_WINDOWS = ("sliding_window", "attention_window_size", "attention_chunk_size")


def looks_everywhere(lm: Any) -> bool:
    """Tell by its configuration whether every layer of a model attends to all that precedes."""
    config = lm.config.get_text_config()
    layers = getattr(config, "layer_types", None)
    if layers is not None:
        return set(layers) == {"full_attention"}
    is_local = "local" in getattr(config, "attention_layers", ())
    return not is_local and all(getattr(config, name, None) is None for name in _WINDOWS)


def narrowest_window(lm: Any) -> int:
    """Return how far back the attention of a model reaches where it does least; 0 for no window."""
    config = lm.config.get_text_config()
    found = [getattr(config, name, None) for name in _WINDOWS]
    return min((size for size in found if isinstance(size, int) and size > 0), default=0)


class Extent(NamedTuple):
    """The positions a row takes.

    Args:
        id: Id of the example.
        num_tokens: Tokens that are fed.
        num_new: Tokens that may be generated, for generations.
    """

    id: str
    num_tokens: int
    num_new: int = 0

    @property
    def num_positions(self) -> int:
        """Positions in all; the last generated token is not fed."""
        return self.num_tokens + max(self.num_new - 1, 0)


class Limits(NamedTuple):
    """Numbers of positions; None where there is no limit.

    Args:
        learned: Positions the model has learned, or holds a table of; beyond there is nothing.
        unscaled: Positions up to which rotary frequencies don't depend on the longest row of a
            batch.
        made_for: Positions a rotary model was made for.
    """

    learned: int | None = None
    unscaled: int | None = None
    made_for: int | None = None


def limits_of(lm: nn.Module) -> Limits:
    """Return how many positions a model takes."""
    buffers = {name.rpartition(".")[2] for name, _ in lm.named_buffers()}
    learned = [
        part
        for name, part in lm.named_modules()
        if name.rpartition(".")[2] in _TABLES and isinstance(part, nn.Embedding)
    ]
    if learned or buffers & {*_TABLES}:
        size = getattr(_config(lm), "max_position_embeddings", None)
        if size is None:
            # As in Whisper, whose configuration names a limit of its own.
            size = min((part.num_embeddings for part in learned), default=None)
        # As in RoBERTa, whose positions begin behind the padding index.
        rooms = [
            part.num_embeddings - part.padding_idx - 1
            for part in learned
            if part.padding_idx is not None
        ]
        return Limits(learned=min([one for one in (size, *rooms) if one is not None], default=None))
    if not any(name.endswith("inv_freq") for name in buffers):
        return Limits()
    size = getattr(_config(lm), "max_position_embeddings", None)
    return Limits(unscaled=_unscaled(_config(lm)), made_for=size)


def _config(lm: Any) -> Any:
    return lm.config.get_text_config()


def _unscaled(config: Any) -> int | None:
    """Return up to which position dynamic and long rotary frequencies stay what they are."""
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = [rope] if "rope_type" in rope else [one for one in rope.values() if one]
    sizes = []
    for kind in kinds:
        if "dynamic" in kind["rope_type"]:
            # At the very end, what was scored before would decide.
            sizes.append(config.max_position_embeddings - 1)
        if kind["rope_type"] == "longrope":
            sizes.append(kind["original_max_position_embeddings"])
    return min(sizes, default=None)


def row_extents(rows: Iterable[EncodedRow]) -> list[Extent]:
    """Return the positions that rows take in training."""
    return [Extent(row.id, len(row.input_ids)) for row in rows]


def check_extents(limits: Limits, kind: str, rows: Iterable[Extent]) -> None:
    """Refuse rows that a model has no positions for; warn of those it was not made for.

    Args:
        limits: The model's.
        kind: Class of the model, for the message.
        rows: What is to be fed.

    Raises:
        InputError: If a row is too long; names it.
    """
    longest = max(rows, key=lambda row: row.num_positions, default=None)
    if longest is None:
        return
    taken = longest.num_positions
    if limits.learned is not None and taken > limits.learned:
        raise InputError(_story(longest, limits.learned, kind))
    if limits.unscaled is not None and taken > limits.unscaled:
        why = "of which the rotary frequencies don't depend on the longest row of a batch"
        raise InputError(_story(longest, limits.unscaled, kind, why))
    if limits.made_for is not None and taken > limits.made_for:
        warn_first(
            f"Some rows are longer than the {limits.made_for} positions {kind} was made for "
            "(max_position_embeddings); it may say little of use there. Lower data.max_length."
        )


def _story(row: Extent, limit: int, kind: str, why: str = "") -> str:
    """Return what is wrong with a row that is too long, and the way out."""
    what, way = f"{row.num_tokens} tokens", f"Set data.max_length to at most {limit}"
    if row.num_new:
        what += f" of prompt and {row.num_new} new ones"
        left = limit - row.num_tokens + 1
        way = f"Set data.max_new_tokens to at most {left}" if left > 0 else "Shorten its prompt"
    name = f"Row {row.id}" if row.id else "A row"
    return (
        f"{name} takes {row.num_positions} positions ({what}); {kind} has {limit}"
        f"{why and f' {why}'}. {way} or remove the row."
    )
