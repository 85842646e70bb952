"""Ways of continuing a batch of prompts: by step with a cache, by the library, without a cache."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from etw_lightning.models.positions import looks_everywhere
from etw_lightning.models.stopping import Stops

__all__ = [
    "Choose",
    "by_library",
    "by_step",
    "likeliest",
    "new_cache",
    "says_anew",
    "says_by_library",
    "says_by_step",
    "without_cache",
]

#: What the prompts of a batch must share, in tokens, to be worth a forward pass of its own.
_MIN_SHARED = 8
#: Chooses the next token of some rows from what is said of it, ``(R, V)``, the rows' numbers in the
#: batch and how many tokens each has already; ``(R,)``.
Choose = Callable[[Tensor, Sequence[int], int], Tensor]
#: What a forward pass must take to be stepped through here; others are left to the library.
_STEPPED = {"input_ids", "attention_mask", "position_ids", "past_key_values", "logits_to_keep"}


def new_cache(lm: Any) -> Any:
    """Return an empty cache whose rows can be picked; None for models that keep another state."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    if not inspect.signature(lm.forward).parameters.keys() >= _STEPPED:
        return None
    cache = DynamicCache(config=lm.config)
    plain = {type(layer) for layer in cache.layers} <= {DynamicLayer, DynamicSlidingWindowLayer}
    return cache if plain else None


def likeliest(logits: Tensor, _rows: Sequence[int], _step: int) -> Tensor:
    """Return the likeliest next token of each row."""
    return logits.argmax(-1)


def by_step(
    lm: Any,
    cache: Any,
    ids: Tensor,
    mask: Tensor,
    max_new_tokens: int,
    ends: set[int],
    stops: Stops,
    choose: Choose = likeliest,
) -> list[list[int]]:
    """Return the new tokens of each row, its end token included."""
    ids, mask, seen = _read_shared(lm, cache, ids, mask)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, seen:]
    found: list[list[int]] = [[] for _ in range(len(ids))]
    rows = list(range(len(ids)))
    for step in range(max_new_tokens):
        newest = choose(_next_logits(lm, cache, ids, mask, positions), rows, step)
        kept = _going_on(found, rows, newest, ends, stops)
        if not kept:
            break
        if len(kept) < len(rows):
            picked = torch.tensor(kept, device=ids.device)
            rows = [rows[place] for place in kept]
            newest, mask, positions = newest[picked], mask[picked], positions[picked]
            cache.batch_select_indices(picked)
        ids, positions = newest[:, None], positions[:, -1:] + 1
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=-1)
    return found


def _next_logits(lm: Any, cache: Any, ids: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
    """Read tokens and return what is said of the next one of each row, ``(B, V)``."""
    out = lm(
        input_ids=ids,
        # Rows without padding are spared the making of a mask.
        attention_mask=None if bool(mask.all()) else mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    logits: Tensor = out.logits[:, -1]
    return logits


def _read_shared(lm: Any, cache: Any, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, int]:
    """Read what all prompts begin with once, and put it in the cache for every row.

    Returns:
        What is left of the prompts, left-padded; the mask of all, the shared part in front; and
        the length of the shared part. All as they came where nothing is shared.
    """
    rows = [
        list(zip(row, seen, strict=True))[seen.index(1) :]
        for row, seen in zip(ids.tolist(), mask.tolist(), strict=True)
    ]
    shared = _num_shared(rows)
    # A window is counted in places, padding included, which here would stand in its way.
    if shared < _MIN_SHARED or not looks_everywhere(lm):
        return ids, mask, 0
    head, seen = torch.tensor(rows[0][:shared], device=ids.device).T[:, None]
    _next_logits(lm, cache, head, seen, (seen.cumsum(-1) - 1).clamp(min=0))
    cache.batch_repeat_interleave(len(ids))
    width = max(map(len, rows)) - shared
    tail = mask[:, -width:].clone()
    for place, row in enumerate(rows):
        tail[place, : width - len(row) + shared] = 0
    return ids[:, -width:], torch.cat([seen.expand(len(ids), -1), tail], dim=-1), shared


def _num_shared(rows: Sequence[list[Any]]) -> int:
    """Return how much all rows begin with; the last of no row, and nothing of a single row.

    Example:
        >>> _num_shared([[1, 2, 3, 4], [1, 2, 4], [1, 2, 3]])
        2
        >>> _num_shared([[1, 2, 3], [1, 2]])
        1
    """
    if len(rows) < 2:
        return 0
    # What the first and the last in order share, all between them share.
    pairs = zip(min(rows), max(rows), strict=False)
    common = next((place for place, (a, b) in enumerate(pairs) if a != b), min(map(len, rows)))
    return min(common, min(map(len, rows)) - 1)


def by_library(
    lm: Any,
    ids: Tensor,
    mask: Tensor,
    max_new_tokens: int,
    ends: set[int],
    stops: Stops,
    choose: Choose = likeliest,
) -> list[list[int]]:
    """Do what ``by_step`` does for models whose state can't be picked row by row."""
    from transformers import (
        GenerationConfig,
        LogitsProcessor,
        LogitsProcessorList,
        StoppingCriteria,
        StoppingCriteriaList,
    )

    width = ids.shape[1]

    class Chosen(LogitsProcessor):
        def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
            newest = choose(scores, range(len(scores)), input_ids.shape[1] - width)
            forced = torch.full_like(scores, -float("inf"))
            return forced.scatter(-1, newest[:, None], 0.0)

    class Stopped(StoppingCriteria):
        def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
            rows = input_ids[:, width:].tolist()
            return torch.tensor([stops(row) for row in rows], device=input_ids.device)

    config = GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=sorted(ends),
        pad_token_id=stops.tokenizer.eos_token_id,
        use_cache=True,
    )
    how: dict[str, Any] = {"stopping_criteria": StoppingCriteriaList([Stopped()])}
    if choose is not likeliest:
        how["logits_processor"] = LogitsProcessorList([Chosen()])
    out = _generate(lm, ids, mask, config, **how)
    new: list[list[int]] = out[:, width:].tolist()
    return new


def _generate(lm: Any, ids: Tensor, mask: Tensor, config: Any, **how: Any) -> Any:
    """Run the library's own generation with these settings and no others."""
    from transformers import GenerationConfig

    # The library fills what a config leaves open from the model's own.
    own, lm.generation_config = lm.generation_config, GenerationConfig()
    try:
        return lm.generate(input_ids=ids, attention_mask=mask, generation_config=config, **how)
    finally:
        lm.generation_config = own


def without_cache(
    lm: Any,
    ids: Tensor,
    mask: Tensor,
    max_new_tokens: int,
    ends: set[int],
    stops: Stops,
    choose: Choose = likeliest,
) -> list[list[int]]:
    """Do what ``by_step`` does for models whose state is not to be trusted; nothing is padded."""
    found: list[list[int]] = [[] for _ in range(len(ids))]
    rows = list(range(len(ids)))
    for step in range(max_new_tokens):
        out = lm(input_ids=ids, attention_mask=mask, use_cache=False)
        newest = choose(out.logits[:, -1], rows, step)
        ids, mask = torch.cat([ids, newest[:, None]], -1), nn.functional.pad(mask, (0, 1), value=1)
        kept = _going_on(found, rows, newest, ends, stops)
        if not kept:
            break
        rows, ids, mask = [rows[place] for place in kept], ids[kept], mask[kept]
    return found


def _going_on(
    found: list[list[int]], rows: Sequence[int], newest: Tensor, ends: set[int], stops: Stops
) -> list[int]:
    """Add each row's newest token to what is found; return the places of rows that go on."""
    for row, token in zip(rows, newest.tolist(), strict=True):
        found[row].append(token)
    return [
        place
        for place, row in enumerate(rows)
        if found[row][-1] not in ends and not stops(found[row])
    ]


# What is said of each of some given tokens: by this the ways are compared.


def says_by_step(lm: Any, ids: Tensor, mask: Tensor, more: Tensor) -> Tensor:
    """Return the logits of ``by_step`` before each of the tokens that are said to be the likeliest.

    Args:
        lm: As for ``by_step``.
        ids: Prompts, ``(B, T)``.
        mask: ``(B, T)``.
        more: The tokens, ``(S,)``.

    Returns:
        ``(B, S, V)``.
    """
    cache, said = new_cache(lm), list[Tensor]()
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    for token in more:
        said.append(_next_logits(lm, cache, ids, mask, positions))
        ids, positions = token.expand(len(ids), 1), positions[:, -1:] + 1
        mask = nn.functional.pad(mask, (0, 1), value=1)
    return torch.stack(said, 1)


def says_by_library(lm: Any, ids: Tensor, mask: Tensor, more: Tensor) -> Tensor:
    """Return the logits of ``by_library``, as ``says_by_step`` does."""
    from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

    width = ids.shape[1]

    class Given(LogitsProcessor):
        def __call__(self, input_ids: Tensor, scores: Any) -> Tensor:
            forced = torch.full_like(scores, -float("inf"))
            forced[:, more[input_ids.shape[1] - width]] = 0.0
            return forced

    config = GenerationConfig(
        do_sample=False,
        max_new_tokens=len(more),
        output_logits=True,
        return_dict_in_generate=True,
        pad_token_id=int(more[0]),
        use_cache=True,
    )
    given = LogitsProcessorList([Given()])
    return torch.stack(_generate(lm, ids, mask, config, logits_processor=given).logits, 1)


def says_anew(lm: Any, ids: Tensor, more: Tensor) -> Tensor:
    """Return the logits of ``without_cache``, as ``says_by_step`` does."""
    count = len(more)
    whole = torch.cat([ids, more.expand(len(ids), -1)], -1)
    logits: Tensor = lm(input_ids=whole, use_cache=False).logits
    return logits[:, -count - 1 : -1]
