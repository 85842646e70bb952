"""How long scored rows are: the room that they need, and what of their answers is cut off."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from etw_lightning.data.answer_rows import numbers_of
from etw_lightning.data.encode import Encoder
from etw_lightning.data.encode_many import encode_each
from etw_lightning.data.lost_labels import LostLabels, percent
from etw_lightning.data.stored_rows import sizes
from etw_lightning.notices import warn_first
from etw_lightning.schema import EvalSet, Example
from etw_lightning.scoring.answers import answers_of, kept_answers

__all__ = ["room_for", "tell_lost_scored"]

#: Tokens beside those of a text's bytes: a begin and an end token, a space in front, with room.
_BESIDE = 32


def room_for(eval_sets: Iterable[EvalSet], encoder: Encoder) -> tuple[int, int]:
    """Return a length at which every prompt that is scored leaves room for its answer.

    The encoder's own where it does; else that, doubled as often as the rows need that it has no
    room for. So one length stands for sets of about the same rows, and a run that was possible
    without stays what it was.

    Args:
        eval_sets: What is scored.
        encoder: As of ``data.max_length``.

    Returns:
        The length, and the tokens of the longest prompt without room; 0 if there is none.
    """
    found = []
    # Prompts that are only continued are never cut.
    for eval_set in (one for one in eval_sets if one.losses or one.gradient_norm):
        for example in eval_set.examples:
            if example.question is None or _fits(encoder.prompt(example), encoder):
                continue
            num_asked = len(encoder.encode_prompt(example))
            if num_asked >= encoder.max_length:
                found.append(
                    (num_asked, max(encoder.num_tokens(example, one) for one in _said(example)))
                )
    length = encoder.max_length
    if not found:
        return length, 0
    longest, needed = map(max, zip(*found, strict=True))
    while length < needed:
        length *= 2
    return length, longest


def tell_lost_scored(eval_set: EvalSet, encoder: Encoder) -> LostLabels | None:
    """Return what the answers of a set lose to ``max_length``, and warn of it.

    Raw texts are meant to be cut, and not warned of.

    Args:
        eval_set: What is scored.
        encoder: What encodes it.

    Raises:
        InputError: If a row has no label left.
    """
    if not eval_set.losses or all(
        _fits(f"{encoder.prompt(example)}{answer}", encoder)
        for example in eval_set.examples
        for answer in _said(example)
    ):
        return None
    lost = _lost(eval_set, encoder)
    if lost is None:
        return None
    if any(example.question is not None for example in eval_set.examples):
        warn_first(
            f"{eval_set.name}: answers of {lost.rows} of {lost.of_rows} rows are cut by "
            f"{encoder.length_key} = {encoder.max_length}: {lost.labels} labels "
            f"({percent(lost.share)} %) are lost, and what is left is scored. Raise it to score "
            "them whole."
        )
    return lost


def _lost(eval_set: EvalSet, encoder: Encoder) -> LostLabels | None:
    """Return what the answers of a set lose, counted by examples; None for nothing."""
    examples = eval_set.examples
    ids = [example.id for example in examples]
    kept = kept_answers(eval_set, encoder)
    if kept is not None:
        num_lost, num_labels = (numbers_of(kept, name) for name in ("num_lost", "num_labels"))
        return LostLabels.counted(num_lost, num_labels, numbers_of(kept, "number"), ids)
    pairs = [(number, text) for number, one in enumerate(examples) for text in _said(one)]
    rows = encode_each([examples[one] for one, _ in pairs], encoder, [text for _, text in pairs])
    numbers = np.array([number for number, _ in pairs])
    counted = sizes(rows)
    return LostLabels.counted(counted.num_lost, counted.num_labels, numbers, ids)


def _said(example: Example) -> list[str]:
    """Return all answers that are scored of an example."""
    return [text for _, _, text in answers_of(example)]


def _fits(text: str, encoder: Encoder) -> bool:
    """Tell whether a text surely has room, without its tokens: each has a byte at least."""
    return len(text.encode("utf-8", "surrogatepass")) + _BESIDE < encoder.max_length
