"""Forget objectives of label log-probabilities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from jsonargparse.typing import NonNegativeFloat, PositiveFloat
from torch import Tensor
from torch.nn.functional import logsigmoid

from etw_lightning.forget.interface import ForgetObjective
from etw_lightning.kernels.signals import Level, Signal, TokenSignals
from etw_lightning.value_checks import check_number

__all__ = ["GA", "NPO", "IdkNLL", "SimNPO", "preference_terms"]


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


@dataclass(frozen=True)
class NPO(ForgetObjective):
    """Push the likelihood of each forget answer below that of the target model.

    The term of a sequence is ``-2 / beta * log sigmoid(-beta * sum_i w_i (log p_i - log r_i))``,
    ``p`` the trained model's and ``r`` the target model's probability of token i. It is
    ``2 / beta * ln 2`` where the two agree and falls to 0.

    Source: Zhang et al. 2024, arXiv:2404.05868, the NPO loss, where all weights are 1.
    Differs from it: nothing; a sequence without labelled tokens has no term.

    Args:
        beta: Inverse temperature, > 0; near 0 the gradient is that of the sequence's weighted
            log-likelihood, so of gradient ascent.

    Raises:
        ValueError: If ``beta`` is not a positive number.

    Example:
        >>> import torch
        >>> start = torch.tensor([-1.0, -3.0])
        >>> signals = TokenSignals(
        ...     labels=torch.tensor([5, 6]),
        ...     rows=torch.tensor([0, 0]),
        ...     num_rows=1,
        ...     logps=start,
        ...     reference_logps=start,
        ... )
        >>> NPO(beta=1.0)(signals, torch.ones(2))
        tensor([1.3863])
    """

    level: ClassVar[Level] = "sequence"

    beta: PositiveFloat = 0.1

    def __post_init__(self) -> None:
        check_number("model.forget.beta", self.beta)

    @property
    def needs(self) -> frozenset[Signal]:
        """The target model's label log-probabilities."""
        return frozenset({"reference_logps"})

    def __call__(self, signals: TokenSignals, weights: Tensor) -> Tensor:
        """Return the loss of each sequence, nats, >= 0, ``(num_rows,)``."""
        assert signals.reference_logps is not None
        ratios = signals.row_sums(weights * (signals.logps - signals.reference_logps))
        return preference_terms(-self.beta * ratios, self.beta, signals)


@dataclass(frozen=True)
class SimNPO(ForgetObjective):
    """Push the mean log-likelihood of each forget answer down, with no reference.

    The term of a sequence with n labelled tokens is
    ``-2 / beta * log sigmoid(-beta / n * sum_i w_i log p_i - delta)``.

    Source: Fan et al. 2024, arXiv:2410.07163, the SimNPO loss, where all weights are 1.
    Differs from it: nothing; a sequence without labelled tokens has no term. The authors' code,
    and OpenUnlearning after it, has ``beta * delta`` in place of ``delta``: give ``delta`` as the
    product to repeat their runs; equal at ``delta`` 0, the default of all. Their n is one more
    where a row's first token, which nothing predicts, is labelled (raw text).

    Args:
        beta: Inverse temperature, > 0.
        delta: Reward margin, >= 0 (the paper's gamma): the larger, the further the likelihood
            has to fall before the gradient fades.

    Raises:
        ValueError: If ``beta`` is not a positive number or ``delta`` is negative.

    Example:
        >>> import torch
        >>> signals = TokenSignals(
        ...     labels=torch.tensor([5, 6]),
        ...     rows=torch.tensor([0, 0]),
        ...     num_rows=1,
        ...     logps=torch.tensor([0.0, 0.0]),
        ... )
        >>> SimNPO(beta=2.0)(signals, torch.ones(2))
        tensor([0.6931])
    """

    level: ClassVar[Level] = "sequence"

    beta: PositiveFloat = 4.5
    delta: NonNegativeFloat = 0.0

    def __post_init__(self) -> None:
        check_number("model.forget.beta", self.beta)
        check_number("model.forget.delta", self.delta, zero=True)

    def __call__(self, signals: TokenSignals, weights: Tensor) -> Tensor:
        """Return the loss of each sequence, nats, >= 0, ``(num_rows,)``."""
        sums = signals.row_sums(weights * signals.logps)
        means = sums / signals.row_counts().clamp(min=1)
        return preference_terms(-self.beta * means - self.delta, self.beta, signals)


@dataclass(frozen=True)
class IdkNLL(ForgetObjective):
    """Train on the second answers, refusals as a rule, instead of away from the forget answers.

    The term of a token of the second answer is ``-log p(a_i | a_<i, x)``. There are no forget
    tokens in it, hence no weights.

    Source: Maini et al. 2024, arXiv:2401.06121, preference optimisation ("IDK").
    Differs from it: the authors' code takes one mean over the tokens of refusals and retain
    answers together; here each term is a mean of its own, so that short refusals weigh as much.
    """

    group: ClassVar[Literal["forget", "alternative"]] = "alternative"
    takes_weights: ClassVar[bool] = False

    @property
    def needs(self) -> frozenset[Signal]:
        """The second answers."""
        return frozenset({"alternative"})

    def __call__(self, signals: TokenSignals, weights: Tensor) -> Tensor:
        """Return ``-logps`` of the second answers' tokens, nats, ``(M,)``."""
        assert signals.alternative is not None
        return -signals.alternative.logps


def preference_terms(margins: Tensor, beta: float, signals: TokenSignals) -> Tensor:
    """Return ``-2 / beta * log sigmoid(margin)``, ``(num_rows,)``.

    The factor makes ``beta`` change the shape and not the strength: near a margin of 0 the slope
    in ``margin / beta`` is -1 whatever ``beta``.

    Args:
        margins: How far each sequence is where it should be, times ``beta``, ``(num_rows,)``.
        beta: Inverse temperature, > 0.
        signals: The sequences; one without labelled tokens gets 0.
    """
    terms = -2 / beta * logsigmoid(margins)
    return terms * (signals.row_counts() > 0)
