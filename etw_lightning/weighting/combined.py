"""Weightings made of others: shuffled, multiplied, mixed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jsonargparse.typing import ClosedUnitInterval, NonNegativeInt
from torch import Tensor

from etw_lightning.kernels.signals import Signal, TokenSignals
from etw_lightning.schema import IGNORE_INDEX, InputError
from etw_lightning.value_checks import check_name, check_whole
from etw_lightning.weighting.interface import TokenWeighting
from etw_lightning.weighting.learned import ATWU
from etw_lightning.weighting.within_rows import order_within_rows, share_out, units_of

__all__ = ["Mixture", "Product", "Random"]


@dataclass(frozen=True, repr=False)
class Random(TokenWeighting):
    """The weights of another weighting, shuffled within each sequence, or within each word.

    ``w_i = v_perm(i)``, ``v`` the weights of ``of``: the control that shows whether it matters
    where the weight goes, since its distribution stays the same. Within words it shows whether it
    matters which token of a word has the word's weight. The permutation of a row hangs on
    ``seed`` and the row's label ids alone: it is the same in every epoch, batch and process, on
    every device and after a resume. Rows of equal labels are shuffled alike.

    Source: none; a control of ours. The permutation sorts by numbers mixed with the finaliser of
        SplitMix64 (Steele et al. 2014, doi:10.1145/2714064.2660195).
    Differs from it: does not apply.

    Args:
        of: The weighting whose weights are shuffled.
        seed: Which permutations, from 0 to 2^63 - 1.
        within: What keeps its weights: each ``sequence``, or each ``word`` of the answer; a token
            of no word then keeps its own.

    Raises:
        ValueError: If ``seed`` is out of range or ``within`` another word.
    """

    came_later: ClassVar[tuple[str, ...]] = ("within",)

    of: TokenWeighting
    seed: NonNegativeInt = 0
    within: Literal["sequence", "word"] = "sequence"

    def __post_init__(self) -> None:
        check_whole("model.weighting: Random.seed", self.seed, 2**63 - 1)
        check_name("model.weighting: Random.within", self.within, ("sequence", "word"))

    @property
    def needs(self) -> frozenset[Signal]:
        """What ``of`` reads, and words where they keep their weights."""
        return self.of.needs | ({"words"} if self.within == "word" else set())

    @property
    def entropy_temperature(self) -> float | None:
        """The temperature of ``of``."""
        return self.of.entropy_temperature

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers of ``of``."""
        return self.of.layers

    @property
    def learned(self) -> ATWU | None:
        """What is learnt for ``of``."""
        return self.of.learned

    @property
    def marker(self) -> tuple[str, str] | None:
        """What marks words for ``of``."""
        return self.of.marker

    def __call__(self, signals: TokenSignals) -> Tensor:
        """Return the shuffled weights, ``(N,)``.

        Raises:
            InputError: If the labels are not there, as in signals made of records.
        """
        if (signals.labels == IGNORE_INDEX).any():
            raise InputError(
                "model.weighting: Random shuffles by the labels' token ids, which records don't "
                "hold; choose a weighting that reads no labels, such as Random.of."
            )
        places = _STEP * (signals.places() + 1)
        rows = signals.row_sums(_mix(signals.labels + places))
        rows = _mix(rows + _mix(torch.full_like(rows, self.seed)))
        keys = _mix(rows[signals.rows] + places)
        units = signals.rows if self.within == "sequence" else units_of(signals)
        return self.of(signals)[order_within_rows(keys, units)]


@dataclass(frozen=True)
class _Pair(TokenWeighting):
    """Two weightings that read one set of signals."""

    first: TokenWeighting
    second: TokenWeighting

    def __post_init__(self) -> None:
        name = type(self).__name__
        found = self.first.entropy_temperature, self.second.entropy_temperature
        if None not in found and found[0] != found[1]:
            keys = _temperature_key("first", self.first), _temperature_key("second", self.second)
            raise ValueError(
                f"model.weighting: {name}.{keys[0]} and {name}.{keys[1]} must be equal, because "
                f"entropies are computed at one temperature; got {found[0]} and {found[1]}."
            )
        learned = self.first.learned, self.second.learned
        if None not in learned and learned[0] != learned[1]:
            raise ValueError(
                f"model.weighting: {name}.first and {name}.second must learn alike, because each "
                f"token has one importance; got {learned[0]} and {learned[1]}."
            )
        if all("marked" in part.needs for part in (self.first, self.second)):
            markers = self.first.marker, self.second.marker
            if markers[0] != markers[1]:
                said = " and ".join("data.annotations" if m is None else str(m) for m in markers)
                raise ValueError(
                    f"model.weighting: {name}.first and {name}.second must take their marks from "
                    f"one place, because each word is marked once; got {said}."
                )

    @property
    def needs(self) -> frozenset[Signal]:
        """What either reads."""
        return self.first.needs | self.second.needs

    @property
    def entropy_temperature(self) -> float | None:
        """The temperature of the one that reads entropies."""
        found = self.first.entropy_temperature
        return self.second.entropy_temperature if found is None else found

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers of both."""
        return self.first.layers + self.second.layers

    @property
    def learned(self) -> ATWU | None:
        """What is learnt for the one that reads importances."""
        return self.first.learned or self.second.learned

    @property
    def marker(self) -> tuple[str, str] | None:
        """What marks words for the one that reads marks."""
        return self.first.marker or self.second.marker


@dataclass(frozen=True)
class Product(_Pair):
    """The product of two weightings.

    ``w_i = a_i * b_i``; normalised, ``w_i = n * a_i b_i / sum_j a_j b_j`` for a sequence with n
    labelled tokens. A sequence whose products are all 0 weighs 0 either way: what a mask leaves
    out stays out. Normalised weights don't fade as the sequence is forgotten, as those of ``WGA``
    or ``TNPO`` alone do, until products are too small for their dtype.

    Source: none; an ablation of ours.
    Differs from it: does not apply.

    Args:
        first: One weighting, a.
        second: The other, b.
        normalise: Make each sequence's weights sum to n.

    Raises:
        ValueError: If both read entropies, but at different temperatures, both read marks, but
            from different places, or both read importances, but learn them otherwise.
    """

    normalise: bool = True

    def __call__(self, signals: TokenSignals) -> Tensor:
        """Return the products, ``(N,)``."""
        weights = self.first(signals) * self.second(signals)
        return share_out(weights, signals, kept=weights > 0) if self.normalise else weights


@dataclass(frozen=True)
class Mixture(_Pair):
    """The weighted mean of two weightings.

    ``w_i = share * a_i + (1 - share) * b_i``.

    Source: none; an ablation of ours.
    Differs from it: does not apply.

    Args:
        first: One weighting, a.
        second: The other, b.
        share: Weight of the first, from 0 to 1.

    Raises:
        ValueError: If ``share`` is out of range, or as of ``Product``.
    """

    share: ClosedUnitInterval = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(
                f"model.weighting: Mixture.share must be from 0 to 1; got {self.share}."
            )
        super().__post_init__()

    def __call__(self, signals: TokenSignals) -> Tensor:
        """Return the mixed weights, ``(N,)``."""
        return self.share * self.first(signals) + (1 - self.share) * self.second(signals)


def _temperature_key(key: str, weighting: TokenWeighting) -> str:
    """Return where under ``key`` the temperature of a weighting stands."""
    for name, part in vars(weighting).items():
        if isinstance(part, TokenWeighting) and part.entropy_temperature is not None:
            return _temperature_key(f"{key}.{name}", part)
    return f"{key}.temperature"


# SplitMix64 in int64, whose products wrap around: the same on every device.

_WORD = 2**64
_STEP = 0x9E3779B97F4A7C15 - _WORD


def _mix(words: Tensor) -> Tensor:
    """Return well-mixed numbers, one for each, int64."""
    words = (words ^ _shifted(words, 30)) * (0xBF58476D1CE4E5B9 - _WORD)
    words = (words ^ _shifted(words, 27)) * (0x94D049BB133111EB - _WORD)
    return words ^ _shifted(words, 31)


def _shifted(words: Tensor, places: int) -> Tensor:
    """Shift to the right, filling up with zeros; torch's own shift repeats the sign."""
    return (words >> places) & ((1 << (64 - places)) - 1)
