"""The parts of an evaluation set that are scored, stored and read apart from one another."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import get_args

from etw_lightning.catalogue.entries import Part
from etw_lightning.schema import EvalSet

__all__ = ["PARTS", "parts_of", "with_parts"]

#: All there are, in the order they are scored in.
PARTS: tuple[Part, ...] = get_args(Part)


def parts_of(eval_set: EvalSet) -> tuple[Part, ...]:
    """Return what is to be scored of a set.

    Example:
        >>> parts_of(EvalSet("forget", (), max_new_tokens=3))
        ('answers', 'generation')
    """
    asked = {
        "answers": eval_set.losses,
        "generation": eval_set.max_new_tokens > 0,
        "gradient_norm": eval_set.gradient_norm,
    }
    return tuple(part for part in PARTS if asked[part])


def with_parts(eval_set: EvalSet, parts: Collection[Part]) -> EvalSet:
    """Return a set of which only some parts are scored.

    What the benchmark does not offer of a set stays off; gradient norms every set can have.

    Example:
        >>> parts_of(with_parts(EvalSet("forget", ()), ["generation", "gradient_norm"]))
        ('gradient_norm',)
    """
    generates = "generation" in parts
    return replace(
        eval_set,
        losses=eval_set.losses and "answers" in parts,
        gradient_norm="gradient_norm" in parts,
        max_new_tokens=eval_set.max_new_tokens if generates else 0,
        stop_strings=eval_set.stop_strings if generates else (),
    )
