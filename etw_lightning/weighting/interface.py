"""What a token weighting is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from torch import Tensor

from etw_lightning.kernels.shown import Shown
from etw_lightning.kernels.signals import Signal, TokenSignals

if TYPE_CHECKING:
    from etw_lightning.weighting.learned import ATWU

__all__ = ["TokenWeighting"]


class TokenWeighting(Shown, ABC):
    """One weight for each labelled token of the forget rows."""

    @property
    def needs(self) -> frozenset[Signal]:
        """Signals the weighting reads besides ``logps``."""
        return frozenset()

    @property
    def entropy_temperature(self) -> float | None:
        """Temperature of the entropies the weighting reads; None if it reads none."""
        return None

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers whose ``states`` the weighting reads, from 0; -1 is what the output head reads."""
        return ()

    @property
    def learned(self) -> ATWU | None:
        """What is learnt while the model forgets, where the weighting reads ``importances``."""
        return None

    @property
    def marker(self) -> tuple[str, str] | None:
        """What marks words, where the weighting reads ``marked``: ``(kind, spaCy model)``.

        None takes the words of ``data.annotations``.
        """
        return None

    @abstractmethod
    def __call__(self, signals: TokenSignals) -> Tensor:
        """Return the weights, >= 0, detached, ``(N,)``."""
