"""The numbers that attacks make: their pages, for ``explain`` and the manual.

They are computed from several answers to one question, or from a number before and under an attack:
``evaluate`` asks each question once, so that they are no entries of the catalogue's own listing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from etw_lightning import metrics
from etw_lightning.metrics import recovery

__all__ = ["OF_ATTACKS", "OfAttacks", "attack_metric_of"]


@dataclass(frozen=True)
class OfAttacks:
    """One metric that attacks make.

    Args:
        pages: Functions whose docstrings say what the numbers are, the metric's own first.
        emits: Names of the numbers; ``{set}`` stands for forget or retain, ``{k}`` for a count.
        attacks: Names of the attacks that make them.
    """

    pages: tuple[Callable[..., Any], ...]
    emits: tuple[str, ...]
    attacks: tuple[str, ...]

    def gives(self, name: str) -> bool:
        """Tell whether it makes a number of this name."""
        forms = (re.escape(one).replace(r"\{set\}", "(forget|retain)") for one in self.emits)
        return any(re.fullmatch(one.replace(r"\{k\}", "[0-9]+"), name) for one in forms)


#: By name, in the order of the manual.
OF_ATTACKS: Mapping[str, OfAttacks] = {
    "leak_at_k": OfAttacks(
        (metrics.leakage, metrics.leak_at_k, metrics.expected_highest),
        ("{set}_leak_at_{k}", "{set}_rouge_at_{k}"),
        ("sample",),
    ),
    "refusal_stability": OfAttacks(
        (metrics.refusal_stability,),
        ("{set}_refusal_stability",),
        ("sample", "best_wording"),
    ),
    "refusal_agreement": OfAttacks(
        (metrics.refusal_agreement,),
        ("{set}_refusal_agreement",),
        ("sample", "best_wording"),
    ),
    "recovered_share": OfAttacks(
        (recovery.recovered_share,), ("recovered", "recovered_by_retain"), ("every one",)
    ),
    "robustness": OfAttacks(
        (
            recovery.robustness,
            recovery.relearning_robustness,
            recovery.quantisation_robustness,
        ),
        ("robustness",),
        ("relearn", "nf4", "int8", "gguf_q4", "gguf_q8"),
    ),
}


def attack_metric_of(name: str) -> str | None:
    """Return the metric of attacks that a name is, or that gives a number of this name.

    Example:
        >>> attack_metric_of("forget_leak_at_16"), attack_metric_of("forget_probability")
        ('leak_at_k', None)
    """
    if name in OF_ATTACKS:
        return name
    return next((metric for metric, one in OF_ATTACKS.items() if one.gives(name)), None)
