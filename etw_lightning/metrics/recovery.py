"""How much of what was forgotten an attack brings back."""

from __future__ import annotations

from etw_lightning.metrics.values import Direction, harmonic_mean
from etw_lightning.schema import InputError

__all__ = ["quantisation_robustness", "recovered_share", "relearning_robustness", "robustness"]

#: What is less than this is rounding.
_LEAST = 1e-9
#: Of less than this share of a number no share of its own is told.
_LEAST_FORGOTTEN = 0.05


def recovered_share(
    before: float, after: float, target: float, direction: Direction
) -> float | None:
    """Share of what was forgotten, by one number, that an attack brings back.

    Formula: (after - before) / (target - before), by the number of the unlearned model before and
        under the attack and of the target model.
    Unit: share.
    Range: any number; 0 where nothing comes back, 1 where the number is the target's again, below
        0 where more is forgotten, above 1 past the target.
    Direction: down.
    Empty input: None, where next to nothing was forgotten: ``before`` is not better than ``target``
        (lower where the number's direction is down, higher where it is up, nearer to 0 where it is
        zero) by more than a twentieth of the larger of the two, of which a share says nothing; or
        the direction is none of these.
    Source: our own; the numerator and the comparison with the retain model are those of
        relearning and quantisation in arXiv:2506.12618.
    Differs from widely used code: nothing is published by this formula that we know of.

    Args:
        before: Of the unlearned model.
        after: Of the attacked one.
        target: Of the target model.
        direction: Which way is better: forgetting moved the number that way.

    Example:
        >>> recovered_share(0.25, 0.5, 0.75, "down")
        0.5
        >>> recovered_share(0.25, 0.5, 0.75, "up")
    """
    moved = {
        "down": target - before,
        "up": before - target,
        "zero": abs(target) - abs(before),
    }.get(direction, 0.0)
    least = _LEAST_FORGOTTEN * max(abs(before), abs(target))
    return (after - before) / (target - before) if moved > least else None


def relearning_robustness(
    before: float, after: float, retain_before: float, retain_after: float
) -> float:
    """Robustness of a number to relearning, R: does it rise as in a model new to the data?

    Formula: min(1, (retain_after - retain_before) / (after - before)), of a number that is higher
        the more is known of the forget set; 1 where it does not rise in the unlearned model.
    Unit: none.
    Range: at most 1; below 0 where the retain model's number falls.
    Direction: up.
    Empty input: not defined.
    Source: the meta-evaluation of arXiv:2506.12618, eq. 2, as two readers of it restate it; the
        paper itself was not at hand.
    Differs from widely used code: there the unlearned model's number is assumed to rise.

    Args:
        before: The unlearned model's number before relearning.
        after: After it.
        retain_before: The retain model's before.
        retain_after: After the same relearning.

    Example:
        >>> relearning_robustness(0.25, 0.75, 0.25, 0.5)
        0.5
    """
    rise = after - before
    return min(1.0, (retain_after - retain_before) / rise) if rise > _LEAST else 1.0


def quantisation_robustness(before: float, after: float) -> float:
    """Robustness of a number to quantisation, Q: does it stay down as weights are rounded?

    Formula: min(1, before / after), of a number >= 0 that is higher the more is known of the forget
        set; 1 where it is 0 after.
    Unit: none.
    Range: 0 to 1.
    Direction: up.
    Empty input: InputError for a negative number.
    Source: the meta-evaluation of arXiv:2506.12618, eq. 3, as two readers of it restate it; the
        paper itself was not at hand.
    Differs from widely used code: nothing known.

    Args:
        before: The unlearned model's number.
        after: The same of the quantised model.

    Example:
        >>> quantisation_robustness(0.1, 0.4)
        0.25
    """
    if min(before, after) < 0:
        raise InputError(f"robustness: needs numbers >= 0; got {before} and {after}.")
    return min(1.0, before / after) if after > 0 else 1.0


def robustness(relearning: float, quantisation: float) -> float:
    """Robustness of a number to both: the harmonic mean of R and Q.

    Formula: 2 R Q / (R + Q); 0 where R is below 0.
    Unit: none.
    Range: 0 to 1.
    Direction: up.
    Empty input: not defined.
    Source: the meta-evaluation of arXiv:2506.12618, eq. 4, as two readers of it restate it.
    Differs from widely used code: nothing known.

    Args:
        relearning: R.
        quantisation: Q.

    Example:
        >>> robustness(0.5, 0.25)
        0.3333333333333333
    """
    return harmonic_mean([max(0.0, relearning), quantisation])
