"""Forget objectives that are bounded: a second answer in the place of the forget answer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import softplus

from etw_lightning.forget.interface import ForgetObjective
from etw_lightning.kernels.signals import Level, Signal, TokenSignals
from etw_lightning.schema import InputError

__all__ = ["FLAT", "JensUn"]

#: Whose variational forms are taken.
Divergence = Literal["total_variation", "jensen_shannon", "pearson", "kl"]


@dataclass(frozen=True)
class JensUn(ForgetObjective):
    """Say the second answer's tokens, one after the other and over again, where the answer stands.

    The term of a token is ``w_i * JS(p, onehot(t))``: p the prediction at the forget answer's
    token, t the token of the second answer whose turn it is (place i of the answer takes place i
    modulo m of a second answer of m labelled tokens), JS the divergence
    ``KL(p, h) / 2 + KL(onehot, h) / 2`` from the half of both, h. With p_t the probability of t it
    is

        log 2 + (p_t log p_t - (1 + p_t) log(1 + p_t)) / 2

    nats, from 0 (t is certain) to log 2 (t is impossible). Its gradient vanishes at both ends, so
    that a token which the model holds for impossible is learned slowly.

    Source: Singh et al. 2025, arXiv:2509.02820, the forget loss of JensUn; the formula from its
    authors' code, nmndeep/JensUn-Unlearning at 9d0cfd5, src/trainer/utils.py,
    ``jensun_multitok_loss``.
    Differs from it: there the tokens are those of "No idea" for all rows, without the token that
    ends an answer; here those of each row's second answer, with it where the template has one. A
    row whose second answer has no labelled token has no term. The code keeps probabilities above
    1e-9; here nothing needs that.

    Example:
        >>> from etw_lightning.kernels.distributions import GivenDistributions
        >>> def answer(labels):
        ...     return TokenSignals(
        ...         labels=torch.tensor(labels),
        ...         rows=torch.tensor([0] * len(labels)),
        ...         num_rows=1,
        ...         logps=torch.zeros(len(labels)),
        ...         distributions=GivenDistributions(torch.tensor([[0.5, 0.5, 1e-30]]).log()),
        ...         alternative=None if labels == [1] else answer([1]),
        ...     )
        >>> JensUn()(answer([0]), torch.ones(1))  # log 2 + (.5 log .5 - 1.5 log 1.5) / 2
        tensor([0.2158])
    """

    @property
    def needs(self) -> frozenset[Signal]:
        """The model's distributions, and the second answers."""
        return frozenset({"distributions", "alternative"})

    def __call__(self, signals: TokenSignals, weights: Tensor) -> Tensor:
        """Return weighted divergences, nats, from 0 to ``w_i * log 2``, ``(N,)``."""
        other = signals.alternative
        assert other is not None
        assert signals.distributions is not None
        counts = torch.bincount(other.rows, minlength=other.num_rows)
        starts = counts.cumsum(0) - counts
        has_any = counts[signals.rows] > 0
        turns = signals.places() % counts[signals.rows].clamp(min=1)
        # Where there is none, any token will do: its term does not count.
        places = (starts[signals.rows] + turns) * has_any
        tokens = other.labels[places] if len(other.labels) else signals.labels
        terms = signals.distributions.map(_to_certain, tokens)
        return weights * terms * has_any


@dataclass(frozen=True)
class FLAT(ForgetObjective):
    """Widen the gap between the second answer and the forget answer, by an f-divergence.

    With P the mean of the probabilities of an answer's labelled tokens (not of their logarithms),
    P_f of the forget answer, each token's probability times its weight, and P_e of the second one,
    the term of a sequence is ``-g(P_e) + f*(g(P_f))``:

        total_variation   g(x) = tanh(x) / 2               f*(g(x)) = tanh(x) / 2
        jensen_shannon    g(x) = log 2 - log(1 + e^-x)     f*(g(x)) = log(1 + e^x) - log 2
        pearson           g(x) = x                         f*(g(x)) = x^2 / 4 + x
        kl                g(x) = x                         f*(g(x)) = e^(x - 1)

    It needs no retain term and no target model; probabilities lie in [0, 1], so all are bounded.

    Source: Wang et al. 2024, arXiv:2410.11143, the FLAT loss; the formulas from its authors' code,
    UCSC-REAL/FLAT at bf2ef07, dataloader.py, ``get_contrastive_loss`` and ``ProbLossStable``.
    Differs from it: the code takes one mean of probabilities over the batch and over all positions,
    those of prompts and padding counting as 0, before g and f*; here each pair of answers has its
    own term and only labelled tokens count, so that neither the batch nor padding matters. A forget
    answer without labelled tokens has no term.

    Args:
        divergence: Which; the code's default is ``total_variation``.

    Raises:
        InputError: If ``divergence`` is none of them.

    Example:
        >>> answer = TokenSignals(
        ...     labels=torch.tensor([5, 6]),
        ...     rows=torch.tensor([0, 0]),
        ...     num_rows=1,
        ...     logps=torch.tensor([0.5, 1.0]).log(),
        ... )
        >>> import dataclasses
        >>> signals = dataclasses.replace(answer, alternative=answer)
        >>> FLAT("kl")(signals, torch.ones(2))  # -.75 + e^-.25
        tensor([0.0288])
    """

    level: ClassVar[Level] = "sequence"

    divergence: Divergence = "total_variation"

    def __post_init__(self) -> None:
        if self.divergence not in get_args(Divergence):
            raise InputError(
                f"model.forget.divergence must be {', '.join(get_args(Divergence))}; got "
                f"{self.divergence!r}."
            )

    @property
    def needs(self) -> frozenset[Signal]:
        """The second answers."""
        return frozenset({"alternative"})

    def __call__(self, signals: TokenSignals, weights: Tensor) -> Tensor:
        """Return the loss of each pair of answers, ``(num_rows,)``."""
        other = signals.alternative
        assert other is not None
        counts = signals.row_counts()
        forgotten = signals.row_sums(weights * signals.logps.exp()) / counts.clamp(min=1)
        wanted = other.row_sums(other.logps.exp()) / other.row_counts().clamp(min=1)
        return (self._conjugate(forgotten) - self._variational(wanted)) * (counts > 0)

    def _variational(self, share: Tensor) -> Tensor:
        """Return g."""
        if self.divergence == "total_variation":
            return share.tanh() / 2
        if self.divergence == "jensen_shannon":
            return math.log(2) - softplus(-share)
        return share

    def _conjugate(self, share: Tensor) -> Tensor:
        """Return f* of g."""
        if self.divergence == "total_variation":
            return share.tanh() / 2
        if self.divergence == "jensen_shannon":
            return softplus(share) - math.log(2)
        if self.divergence == "pearson":
            return share.square() / 4 + share
        return (share - 1).exp()


def _to_certain(logps: Tensor, tokens: Tensor) -> Tensor:
    """Return the Jensen-Shannon divergence of each prediction from a certain token, nats."""
    picked = logps.gather(-1, tokens[:, None])[:, 0]
    share = picked.exp()
    return math.log(2) + (share * picked - (1 + share) * share.log1p()) / 2
