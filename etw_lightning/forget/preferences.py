"""Forget objectives that prefer one thing to another: answers, or words of one answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jsonargparse.typing import NonNegativeFloat, PositiveFloat
from torch import Tensor

from etw_lightning.forget.interface import ForgetObjective
from etw_lightning.forget.likelihoods import preference_terms
from etw_lightning.kernels.distributions import TopLogps
from etw_lightning.kernels.signals import Level, Signal, TokenSignals
from etw_lightning.value_checks import check_number

__all__ = ["DPO", "TPO", "AltPO"]


@dataclass(frozen=True)
class DPO(ForgetObjective):
    """Prefer the second answer to the forget answer, compared with the target model.

    The term of a sequence is ``-2 / beta * log sigmoid(beta * (R_a - R_f))``, where
    ``R = sum_i w_i (log p_i - log r_i)`` of the second answer (all weights 1) and of the forget
    answer, ``p`` the trained model's and ``r`` the target model's probability of token i. With
    refusals as second answers (``data.alternative: refusal``) this is TOFU's IdkDPO.

    Source: Rafailov et al. 2023, arXiv:2305.18290, the DPO loss; as an unlearning baseline Zhang
    et al. 2024, arXiv:2404.05868.
    Differs from it: ``2 / beta`` times the loss of Rafailov et al., as in the code of Zhang et al.,
    so that ``beta`` changes the shape of the loss and not its strength; 20 times at the default.
    A forget answer without labelled tokens has no term.

    Args:
        beta: Inverse temperature, > 0.

    Raises:
        ValueError: If ``beta`` is not a positive number.

    Example:
        >>> import dataclasses
        >>> import torch
        >>> answer = TokenSignals(
        ...     labels=torch.tensor([5, 6]),
        ...     rows=torch.tensor([0, 0]),
        ...     num_rows=1,
        ...     logps=torch.tensor([-1.0, -3.0]),
        ...     reference_logps=torch.tensor([-2.0, -2.0]),
        ... )
        >>> signals = dataclasses.replace(answer, alternative=answer)
        >>> DPO(beta=1.0)(signals, torch.ones(2))
        tensor([1.3863])
    """

    level: ClassVar[Level] = "sequence"

    beta: PositiveFloat = 0.1

    def __post_init__(self) -> None:
        check_number("model.forget.beta", self.beta)

    @property
    def needs(self) -> frozenset[Signal]:
        """The second answers, and the target model's label log-probabilities of both."""
        return frozenset({"reference_logps", "alternative"})

    def __call__(self, signals: TokenSignals, weights: Tensor) -> Tensor:
        """Return the loss of each pair of answers, nats, >= 0, ``(num_rows,)``."""
        wanted = signals.alternative
        assert wanted is not None
        assert signals.reference_logps is not None
        assert wanted.reference_logps is not None
        assert wanted.num_rows == signals.num_rows
        forgotten = signals.row_sums(weights * (signals.logps - signals.reference_logps))
        kept = wanted.row_sums(wanted.logps - wanted.reference_logps)
        return preference_terms(self.beta * (kept - forgotten), self.beta, signals)


@dataclass(frozen=True)
class AltPO(DPO):
    """Prefer plausible other answers, which the target model made up, to the forget answer.

    The formula of ``DPO`` with ``data.alternative: column``: what is new is where the second
    answers come from. They are data, which the command ``alternatives`` writes.

    Source: Mekala et al. 2024, arXiv:2409.13474.
    Differs from it: a forget answer has one second answer for the whole run, where the authors
    pair it with five (in as many rows). The formula is that of the authors' code; whether the
    paper prints its factor ``2 / beta`` is not known to us.

    Args:
        beta: Inverse temperature, > 0.

    Raises:
        ValueError: If ``beta`` is not a positive number.
    """

    beta: PositiveFloat = 0.1


@dataclass(frozen=True)
class TPO(ForgetObjective):
    """Push the logits of the marked words below the target model's; hold the words between.

    The term of a sequence with m marked tokens is

        -2 / beta * log sigmoid(beta / m * sum_marked w_i d_i) - preservation * sum_others log p_i

    where ``d_i`` is the target model's logit of label i less the trained model's. A logit is
    defined up to a constant a position; here it counts from the mean logit of the tokens that the
    target model's distribution holds there (the whole vocabulary, or its
    ``model.reference_top_k`` likeliest), the same tokens for both models. Unlike a
    log-probability's, its gradient does not fade where the model is certain.

    Source: Zhou et al. 2025, arXiv:2506.03142, targeted preference optimisation, as in the
    authors' code; the paper's own formula could not be read.
    Differs from it: raw logits there, so the mean logit may drift; the gradient in the logits
    differs by 1 over the number of tokens held. There the sigmoid is taken of the batch's mean
    instead of each sequence's, so that the loss depends on the batch; a sequence without marked
    tokens makes it 0 / 0, and has no first part here. All weights are 1 there, and 1 in the
    second part here.

    Args:
        beta: Inverse temperature, > 0; the authors' best on forget10 is .19 with Llama-3.2-3B
            and .23 with Llama-2-7B.
        preservation: Weight of the second part, >= 0; 0 leaves it out.

    Raises:
        ValueError: If ``beta`` is not a positive number or ``preservation`` is negative.

    Example:
        >>> import torch
        >>> from etw_lightning.kernels.distributions import GivenDistributions
        >>> said = torch.tensor([[0.5, 0.25, 0.25]]).log()
        >>> signals = TokenSignals(
        ...     labels=torch.tensor([0]),
        ...     rows=torch.tensor([0]),
        ...     num_rows=1,
        ...     logps=said[:, 0],
        ...     marked=torch.tensor([True]),
        ...     distributions=GivenDistributions(said),
        ...     reference_logps=said[:, 0],
        ...     reference_distributions=GivenDistributions(said),
        ... )
        >>> TPO(beta=1.0)(signals, torch.ones(1))
        tensor([1.3863])
    """

    level: ClassVar[Level] = "sequence"

    beta: PositiveFloat = 0.19
    preservation: NonNegativeFloat = 1.0

    def __post_init__(self) -> None:
        check_number("model.forget.beta", self.beta)
        check_number("model.forget.preservation", self.preservation, zero=True)

    @property
    def needs(self) -> frozenset[Signal]:
        """The marks, and the distributions of both models."""
        return frozenset({"marked", "distributions", "reference_logps", "reference_distributions"})

    def __call__(self, signals: TokenSignals, weights: Tensor) -> Tensor:
        """Return the loss of each sequence, nats, >= 0, ``(num_rows,)``."""
        assert signals.marked is not None
        assert signals.distributions is not None
        assert signals.reference_logps is not None
        is_marked = signals.marked.to(signals.logps.dtype)
        shifts = signals.distributions.map(_mean_shift, signals.reference_distributions)
        losses = signals.reference_logps - signals.logps + shifts
        counts = signals.row_sums(is_marked)
        means = signals.row_sums(is_marked * weights * losses) / counts.clamp(min=1)
        forgotten = preference_terms(self.beta * means, self.beta, signals) * (counts > 0)
        return forgotten - self.preservation * signals.row_sums((1 - is_marked) * signals.logps)


def _mean_shift(logps: Tensor, reference: TopLogps) -> Tensor:
    """Return how far the tokens that the reference holds have risen on average, ``(n,)``."""
    held = logps if reference.ids is None else logps.gather(1, reference.ids)
    return (held - reference.logps).mean(-1)
