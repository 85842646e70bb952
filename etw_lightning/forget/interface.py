"""What a forget objective is."""

# No postponed annotations: the parser would look their names up in the modules of subclasses, and
# where one is missing there accept any value of every argument.

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

from torch import Tensor

from etw_lightning.kernels.shown import Shown
from etw_lightning.kernels.signals import Level, Signal, TokenSignals

__all__ = ["ForgetObjective"]


class ForgetObjective(Shown, ABC):
    """The forget term: minimised, averaged over the effective batch by the module."""

    #: What one term stands for.
    level: ClassVar[Level] = "token"
    #: Rows the terms belong to: the forget rows, or the second answers to their questions.
    group: ClassVar[Literal["forget", "alternative"]] = "forget"
    #: Whether token weights change the terms; without, any weighting but ``Uniform`` is refused.
    takes_weights: ClassVar[bool] = True

    @property
    def needs(self) -> frozenset[Signal]:
        """Signals the objective reads besides ``logps``."""
        return frozenset()

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers, from 0, whose ``states`` the objective reads."""
        return ()

    @property
    def skipped_tokens(self) -> int:
        """Labelled tokens at the start of each row that have no term and are not averaged over."""
        return 0

    @property
    def holds_weightless(self) -> bool:
        """Whether tokens of weight 0 have a term that holds them; ``Uniform`` is refused then."""
        return False

    def check_held(self, held: int, whole: int) -> None:
        """Refuse a target model of which too little is known, where that can be.

        Args:
            held: Tokens that are known of each of its distributions.
            whole: V, the tokens of the vocabulary.

        Raises:
            InputError: Names the key.
        """

    @abstractmethod
    def __call__(self, signals: TokenSignals, weights: Tensor) -> Tensor:
        """Return the terms to average: ``(N,)`` for tokens or ``(num_rows,)`` for sequences.

        Args:
            signals: Signals of the forget rows.
            weights: Token weights, detached, ``(N,)``.
        """
