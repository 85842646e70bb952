"""Retain objectives: what holds the retain set."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

from jsonargparse.typing import NonNegativeInt
from torch import Tensor

from etw_lightning.kernels.divergences import js_divergence, kl_divergence, mean_squares
from etw_lightning.kernels.shown import Shown
from etw_lightning.kernels.signals import Level, Signal, TokenSignals
from etw_lightning.schema import InputError
from etw_lightning.value_checks import check_whole

__all__ = ["JS", "KL", "NLL", "EmbedDiff", "RetainObjective"]


class RetainObjective(Shown, ABC):
    """The retain term: minimised, averaged over the effective batch by the module."""

    @property
    def level(self) -> Level:
        """What one term stands for."""
        return "token"

    @property
    def needs(self) -> frozenset[Signal]:
        """Signals the objective reads besides ``logps``."""
        return frozenset()

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers, from 0, whose ``states`` the objective reads."""
        return ()

    @abstractmethod
    def __call__(self, signals: TokenSignals) -> Tensor:
        """Return the terms to average: ``(N,)`` for tokens or ``(num_rows,)`` for sequences."""


@dataclass(frozen=True)
class NLL(RetainObjective):
    """Cross-entropy of the labels: what the model was trained with.

    Source: Maini et al. 2024, arXiv:2401.06121 (GradDiff's retain term).
    Differs from it: nothing.
    """

    def __call__(self, signals: TokenSignals) -> Tensor:
        """Return ``-logps``, nats, ``(N,)``."""
        return -signals.logps


@dataclass(frozen=True)
class KL(RetainObjective):
    """Divergence of the model's predictions from the target model's.

    The term of a labelled token is ``KL(reference || model)`` over the vocabulary.

    Source: Maini et al. 2024, arXiv:2401.06121, the KL baseline.
    Differs from it: with ``labels`` only the answer's tokens count, where the paper's sum runs over
    the whole text. Of a target model known by its K < V largest entries
    (``model.reference_top_k``) the other tokens are one bucket, a lower bound; exact where K >= V.
    TOFU's and open-unlearning's code averages over all positions, padding too: ``padded``.

    Args:
        positions: ``labels``: labelled tokens. ``padded``: every position of the padded rows; the
            term of a row is its sum over the T positions of the longest row, over T, so that one
            batch gives the mean over B * T and padding more changes the loss. Only to repeat
            numbers made that way; needs ``model.reference`` ``live`` or ``adapter``.

    Raises:
        InputError: If ``positions`` is neither.

    Example:
        >>> import torch
        >>> from etw_lightning.kernels.distributions import GivenDistributions, TopLogps
        >>> signals = TokenSignals(
        ...     labels=torch.tensor([0]),
        ...     rows=torch.tensor([0]),
        ...     num_rows=1,
        ...     logps=torch.tensor([0.25]).log(),
        ...     distributions=GivenDistributions(torch.tensor([[0.25, 0.75]]).log()),
        ...     reference_distributions=TopLogps(torch.tensor([[0.5, 0.5]]).log()),
        ... )
        >>> KL()(signals)  # log(4 / 3) / 2
        tensor([0.1438])
    """

    positions: Literal["labels", "padded"] = "labels"

    def __post_init__(self) -> None:
        if self.positions not in ("labels", "padded"):
            raise InputError(
                f"model.retain.positions must be labels or padded; got {self.positions!r}."
            )

    @property
    def level(self) -> Level:
        """A token with ``labels``, a sequence with ``padded``."""
        return "token" if self.positions == "labels" else "sequence"

    @property
    def needs(self) -> frozenset[Signal]:
        """Both models' predictions at the positions."""
        if self.positions == "labels":
            return frozenset({"distributions", "reference_distributions"})
        return frozenset({"padded", "reference_padded"})

    def __call__(self, signals: TokenSignals) -> Tensor:
        """Return divergences, nats, ``(N,)``, or their means over T, ``(num_rows,)``."""
        if self.positions == "labels":
            assert signals.distributions is not None
            return signals.distributions.map(kl_divergence, signals.reference_distributions)
        padded, reference = signals.padded, signals.reference_padded
        assert padded is not None
        assert reference is not None
        found = padded.distributions.map(kl_divergence, reference.distributions)
        return found.reshape(signals.num_rows, padded.length).mean(1)


@dataclass(frozen=True)
class JS(RetainObjective):
    """Jensen-Shannon divergence of the model's predictions from the target model's.

    The term of a labelled token is ``KL(model, h) / 2 + KL(reference, h) / 2`` over the vocabulary,
    h the half of both; at most log 2, and 0 with a gradient of 0 where training starts.

    Source: Singh et al. 2025, arXiv:2509.02820, the retain loss of JensUn; the formula from its
    authors' code, nmndeep/JensUn-Unlearning at 9d0cfd5, src/trainer/utils.py,
    ``jensun_retain_loss``.
    Differs from it: of a target model known by its K < V largest entries
    (``model.reference_top_k``) the other tokens are one bucket, a lower bound; exact where K >= V.

    Example:
        >>> import torch
        >>> from etw_lightning.kernels.distributions import GivenDistributions, TopLogps
        >>> signals = TokenSignals(
        ...     labels=torch.tensor([0]),
        ...     rows=torch.tensor([0]),
        ...     num_rows=1,
        ...     logps=torch.tensor([0.5]).log(),
        ...     distributions=GivenDistributions(torch.tensor([[0.5, 0.5]]).log()),
        ...     reference_distributions=TopLogps(torch.tensor([[1.0, 1e-30]]).log()),
        ... )
        >>> JS()(signals)
        tensor([0.2158])
    """

    @property
    def needs(self) -> frozenset[Signal]:
        """Both models' predictions."""
        return frozenset({"distributions", "reference_distributions"})

    def __call__(self, signals: TokenSignals) -> Tensor:
        """Return divergences, nats, from 0 to log 2, ``(N,)``."""
        assert signals.distributions is not None
        return signals.distributions.map(js_divergence, signals.reference_distributions)


@dataclass(frozen=True)
class EmbedDiff(RetainObjective):
    """Hold one layer's states at the retain tokens where the target model has them.

    The term of a sequence is the mean over its labelled tokens and over D of ``(h - h_ref)^2``,
    states of the labelled tokens themselves. Needs ``model.reference`` ``live`` or ``adapter``.

    Source: Li et al. 2024, arXiv:2403.03218, the retain loss of RMU.
    Differs from it: as ``RMU`` does: the mean over D of the authors' code, not the squared 2-norm,
    and labelled tokens only.

    Args:
        layer: Decoder layer, from 0; RMU takes the same for both terms.

    Raises:
        InputError: If ``layer`` is no whole number or negative.

    Example:
        >>> import torch
        >>> from etw_lightning.kernels.signals import States
        >>> rows = torch.tensor([0, 0])
        >>> signals = TokenSignals(
        ...     labels=torch.tensor([1, 2]),
        ...     rows=rows,
        ...     num_rows=1,
        ...     logps=torch.zeros(2),
        ...     states=States({7: torch.tensor([[1.0, 3.0], [0.0, 0.0]])}, rows),
        ...     reference_states=States({7: torch.tensor([[1.0, 1.0], [0.0, 0.0]])}, rows),
        ... )
        >>> EmbedDiff()(signals)  # 2^2 over 2 tokens and 2 numbers each
        tensor([1.])
    """

    layer: NonNegativeInt = 7

    def __post_init__(self) -> None:
        check_whole("model.retain.layer", self.layer)

    @property
    def level(self) -> Level:
        """A sequence."""
        return "sequence"

    @property
    def needs(self) -> frozenset[Signal]:
        """Both models' states."""
        return frozenset({"states", "reference_states"})

    @property
    def layers(self) -> tuple[int, ...]:
        """The one layer."""
        return (self.layer,)

    def __call__(self, signals: TokenSignals) -> Tensor:
        """Return mean squared distances, >= 0, ``(num_rows,)``."""
        assert signals.states is not None
        assert signals.reference_states is not None
        said = signals.states.layers[self.layer]
        wanted = signals.reference_states.layers[self.layer].detach()
        return mean_squares(said, wanted, signals.states.rows, signals.num_rows)
