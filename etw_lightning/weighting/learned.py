"""Weights that are learnt while the model forgets."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jsonargparse.typing import ClosedUnitInterval, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from etw_lightning.kernels.signals import Counts, Signal, TokenSignals
from etw_lightning.value_checks import check_number, check_whole
from etw_lightning.weighting.interface import TokenWeighting

__all__ = ["ATWU"]

#: Scores are held off 0 and 1 by this in the penalty's logarithms, as in the authors' code.
_EDGE = 1e-6


@dataclass(frozen=True)
class ATWU(TokenWeighting):
    """Weigh each token by a score that is learnt from the model's own states, and by saturation.

    ``w_i = g_i * p_i^(beta g_i)`` with ``g_i = sigmoid(v . h_i + c)``, h the state that the output
    head reads where the label itself is the input, p the label's probability: a token is left alone
    once it is unlikely, the sooner the higher its score. v and c begin at 0, so that all scores are
    1/2; at every ``every``-th step they make one of their own, by SGD (momentum .9, decay 1e-4, a
    gradient no longer than 1, a rate that falls to 0), against ``importance_loss``: gradient ascent
    with these weights, averaged over tokens, and penalties that want scores near 0 or 1, a share
    ``budget`` of each row's above 1/2, and small numbers. With ``forget: GA`` and ``reduction:
    token`` the model minimises the same, in turns; with others the scorer learns as if it did.

    Source: Yuce et al. 2026, arXiv:2606.06320, alternating token-weighted unlearning, as a working
        copy of one author's has it (giorgosnikolaou/open-unlearning at d8eba63: the trainer
        SelfBalancingGradDiff with ScorerTrainerSBGradDiff, and the numbers of its scripts). Of the
        paper no more than its first section could be read; the copy holds further versions, such as
        one where p's exponent is beta alone.
    Differs from it: the scorer steps when a step's weights have been used, there before, which
        micro-batches of one step would tell apart; means are over the effective batch.

    Args:
        beta: Exponent of the saturation, >= 0; 0 leaves it out.
        budget: Share of a row's tokens whose score should be above 1/2.
        budget_weight: Weight of that penalty, >= 0.
        entropy_weight: Weight of the mean binary entropy of the scores, >= 0.
        ridge: Weight of the sum of squares of v and c, >= 0.
        rate: Learning rate of v and c, > 0.
        every: Optimiser steps from one step of v and c to the next.

    Raises:
        ValueError: If a number is out of its range or not finite.

    Example:
        >>> token, half = torch.tensor([0]), torch.tensor([0.5])
        >>> signals = TokenSignals(token, token, 1, half.log(), importances=half)
        >>> ATWU(beta=2.0)(signals)
        tensor([0.2500])
    """

    beta: NonNegativeFloat = 5.0
    budget: ClosedUnitInterval = 0.2
    budget_weight: NonNegativeFloat = 10.0
    entropy_weight: NonNegativeFloat = 1.0
    ridge: NonNegativeFloat = 1.0
    rate: PositiveFloat = 0.05
    every: PositiveInt = 5

    def __post_init__(self) -> None:
        for name in ("beta", "budget_weight", "entropy_weight", "ridge"):
            check_number(f"model.weighting: ATWU.{name}", getattr(self, name), zero=True)
        check_number("model.weighting: ATWU.rate", self.rate)
        check_whole("model.weighting: ATWU.every", self.every, least=1)
        if not 0 <= self.budget <= 1:
            raise ValueError(
                f"model.weighting: ATWU.budget must be from 0 to 1; got {self.budget}."
            )

    @property
    def needs(self) -> frozenset[Signal]:
        """The scores, and the states that they are made of."""
        return frozenset({"states", "importances"})

    @property
    def layers(self) -> tuple[int, ...]:
        """What the output head reads."""
        return (-1,)

    @property
    def learned(self) -> ATWU:
        """Itself."""
        return self

    def __call__(self, signals: TokenSignals) -> Tensor:
        """Return g * p^(beta g), in [0, 1], ``(N,)``."""
        assert signals.importances is not None
        scores = signals.importances.detach()
        return scores * (self.beta * scores * signals.logps.detach().clamp(max=0)).exp()

    def importance_loss(self, scores: Tensor, signals: TokenSignals, counts: Counts) -> Tensor:
        """Return a micro-batch's share of what the scorer minimises, but for the squares.

        Args:
            scores: With their gradient, ``(N,)``.
            signals: Of the forget rows.
            counts: Of the effective batch's forget rows.

        Returns:
            Scalar.
        """
        # A probability of 0 has an infinite loss, of which the saturation leaves nothing.
        losses = -signals.logps.detach().clamp(min=torch.finfo(scores.dtype).min / 2, max=0)
        weighted = losses * scores
        forget = -(weighted * (-self.beta * weighted).exp().detach()).sum()
        held = scores.clamp(_EDGE, 1 - _EDGE)
        entropies = -(held * held.log() + (1 - held) * (1 - held).log()).sum()
        # The share above 1/2 has no slope; it takes that of the scores.
        chosen = (scores > 0.5).to(scores) - scores.detach() + scores
        sizes = signals.row_counts()
        shares = signals.row_sums(chosen) / sizes.clamp(min=1)
        misses = ((shares - self.budget).square() * (sizes > 0)).sum()
        of_tokens = (forget + self.entropy_weight * entropies) / max(counts.tokens, 1)
        return of_tokens + self.budget_weight * misses / max(counts.rows, 1)
