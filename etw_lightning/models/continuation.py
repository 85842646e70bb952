"""Ways of continuing a batch of prompts: by step with a cache, by the library, without a cache."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from etw_lightning.models.positions import looks_everywhere
from etw_lightning.models.stopping import Stops

__all__ = [
    "Choose",
    "by_library",
    "by_step",
    "is_joinable",
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


@dataclass
class _Going:
    """Rows that are being continued.

    Args:
        rows: Their numbers.
        cache: Keys and values of what they have read.
        mask: Which of that may be looked at, ``(B, T)``.
        positions: Position of the last token read, ``(B, 1)``.
        newest: What each has said last and has not read yet, ``(B,)``.
    """

    rows: list[int]
    cache: Any
    mask: Tensor
    positions: Tensor
    newest: Tensor

    def keep(self, places: list[int]) -> None:
        """Leave out all rows but those at some places."""
        if len(places) < len(self.rows):
            picked = torch.tensor(places, dtype=torch.long, device=self.mask.device)
            self.rows = [self.rows[place] for place in places]
            self.mask, self.positions = self.mask[picked], self.positions[picked]
            self.newest = self.newest[picked]
            self.cache.batch_select_indices(picked)

    def join(self, other: _Going) -> None:
        """Add rows, padded on the left to one length with these."""
        first = int(self.mask.any(0).long().argmax())
        masks = [self.mask[:, first:], other.mask]
        width = max(mask.shape[1] for mask in masks)
        left = [width - mask.shape[1] for mask in masks]
        pairs = zip(masks, left, strict=True)
        self.mask = torch.cat([nn.functional.pad(mask, (more, 0)) for mask, more in pairs])
        for own, new in zip(self.cache.layers, other.cache.layers, strict=True):
            own.keys, own.values = (
                torch.cat(
                    [
                        nn.functional.pad(mine[..., first:, :], (0, 0, left[0], 0)),
                        nn.functional.pad(theirs, (0, 0, left[1], 0)),
                    ]
                )
                for mine, theirs in ((own.keys, new.keys), (own.values, new.values))
            )
        self.rows = self.rows + other.rows
        self.positions = torch.cat([self.positions, other.positions])
        self.newest = torch.cat([self.newest, other.newest])


def by_step(
    lm: Any,
    ids: Tensor,
    mask: Tensor,
    max_new_tokens: int,
    ends: set[int],
    stops: Stops,
    at_once: int,
    choose: Choose = likeliest,
) -> Iterator[tuple[int, list[int]]]:
    """Give each row's number and new tokens, its end token included, as it comes to an end.

    Rows that have ended leave room for others: once half of it is free, it is filled up.

    Args:
        lm: The model.
        ids: Prompts, ``(B, T)``.
        mask: ``(B, T)``.
        max_new_tokens: Of each row.
        ends: Tokens that end a row.
        stops: Tells of stop strings.
        at_once: Rows that are continued together at most; fewer than there are only if
            ``is_joinable``, and only of a choice that does not ask for the step.
        choose: Chooses each next token.
    """
    beginning = _read_shared(lm, ids, mask)
    found: list[list[int]] = [[] for _ in range(len(ids))]
    waiting, going = list(range(len(ids))), None

    def settle(some: _Going, logits: Tensor) -> Iterator[tuple[int, list[int]]]:
        some.newest = choose(logits, some.rows, len(found[some.rows[0]]))
        kept = _going_on(found, some.rows, some.newest, ends, stops, max_new_tokens)
        yield from ((row, found[row]) for n, row in enumerate(some.rows) if n not in {*kept})
        some.keep(kept)

    while waiting or going is not None:
        room = at_once - (0 if going is None else len(going.rows))
        if waiting and 2 * room >= at_once:
            new, logits = _begin(lm, ids, mask, beginning, waiting[:room])
            waiting = waiting[room:]
            yield from settle(new, logits)
            if going is not None and new.rows:
                going.join(new)
            elif new.rows:
                going = new
        if going is None:
            continue
        yield from settle(going, _step(lm, going))
        if not going.rows:
            going = None


def is_joinable(lm: Any) -> bool:
    """Tell whether rows may join others that are being continued."""
    from transformers.cache_utils import DynamicLayer

    cache = new_cache(lm)
    kinds = {type(layer) for layer in cache.layers} if cache is not None else {None}
    return looks_everywhere(lm) and kinds == {DynamicLayer}


def _begin(
    lm: Any, ids: Tensor, mask: Tensor, beginning: tuple[Any, int], rows: list[int]
) -> tuple[_Going, Tensor]:
    """Read the prompts of some rows, behind what all begin with; return what is said next too."""
    shared_cache, shared = beginning
    cache, picked = new_cache(lm), torch.tensor(rows, device=ids.device)
    ids, mask = ids[picked], mask[picked]
    if shared:
        for number, layer in enumerate(shared_cache.layers):
            keys, values = (one.expand(len(rows), -1, -1, -1) for one in (layer.keys, layer.values))
            cache.update(keys, values, number)
        starts = mask.long().argmax(-1)
        width = int((mask.shape[1] - starts).max()) - shared
        place = torch.arange(mask.shape[1], device=mask.device)
        # What is in the cache is left out here, and what it may look at stands in front.
        tail = mask * (place >= starts[:, None] + shared)
        head = mask.gather(-1, starts[:, None] + place[:shared])
        ids, mask = ids[:, -width:], torch.cat([head, tail[:, -width:]], -1)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, shared:]
    logits = _next_logits(lm, cache, ids, mask, positions)
    return _Going(list(rows), cache, mask, positions[:, -1:], ids[:, -1]), logits


def _step(lm: Any, going: _Going) -> Tensor:
    """Have rows read what they have said last; return what they say of the next, ``(B, V)``."""
    going.positions = going.positions + 1
    going.mask = torch.cat([going.mask, going.mask.new_ones(len(going.rows), 1)], dim=-1)
    return _next_logits(lm, going.cache, going.newest[:, None], going.mask, going.positions)


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


def _read_shared(lm: Any, ids: Tensor, mask: Tensor) -> tuple[Any, int]:
    """Read what all prompts begin with once.

    Returns:
        Its cache of one row, and its length; 0 where nothing is shared.
    """
    rows = [
        list(zip(row, seen, strict=True))[seen.index(1) :]
        for row, seen in zip(ids.tolist(), mask.tolist(), strict=True)
    ]
    shared = _num_shared(rows)
    # A window is counted in places, padding included, which here would stand in its way.
    if shared < _MIN_SHARED or not looks_everywhere(lm):
        return None, 0
    cache = new_cache(lm)
    head, seen = torch.tensor(rows[0][:shared], device=ids.device).T[:, None]
    _next_logits(lm, cache, head, seen, (seen.cumsum(-1) - 1).clamp(min=0))
    return cache, shared


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
    step = 0
    while rows:
        out = lm(input_ids=ids, attention_mask=mask, use_cache=False)
        newest = choose(out.logits[:, -1], rows, step)
        ids, mask = torch.cat([ids, newest[:, None]], -1), nn.functional.pad(mask, (0, 1), value=1)
        kept, step = _going_on(found, rows, newest, ends, stops, max_new_tokens), step + 1
        rows, ids, mask = [rows[place] for place in kept], ids[kept], mask[kept]
    return found


def _going_on(
    found: list[list[int]],
    rows: Sequence[int],
    newest: Tensor,
    ends: set[int],
    stops: Stops,
    max_new_tokens: int,
) -> list[int]:
    """Add each row's newest token to what is found; return the places of rows that go on."""
    for row, token in zip(rows, newest.tolist(), strict=True):
        found[row].append(token)
    return [
        place
        for place, row in enumerate(rows)
        if len(found[row]) < max_new_tokens and found[row][-1] not in ends and not stops(found[row])
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
