"""How far a model is from the retain model, over all that is measured of both."""

from __future__ import annotations

from collections.abc import Mapping

from etw_lightning.metrics.values import mean_of
from etw_lightning.schema import InputError

__all__ = ["COLUMNS", "retain_distance"]

#: The numbers of each group, as ``results.json`` names them.
COLUMNS: Mapping[str, tuple[str, ...]] = {
    "forgotten": (
        *("forget_d_times_n", "forget_probability", "forget_rougeL_recall", "extraction_strength"),
    ),
    "kept": ("model_utility", "retain_probability"),
    "sane": ("forget_repetition_4", "retain_repetition_4"),
    "private": ("privleak",),
}


def retain_distance(
    run: Mapping[str, float], retain: Mapping[str, float], target: Mapping[str, float]
) -> dict[str, float]:
    """Distance to the retain model, group by group; the score is the mean of the groups.

    Formula: the mean over the group's numbers x of
        forgotten (D*n of forget quality, forget probability, forget ROUGE-L recall, extraction
        strength): min(1, abs(x - x_retain) / abs(x_target - x_retain));
        kept (model utility, retain probability): min(1, abs(x - x_retain) / x_retain);
        sane (repeated 4-grams of forget and of retain answers): abs(x - x_retain);
        private (privleak): min(1, abs(x) / 100).
    Unit: fraction.
    Range: 0 for the retain model, to 1; the target model has about 1 in ``forgotten``, a model
        that says nothing any more about 1 in ``kept`` and in ``forgotten`` what its zeros are off.
    Direction: down. Both sides count: what was forgotten beyond the retain model is as far as what
        was not forgotten.
    Empty input: a group of which one of the three lacks a number is left out.
    Source: derived; the retain model as the one goal is TOFU's (arXiv:2401.06121) for forget
        quality and MUSE's (arXiv:2407.06460) for privacy.
    Differs from widely used code: there is none. A run half way in all four of ``forgotten``, .54
        of a utility of .6 and .9 of .9, repetition .2 and 0 against 0, privleak 30 has .5, .05,
        .1 and .3, and so 0.2375.

    Args:
        run: The model's numbers by name.
        retain: The retain model's.
        target: The target model's.

    Raises:
        InputError: If target and retain model agree in a number of ``forgotten``, or the retain
            model keeps nothing: there is nothing to scale by.

    Example:
        >>> said = {"forget_repetition_4": 0.2, "retain_repetition_4": 0.0}
        >>> retain_distance(said, dict.fromkeys(said, 0.0), {})
        {'sane': 0.1}
    """
    scales = {
        "forgotten": lambda name: abs(target[name] - retain[name]),
        "kept": lambda name: retain[name],
        "sane": lambda _: 1.0,
        "private": lambda _: 100.0,
    }
    found: dict[str, float] = {}
    for group, names in COLUMNS.items():
        # Privleak is a distance to the retain model already.
        goal = dict.fromkeys(names, 0.0) if group == "private" else retain
        needed = [run, goal, *([target] if group == "forgotten" else [])]
        if not all(name in one for one in needed for name in names):
            continue
        shares = []
        for name in names:
            scale = scales[group](name)
            if not scale > 0:
                raise InputError(
                    f"distance to the retain model: {name} has nothing to scale by: it is "
                    f"{retain[name]} of the retain model, {target.get(name)} of the target model."
                )
            shares.append(min(1.0, abs(run[name] - goal[name]) / scale))
        found[group] = mean_of(shares)
    return found
