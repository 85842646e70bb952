"""Forget objectives: what pushes the forget set down."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from etw_lightning.signals import Level, Signal, TokenSignals

__all__ = ["GA", "ForgetObjective"]


class ForgetObjective(ABC):
    """The forget term: minimised, averaged over the effective batch by the module."""

    #: Signals the objective reads besides ``logps``.
    needs: ClassVar[frozenset[Signal]] = frozenset()
    #: What one term stands for.
    level: ClassVar[Level] = "token"

    @abstractmethod
    def __call__(self, signals: TokenSignals, weights: Tensor) -> Tensor:
        """Return the terms to average: ``(N,)`` for tokens or ``(num_rows,)`` for sequences.

        Args:
            signals: Signals of the forget rows.
            weights: Token weights, detached, ``(N,)``.
        """


@dataclass(frozen=True)
class GA(ForgetObjective):
    """Gradient ascent: minimise the weighted log-likelihood of the forget tokens.

    The term of a token is ``w_i * log p(y_i | y_<i, x)``. With ``ETW`` weights this is the
    forget loss of the paper, with ``Uniform`` weights plain gradient ascent.

    Source: Koh et al. 2026, arXiv:2604.17785; Jang et al. 2023, arXiv:2210.01504 (unweighted).
    Differs from it: nothing; how terms are averaged over a batch is not published and is the
    module's ``reduction``.
    """

    def __call__(self, signals: TokenSignals, weights: Tensor) -> Tensor:
        """Return ``weights * logps``, nats, ``(N,)``."""
        return weights * signals.logps
