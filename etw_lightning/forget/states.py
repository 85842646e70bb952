"""Forget objectives of hidden states."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jsonargparse.typing import NonNegativeInt, PositiveFloat
from torch import Tensor

from etw_lightning.forget.interface import ForgetObjective
from etw_lightning.kernels.divergences import mean_squares
from etw_lightning.kernels.signals import Level, Signal, TokenSignals
from etw_lightning.value_checks import check_number, check_whole

__all__ = ["RMU", "steering_vector"]

#: Of torch's generators.
_LARGEST_SEED = 2**64 - 1


@dataclass(frozen=True)
class RMU(ForgetObjective):
    """Steer one layer's states at the forget tokens to a fixed random vector.

    The term of a sequence is the mean over its labelled tokens and over D of ``(h - c * u)^2``: h
    the layer's output at the labelled tokens themselves, u the vector of ``steering_vector``, c the
    coefficient. Meant for training a few matrices only (``model.train_only``), with the retain
    term ``EmbedDiff`` of the same layer. Together they give no gradient to weights above the
    layer, so that DDP refuses a run which trains those too.

    Source: Li et al. 2024, arXiv:2403.03218, the forget loss of RMU.
    Differs from it: the paper has the squared 2-norm of a state, the authors' code the mean over D,
    D times less; this follows the code, to which the published coefficients belong. The code's
    mean also runs over padding; here over labelled tokens. open-unlearning divides each sequence's
    sum by the token counts of all sequences in turn, the same just where these are equal, and
    changes which weights are trained only in the optimiser, so that gradient clipping sees the
    gradients of all.

    Args:
        layer: Decoder layer, from 0; published: 7 of 32.
        steering_coefficient: c > 0, length of the vector. Published: 20 by default, 6.5 for
            Zephyr-7B, 300 for Mixtral-8x7B.
        seed: Of u, which depends on nothing but this and D.

    Raises:
        InputError: If ``layer`` or ``seed`` is no whole number from 0, or the coefficient is not
            positive and finite.

    Example:
        >>> from etw_lightning.kernels.signals import States
        >>> rows = torch.tensor([0, 0])
        >>> direction = steering_vector(4, seed=0).expand(2, 4)
        >>> signals = TokenSignals(
        ...     labels=torch.tensor([1, 2]),
        ...     rows=rows,
        ...     num_rows=1,
        ...     logps=torch.zeros(2),
        ...     states=States({7: 5 * direction}, rows),
        ... )
        >>> RMU(steering_coefficient=7.0)(signals, torch.ones(2)).item()  # (7 - 5)^2 over 4
        1.0
    """

    level: ClassVar[Level] = "sequence"
    takes_weights: ClassVar[bool] = False

    layer: NonNegativeInt = 7
    steering_coefficient: PositiveFloat = 20.0
    seed: NonNegativeInt = 0

    def __post_init__(self) -> None:
        check_whole("model.forget.layer", self.layer)
        check_number("model.forget.steering_coefficient", self.steering_coefficient)
        check_whole("model.forget.seed", self.seed, _LARGEST_SEED)

    @property
    def needs(self) -> frozenset[Signal]:
        """The layer's states."""
        return frozenset({"states"})

    @property
    def layers(self) -> tuple[int, ...]:
        """The one layer."""
        return (self.layer,)

    def __call__(self, signals: TokenSignals, weights: Tensor) -> Tensor:
        """Return mean squared distances to the steering vector, >= 0, ``(num_rows,)``."""
        assert signals.states is not None
        said = signals.states.layers[self.layer]
        wanted = self.steering_coefficient * steering_vector(said.shape[-1], self.seed)
        return mean_squares(said, wanted, signals.states.rows, signals.num_rows)


def steering_vector(width: int, seed: int) -> Tensor:
    """Return RMU's direction: D numbers uniform in [0, 1), over their 2-norm; float64, ``(D,)``.

    Made on the CPU, so that a run's device does not change it.

    Args:
        width: D.
        seed: Of the generator.

    Example:
        >>> steering_vector(3, seed=0).norm().item()
        1.0
    """
    generator = torch.Generator().manual_seed(seed)
    vector = torch.rand(width, dtype=torch.float64, generator=generator)
    return vector / vector.norm()
