"""Curves in groups that a person reads: which card of TensorBoard a number stands on."""

from __future__ import annotations

import re
from collections.abc import Mapping

__all__ = ["HEADLINES", "card"]

_LOSS = re.compile("loss/(.+)")
_RATE = re.compile("lr-(.+)")
_EVAL = re.compile("eval/(.+)")
#: Group to the numbers on its cards, as patterns of whole names.
_CARDS: Mapping[str, str] = {
    "forgetting": r"forget_quality|neg_log10_forget_quality|forget_d_times_n|forget_probability"
    r"|forget_rougeL_recall|forget_truth_ratio_closer_to_one|verbmem|knowmem_forget"
    r"|extraction_strength|exact_memorisation|forget_still_said",
    "keeping": r"model_utility|retain_probability|retain_rougeL_recall|knowmem_retain"
    r"|utility_drop_target|\w+_accuracy|model_utility_retain_(?:probability|rouge|truth_ratio)",
    "sanity": r"(?:forget|retain|verbmem|knowmem_\w+)_(?:repetition_4|stutter|looped|refusals)",
    "privacy": r"privleak|mia_min_k|mia_loss|privacy_score",
}
#: Numbers that runs are compared by: the metrics of the hparams tab.
HEADLINES: tuple[str, ...] = (
    *("forget_quality", "forget_probability", "forget_still_said", "verbmem", "knowmem_forget"),
    *("model_utility", "retain_probability", "retain_rougeL_recall", "knowmem_retain"),
    *("forget_repetition_4", "retain_repetition_4", "forget_stutter", "retain_stutter"),
    "privleak",
)


def card(name: str, known: bool = True) -> str | None:
    """Return the tag under which a number is shown; None for one that has no card of its own.

    Args:
        name: As it is logged: ``loss/...``, ``weights/...``, ``eval/...``, ``lr-...``.
        known: Whether the catalogue has the number; a number of the user's own always has a card.

    Example:
        >>> card("loss/forget"), card("eval/privleak"), card("eval/forget_distinct_2")
        ('losses/forget', 'privacy/privleak', None)
        >>> card("lr-AdamW/pg1"), card("eval/mine", known=False)
        ('learning rate/AdamW/pg1', 'own/mine')
    """
    if name == "epoch":
        return None  # It says nothing that the steps don't.
    for pattern, group in ((_LOSS, "losses"), (_RATE, "learning rate")):
        found = pattern.fullmatch(name)
        if found:
            return f"{group}/{found[1]}"
    number = _EVAL.fullmatch(name)
    if number is None:
        return name
    for group, pattern_ in _CARDS.items():
        if re.fullmatch(pattern_, number[1]):
            return f"{group}/{number[1]}"
    return None if known else f"own/{number[1]}"
