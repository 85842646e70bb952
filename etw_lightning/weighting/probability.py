"""Weights by the label's probability p.

All are computed from log-probabilities, so that neither p = 0 nor p = 1 gives infinities or NaN.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jsonargparse.typing import NonNegativeFloat, PositiveFloat
from torch import Tensor

from etw_lightning.kernels.signals import Signal, TokenSignals
from etw_lightning.value_checks import check_number
from etw_lightning.weighting.interface import TokenWeighting
from etw_lightning.weighting.within_rows import Scope, share_out

__all__ = ["TNPO", "WGA", "WTNPO", "SatImp", "Surprisal"]


@dataclass(frozen=True)
class WGA(TokenWeighting):
    """Weigh each token by a power of its probability: what is forgotten is left alone.

    ``w_i = p_i^beta``, so that weights are in [0, 1].

    Source: Wang et al. 2025, arXiv:2502.19301, weighted gradient ascent; beta 1 or 5.
    Differs from it: nothing.

    Args:
        beta: Exponent, >= 0; 0 is gradient ascent.

    Raises:
        ValueError: If ``beta`` is negative or not finite.

    Example:
        >>> token = torch.tensor([0])
        >>> WGA(beta=2.0)(TokenSignals(token, token, 1, torch.tensor([0.5]).log()))
        tensor([0.2500])
    """

    beta: NonNegativeFloat = 1.0

    def __post_init__(self) -> None:
        check_number("model.weighting: WGA.beta", self.beta, zero=True)

    def __call__(self, signals: TokenSignals) -> Tensor:
        """Return p^beta, ``(N,)``."""
        return _log_power(_logps(signals), self.beta).exp()


@dataclass(frozen=True)
class TNPO(TokenWeighting):
    """Weigh each token by how likely it still is beside the reference: NPO's weight, per token.

    ``w_i = 2 p_i^beta / (p_i^beta + ref_i^beta)``, ``ref_i`` the label's probability under the
    target model. Weights are in [0, 2]; 1 where the two models agree.

    Source: Wang et al. 2025, arXiv:2502.19301, token-wise NPO; beta 4.
    Differs from it: nothing; the weight is what that objective's gradient gives the token.

    Args:
        beta: Inverse temperature, > 0.

    Raises:
        ValueError: If ``beta`` is not positive or not finite.

    Example:
        >>> token, half = torch.tensor([0]), torch.tensor([0.5]).log()
        >>> TNPO(beta=1.0)(TokenSignals(token, token, 1, half, reference_logps=half))
        tensor([1.])
    """

    beta: PositiveFloat = 4.0

    def __post_init__(self) -> None:
        check_number("model.weighting: TNPO.beta", self.beta)

    @property
    def needs(self) -> frozenset[Signal]:
        """The target model's log-probabilities."""
        return frozenset({"reference_logps"})

    def __call__(self, signals: TokenSignals) -> Tensor:
        """Return 2 p^beta / (p^beta + ref^beta), ``(N,)``."""
        return _beside_reference(signals, self.beta)


@dataclass(frozen=True)
class WTNPO(TokenWeighting):
    """TNPO's weight times a power of the probability.

    ``w_i = 2 p_i^(beta + alpha) / (p_i^beta + ref_i^beta)``, in [0, 2].

    Source: Wang et al. 2025, arXiv:2502.19301, weighted token-wise NPO; beta 4, alpha 1.5.
    Differs from it: nothing.

    Args:
        beta: Inverse temperature, > 0.
        alpha: Exponent of the further factor, >= 0; 0 is TNPO.

    Raises:
        ValueError: If ``beta`` is not positive, ``alpha`` negative, or either not finite.
    """

    beta: PositiveFloat = 4.0
    alpha: NonNegativeFloat = 1.5

    def __post_init__(self) -> None:
        check_number("model.weighting: WTNPO.beta", self.beta)
        check_number("model.weighting: WTNPO.alpha", self.alpha, zero=True)

    @property
    def needs(self) -> frozenset[Signal]:
        """The target model's log-probabilities."""
        return frozenset({"reference_logps"})

    def __call__(self, signals: TokenSignals) -> Tensor:
        """Return p^alpha times TNPO's weight, ``(N,)``."""
        factor = _log_power(_logps(signals), self.alpha).exp()
        return factor * _beside_reference(signals, self.beta)


@dataclass(frozen=True)
class SatImp(TokenWeighting):
    """Weigh each token by saturation (how likely it is) times importance (how unlikely it is).

    ``w_i = p_i^beta1 * (1 - p_i)^beta2``, in [0, 1]. ``Sat`` is ``beta2`` = 0, which is WGA;
    ``Imp`` is ``beta1`` = 0; with both 0 all tokens weigh 1.

    Source: Yang et al. 2025, arXiv:2505.11953; beta1 5 with beta2 .1 or 1.
    Differs from it: nothing.

    Args:
        beta1: Exponent of p, >= 0.
        beta2: Exponent of 1 - p, >= 0.

    Raises:
        ValueError: If a number is negative or not finite.

    Example:
        >>> token = torch.tensor([0])
        >>> SatImp(beta1=2.0, beta2=1.0)(TokenSignals(token, token, 1, torch.tensor([0.5]).log()))
        tensor([0.1250])
    """

    beta1: NonNegativeFloat = 5.0
    beta2: NonNegativeFloat = 0.1

    def __post_init__(self) -> None:
        check_number("model.weighting: SatImp.beta1", self.beta1, zero=True)
        check_number("model.weighting: SatImp.beta2", self.beta2, zero=True)

    def __call__(self, signals: TokenSignals) -> Tensor:
        """Return p^beta1 * (1 - p)^beta2, ``(N,)``."""
        logps = _logps(signals)
        rests = (-logps.expm1()).log()
        return (_log_power(logps, self.beta1) + _log_power(rests, self.beta2)).exp()


@dataclass(frozen=True)
class Surprisal(TokenWeighting):
    """Weigh each token by its own loss: what ETW would be if it saw the label alone.

    ``w_i = n * s_i / sum_j s_j`` with ``s_i = -log p_i``, n the sequence's labelled tokens. The
    entropy is the mean of -log p over what the model expects; this is its value for the label.

    Source: none; a control for ETW, normalised as ETW is.
    Differs from it: does not apply; a sequence whose tokens are all certain is uniform.

    Args:
        normalise: What n and the sum are of: each ``sequence``, or the ``batch``: the tokens of
            one micro-batch of one process. With ``batch`` the weights depend on how the effective
            batch is split and on which rows meet in it.

    Example:
        >>> rows = torch.tensor([0, 0])
        >>> Surprisal()(TokenSignals(rows, rows, 1, torch.tensor([-1.0, -3.0])))
        tensor([0.5000, 1.5000])
    """

    normalise: Scope = "sequence"

    def __call__(self, signals: TokenSignals) -> Tensor:
        """Return n * -log p / sum(-log p), ``(N,)``."""
        return share_out(_logps(signals).abs(), signals, self.normalise)


def _logps(signals: TokenSignals) -> Tensor:
    """Return label log-probabilities, detached; rounding may have put one a hair above 0."""
    return signals.logps.detach().clamp(max=0)


def _log_power(logs: Tensor, exponent: float) -> Tensor:
    """Return ``log(x^exponent)`` of log x; x^0 is 1 also for x = 0."""
    return exponent * logs if exponent else torch.zeros_like(logs)


def _beside_reference(signals: TokenSignals, beta: float) -> Tensor:
    """Return 2 p^beta / (p^beta + ref^beta), ``(N,)``: 2 sigmoid of the log-ratio."""
    assert signals.reference_logps is not None
    logps, reference = _logps(signals), signals.reference_logps.detach().clamp(max=0)
    # Two probabilities of 0 are equal, though the difference of their logarithms is no number.
    ratios = torch.where(logps == reference, torch.zeros_like(logps), logps - reference)
    return 2 * torch.sigmoid(beta * ratios)
