"""Forget objectives of whole predicted distributions."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jsonargparse.typing import NonNegativeFloat, NonNegativeInt
from torch import Tensor

from etw_lightning.forget.interface import ForgetObjective
from etw_lightning.kernels.distributions import TopLogps
from etw_lightning.kernels.divergences import cross_entropy
from etw_lightning.kernels.signals import Signal, TokenSignals
from etw_lightning.value_checks import check_number, check_whole

__all__ = ["CEU", "ME", "PDU", "UNDIAL"]


@dataclass(frozen=True)
class UNDIAL(ForgetObjective):
    """Distil the target model with the label's logit lowered.

    With z the target model's logits, q = softmax(z - strength * onehot(y)) is what the model is
    to say, and the term of a token is ``w_i * -sum_v q(v) log p(v)``. The term of a perfect
    model is the entropy of q, not 0.

    Source: Dong et al. 2025, arXiv:2402.10052, self-distillation on adjusted logits.
    Differs from it: a target model known by its K < V largest entries (``model.reference_top_k``)
    has its other tokens as one bucket; exact where K >= V or ``model.reference`` is not ``cache``.
    open-unlearning reads no label mask: it averages over prompts and padding as well, and lowers
    the logit of token -100 there, counted from the end of the vocabulary.

    Args:
        strength: What the label's logit loses, >= 0. Published: 3, 10 or 30. 0 is distillation of
            the target model itself, whose gradient is 0 where training starts. Above 10 the label
            hardly counts any more, and where the target model was certain of it, the share of what
            a cached reference does not hold is lost in rounding: use ``model.reference: live``.

    Raises:
        InputError: If ``strength`` is no number, negative or infinite.

    Example:
        >>> from etw_lightning.kernels.distributions import GivenDistributions
        >>> even = torch.tensor([[0.5, 0.5]]).log()
        >>> signals = TokenSignals(
        ...     labels=torch.tensor([0]),
        ...     rows=torch.tensor([0]),
        ...     num_rows=1,
        ...     logps=even[:, 0],
        ...     distributions=GivenDistributions(torch.tensor([[0.5, 0.5]]).log()),
        ...     reference_distributions=TopLogps(torch.tensor([[0.9, 0.1]]).log()),
        ... )
        >>> UNDIAL(strength=3.0)(signals, torch.ones(1))
        tensor([0.6931])
    """

    strength: NonNegativeFloat = 10.0

    def __post_init__(self) -> None:
        check_number("model.forget.strength", self.strength, zero=True)

    @property
    def needs(self) -> frozenset[Signal]:
        """Both models' distributions."""
        return frozenset({"distributions", "reference_distributions"})

    def __call__(self, signals: TokenSignals, weights: Tensor) -> Tensor:
        """Return weighted cross-entropies to the adjusted distribution, nats, ``(N,)``."""
        assert signals.distributions is not None
        assert signals.reference_distributions is not None

        def term(logps: Tensor, reference: TopLogps, labels: Tensor) -> Tensor:
            return cross_entropy(logps, _lowered(reference, labels, self.strength))

        terms = signals.distributions.map(term, signals.reference_distributions, signals.labels)
        return weights * terms


@dataclass(frozen=True)
class CEU(ForgetObjective):
    """Cross-entropy unlearning: say what is said now, only without the label.

    With q = softmax(z) after the label's logit is set to minus infinity, taken from the model as it
    is and detached, the term of a token is ``w_i * -sum_v q(v) log p(v)``; its gradient by the
    logits is p - q. It equals ``H(q) - log(1 - p(y))``.

    Source: Yang 2025, arXiv:2503.01224, the CE-U loss.
    Differs from it: nothing; leaving out first tokens is from a footnote of the paper's settings.
    Where a row's very first token is labelled, which nothing predicts, open-unlearning counts it
    as one of those left out; here only predicted tokens count.

    Args:
        skip_first: Predicted labels at the start of each row that have no term and are not
            averaged over, >= 0; the published runs leave out 1.

    Raises:
        InputError: If ``skip_first`` is no whole number or negative.

    Example:
        >>> from etw_lightning.kernels.distributions import GivenDistributions
        >>> logps = torch.tensor([[0.5, 0.25, 0.25]]).log()
        >>> signals = TokenSignals(
        ...     labels=torch.tensor([0]),
        ...     rows=torch.tensor([0]),
        ...     num_rows=1,
        ...     logps=logps[:, 0],
        ...     distributions=GivenDistributions(logps),
        ... )
        >>> CEU(skip_first=0)(signals, torch.ones(1))  # q is even over two: log 4
        tensor([1.3863])
        >>> CEU(skip_first=1)(signals, torch.ones(1))
        tensor([0.])
    """

    skip_first: NonNegativeInt = 1

    def __post_init__(self) -> None:
        check_whole("model.forget.skip_first", self.skip_first)

    @property
    def needs(self) -> frozenset[Signal]:
        """The model's distributions."""
        return frozenset({"distributions"})

    @property
    def skipped_tokens(self) -> int:
        """As many as ``skip_first``."""
        return self.skip_first

    def __call__(self, signals: TokenSignals, weights: Tensor) -> Tensor:
        """Return weighted cross-entropies, nats, 0 for tokens left out, ``(N,)``."""
        assert signals.distributions is not None
        terms = weights * signals.distributions.map(_without_label, signals.labels)
        return torch.where(signals.places() < self.skip_first, torch.zeros_like(terms), terms)


@dataclass(frozen=True)
class PDU(ForgetObjective):
    """Logit-margin flattening: bring the largest logit down to the mean of all.

    The term of a token is ``w_i * (max_v z(v) - mean_v z(v))^2``; a shift of all logits does not
    matter, so log-probabilities serve. 0 just where the prediction is uniform.

    Source: Entesari et al. 2025, arXiv:2506.05314, the forget term.
    Differs from it: nothing in the term. The paper's other half, a weight on the retain term that
    keeps its loss within bounds, works with every objective and is the callback ``RetainBudget``.
    open-unlearning takes what is said at the labelled tokens, one place after what predicts them.

    Example:
        >>> from etw_lightning.kernels.distributions import GivenDistributions
        >>> logits = torch.tensor([[4.0, 1.0, 1.0]])
        >>> signals = TokenSignals(
        ...     labels=torch.tensor([0]),
        ...     rows=torch.tensor([0]),
        ...     num_rows=1,
        ...     logps=logits.log_softmax(-1)[:, 0],
        ...     distributions=GivenDistributions(logits.log_softmax(-1)),
        ... )
        >>> PDU()(signals, torch.ones(1))
        tensor([4.])
    """

    @property
    def needs(self) -> frozenset[Signal]:
        """The model's distributions."""
        return frozenset({"distributions"})

    def __call__(self, signals: TokenSignals, weights: Tensor) -> Tensor:
        """Return weighted squared margins, logits squared, >= 0, ``(N,)``."""
        assert signals.distributions is not None
        return weights * signals.distributions.map(_squared_margin)


@dataclass(frozen=True)
class ME(ForgetObjective):
    """Maximum entropy: bring each prediction to the uniform one, whatever the label.

    The term of a token is ``w_i * (log V - H_i)``, the divergence KL(p || uniform), in nats and
    >= 0 up to rounding.

    Source: Yuan et al. 2025, arXiv:2410.08109, the ME loss.
    Differs from it: labelled tokens only; the paper's sum runs over the question's tokens as well.
    The authors' code turns the divergence round, KL(uniform || p), whose gradient does not vanish
    where the model is certain.

    Example:
        >>> from etw_lightning.kernels.distributions import GivenDistributions
        >>> logps = torch.tensor([[0.5, 0.5, 0.0, 0.0]]).clamp(min=1e-30).log()
        >>> signals = TokenSignals(
        ...     labels=torch.tensor([0]),
        ...     rows=torch.tensor([0]),
        ...     num_rows=1,
        ...     logps=logps[:, 0],
        ...     distributions=GivenDistributions(logps),
        ... )
        >>> ME()(signals, torch.ones(1))  # log 4 - log 2
        tensor([0.6931])
    """

    @property
    def needs(self) -> frozenset[Signal]:
        """The model's distributions."""
        return frozenset({"distributions"})

    def __call__(self, signals: TokenSignals, weights: Tensor) -> Tensor:
        """Return weighted divergences from the uniform distribution, nats, ``(N,)``."""
        assert signals.distributions is not None
        return weights * signals.distributions.map(_missing_entropy)


def _lowered(reference: TopLogps, labels: Tensor, strength: float) -> TopLogps:
    """Return the reference with ``strength`` off the labels' logits, normalised anew."""
    ids = reference.ids
    if ids is None:
        ids = torch.arange(reference.logps.shape[-1], device=labels.device)[None]
    is_label = ids == labels[:, None]
    # Not ``strength * is_label``: infinity times 0 is no number.
    logps = torch.where(is_label, reference.logps - strength, reference.logps)
    rest = reference.log_rest
    total = torch.logaddexp(logps.logsumexp(-1), rest)
    return TopLogps(logps - total[:, None], reference.ids, rest - total)


def _without_label(logps: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy to the same distribution without the label."""
    others = logps.detach().scatter(-1, labels[:, None], -torch.inf)
    return cross_entropy(logps, TopLogps(others.log_softmax(-1)))


def _squared_margin(logps: Tensor) -> Tensor:
    return (logps.amax(-1) - logps.mean(-1)).square()


def _missing_entropy(logps: Tensor) -> Tensor:
    return (logps.exp() * (logps + math.log(logps.shape[-1]))).sum(-1)
