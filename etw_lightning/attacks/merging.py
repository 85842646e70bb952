"""Merging: weights between the attacked model's and the target model's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from etw_lightning.attacks.interface import Attack, Subject
from etw_lightning.schema import InputError

if TYPE_CHECKING:
    from etw_lightning.attacks.attacked_run import AttackedRun

__all__ = ["Merge"]


@dataclass(frozen=True)
class Merge(Attack):
    """Go part of the way back: (1 - share) times the model's weights plus share times the target's.

    Of the retain model too: what comes of merging a model with the target that never knew the data
    is what the target brings by itself.

    Source: Wortsman et al. 2021, arXiv:2109.01903, interpolate so between fine-tuned and first
        weights.
    Differs from it: nothing but the models.

    Args:
        share: The target's share, from 0 to 1.

    Raises:
        InputError: If ``share`` is out of range.
    """

    share: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise InputError(f"attack.share must be from 0 to 1; got {self.share}.")

    def check(self, run: AttackedRun) -> None:
        """Refuse a run whose target model is not there."""
        run.check_model("target")

    @torch.no_grad()
    def change_model(self, subject: Subject) -> Any:
        """Return the model, merged in place."""
        target = dict(subject.run.load("target").named_parameters())
        mine = dict(subject.lm.named_parameters())
        unlike = [name for name in {**mine, **target} if _shape(mine, name) != _shape(target, name)]
        if unlike:
            raise InputError(
                f"attack: the target model and the {subject.who} model can't be merged: "
                f"{unlike[0]} is {_shape(target, unlike[0])} there and "
                f"{_shape(mine, unlike[0])} here."
            )
        for name, weight in mine.items():
            theirs = target[name].to(weight.device, weight.dtype)
            weight.copy_((1 - self.share) * weight + self.share * theirs)
        return subject.lm


def _shape(weights: dict[str, Any], name: str) -> tuple[int, ...] | None:
    return tuple(weights[name].shape) if name in weights else None
