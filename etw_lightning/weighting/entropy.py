"""Weights by entropy, and none at all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from jsonargparse.typing import NonNegativeFloat, PositiveFloat
from torch import Tensor

from etw_lightning.kernels.signals import Signal, TokenSignals
from etw_lightning.value_checks import check_name, check_number
from etw_lightning.weighting.interface import TokenWeighting
from etw_lightning.weighting.within_rows import (
    Pooling,
    Scope,
    TopShare,
    Unit,
    lift_to,
    order_within_rows,
    pool_words,
    share_out,
)

__all__ = ["ETW", "Uniform"]


@dataclass(frozen=True)
class Uniform(TokenWeighting):
    """Every token weighs 1: plain gradient ascent; with a retain term, GradDiff.

    Source: Maini et al. 2024, arXiv:2401.06121.
    Differs from it: nothing.
    """

    def __call__(self, signals: TokenSignals) -> Tensor:
        """Return ones, ``(N,)``."""
        return torch.ones_like(signals.logps)


@dataclass(frozen=True, repr=False)
class ETW(TokenWeighting):
    """Weigh each token by the entropy of the model's own prediction there.

    For a sequence with n labelled tokens, ``w_i = n * H_i / sum_j H_j``, where ``H_i`` is the
    entropy in nats of ``softmax(logits_i / temperature)`` over the whole vocabulary. Where
    ``top_share`` or ``threshold`` leave tokens out, these weigh 0 and the sum is over the kept
    ones; n stays the number of all tokens, so that the strength of the term does too. With
    ``unit: word`` the entropies of a word's tokens become one, which each of them has in place of
    its own before anything else is made of it: once the first piece of a name is known, the others
    are certain, and would weigh nothing.

    Source: Koh et al. 2026, arXiv:2604.17785, the entropy-guided token weight.
    Differs from it: with the defaults, a sequence whose entropies are all 0 gets uniform weights
        instead of 0 / 0; all arguments but ``temperature`` are ablations of ours.

    Args:
        temperature: T > 0, for the entropy only; T to infinity gives uniform weights. The
            published value is not known to us; 1 to 2 is the range in which entropy detects
            informative words on TOFU.
        source: Whose entropy: the ``current`` model's, or the ``reference``'s (the target model,
            where training starts), which stays the same from step to step.
        normalise: What n and the sum are of: each ``sequence``, or the ``batch``: the tokens of
            one micro-batch of one process. With ``batch`` the weights depend on how the effective
            batch is split and on which rows meet in it.
        top_share: In (0, 1]: keep this share of each sequence's tokens, those with the largest
            entropies, rounded to the nearest whole number (halves up), at least one; of equal
            entropies the earlier token. Null keeps all.
        threshold: Nats, >= 0: keep tokens whose entropy is at least this. A sequence with none
            left weighs 0 everywhere, as an unmarked one does under a mask. Null keeps all.
        hard: Kept tokens weigh alike; needs ``top_share`` or ``threshold``.
        unit: What has an entropy: each ``token``, or each ``word`` of the answer, a run of letters
            and digits; a token of spaces and signs alone, and the one that ends the answer, is one
            for itself.
        word_entropy: Of a word: the ``sum`` of its tokens' entropies, or the largest (``max``);
            read with ``unit: word`` alone.
        floor: Nats, >= 0: where the mean entropy of the kept tokens is less, all of them are lifted
            alike until it is this, so that a memorised answer's weights don't pile up on the few
            tokens of it that are not quite certain. The weights still sum to n. 0 lifts nothing.

    Raises:
        ValueError: If a number is out of range, ``hard`` stands alone or beside ``floor``, or
            ``word_entropy`` would not be read.

    Example:
        >>> signals = TokenSignals(
        ...     labels=torch.tensor([1, 2]),
        ...     rows=torch.tensor([0, 0]),
        ...     num_rows=1,
        ...     logps=torch.tensor([-0.1, -2.0]),
        ...     entropies=torch.tensor([0.5, 1.5]),
        ... )
        >>> ETW()(signals)
        tensor([0.5000, 1.5000])
        >>> ETW(threshold=1.0)(signals)
        tensor([0., 2.])
        >>> ETW(floor=2.0)(signals)
        tensor([0.7500, 1.2500])
    """

    came_later: ClassVar[tuple[str, ...]] = ("unit", "word_entropy", "floor")

    temperature: PositiveFloat = 1.0
    source: Literal["current", "reference"] = "current"
    normalise: Scope = "sequence"
    top_share: TopShare | None = None
    threshold: NonNegativeFloat | None = None
    hard: bool = False
    unit: Unit = "token"
    word_entropy: Pooling = "sum"
    floor: NonNegativeFloat = 0.0

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(
                f"model.weighting: ETW.temperature must be > 0; got {self.temperature}."
            )
        if self.top_share is not None and not 0 < self.top_share <= 1:
            raise ValueError(
                "model.weighting: ETW.top_share must be in (0, 1], or null to keep all tokens; "
                f"got {self.top_share}."
            )
        if self.threshold is not None and not self.threshold >= 0:
            raise ValueError(
                "model.weighting: ETW.threshold must be >= 0 nats, or null to keep all tokens; "
                f"got {self.threshold}."
            )
        if self.hard and self.top_share is None and self.threshold is None:
            raise ValueError(
                "model.weighting: ETW.hard must be false without ETW.top_share or ETW.threshold; "
                "got true, with which all tokens weigh alike: set one of the two, or take Uniform."
            )
        check_name("model.weighting: ETW.unit", self.unit, get_args(Unit))
        check_name("model.weighting: ETW.word_entropy", self.word_entropy, get_args(Pooling))
        check_number("model.weighting: ETW.floor", self.floor, zero=True)
        if self.word_entropy != "sum" and self.unit != "word":
            raise ValueError(
                f"model.weighting: ETW.word_entropy is {self.word_entropy}, but ETW.unit is "
                f"{self.unit}, so that nothing reads it; set ETW.unit to word, or leave it out."
            )
        if self.hard and self.floor:
            raise ValueError(
                f"model.weighting: ETW.floor is {self.floor}, but ETW.hard is true, with which "
                "kept tokens weigh alike whatever their entropies; set one of the two only."
            )

    @property
    def needs(self) -> frozenset[Signal]:
        """Entropies of the model as it is, or of the reference; words where they are the unit."""
        own: Signal = "entropies" if self.source == "current" else "reference_entropies"
        return frozenset({own, "words"} if self.unit == "word" else {own})

    @property
    def entropy_temperature(self) -> float:
        """The temperature of the entropies."""
        return self.temperature

    def __call__(self, signals: TokenSignals) -> Tensor:
        """Return n * H / sum(H) over the kept tokens, ``(N,)``."""
        is_current = self.source == "current"
        entropies = signals.entropies if is_current else signals.reference_entropies
        assert entropies is not None
        entropies = entropies.detach()
        if self.unit == "word":
            entropies = pool_words(entropies, signals, self.word_entropy)
        kept = self._kept(entropies, signals)
        values = torch.ones_like(entropies) if self.hard else entropies
        if self.floor:
            values = lift_to(self.floor, values, signals, self.normalise, kept)
        return share_out(values, signals, self.normalise, kept)

    def _kept(self, entropies: Tensor, signals: TokenSignals) -> Tensor | None:
        """Return which tokens get a weight, bool, ``(N,)``; None for all."""
        kept = None
        if self.top_share is not None:
            order = order_within_rows(-entropies, signals.rows)
            ranks = torch.empty_like(order)
            ranks[order] = signals.places()
            sizes = (self.top_share * signals.row_counts().double() + 0.5).floor().clamp(min=1)
            kept = ranks < sizes[signals.rows]
        if self.threshold is not None:
            is_high = entropies >= self.threshold
            kept = is_high if kept is None else kept & is_high
        return kept
