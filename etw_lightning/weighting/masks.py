"""Weights of 1 on the words that somebody or something marked, 0 on all others.

The loss is averaged over all labelled tokens, marked or not, and weights are not scaled up for the
ones left out: a row in which nothing is marked weighs 0 everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from etw_lightning.kernels.signals import Signal, TokenSignals
from etw_lightning.weighting.interface import TokenWeighting

__all__ = ["Annotated", "Spacy"]


@dataclass(frozen=True)
class Annotated(TokenWeighting):
    """Only the words that ``data.annotations`` marks are forgotten.

    ``w_i = 1`` if the label overlaps a marked span of characters, else 0.

    Source: Zhou et al. 2025, arXiv:2506.03142, whose marked words these are made for; the weight
        is a plain mask of ours, their objective is TPO.
    Differs from it: does not apply; nothing is scaled, a row without a mark weighs 0 everywhere.
    """

    @property
    def needs(self) -> frozenset[Signal]:
        """Which labels are marked."""
        return frozenset({"marked"})

    def __call__(self, signals: TokenSignals) -> Tensor:
        """Return 1 for marked tokens, else 0, ``(N,)``."""
        return _ones_on_marked(signals)


@dataclass(frozen=True)
class Spacy(TokenWeighting):
    """Only the nouns, or the named entities, that a spaCy model finds in the answers are forgotten.

    ``w_i = 1`` if the label overlaps such a span of characters, else 0.

    Source: Koh et al. 2026, arXiv:2604.17785, the baselines SCN (nouns) and SCE (entities); what
        the letters stand for is not printed there.
    Differs from it: unknown: neither the spaCy model nor how words meet tokens is published. Here
        a token counts if one of its characters does; nothing is scaled, and a row in which nothing
        is found weighs 0 everywhere.

    Args:
        kind: ``nouns``: common and proper ones. ``entities``: named entities.
        model: Name or folder of the spaCy model; needs the extra ``spacy`` and the model itself.

    Raises:
        ValueError: If ``kind`` is another word or ``model`` is empty.
    """

    kind: Literal["nouns", "entities"] = "nouns"
    model: str = "en_core_web_sm"

    def __post_init__(self) -> None:
        if self.kind not in ("nouns", "entities"):
            raise ValueError(
                f"model.weighting: Spacy.kind must be nouns or entities; got {self.kind!r}."
            )
        if not self.model:
            raise ValueError(
                "model.weighting: Spacy.model must name a spaCy model, such as en_core_web_sm; "
                f"got {self.model!r}."
            )

    @property
    def needs(self) -> frozenset[Signal]:
        """Which labels are marked."""
        return frozenset({"marked"})

    @property
    def marker(self) -> tuple[str, str]:
        """What marks the words: kind and spaCy model."""
        return (self.kind, self.model)

    def __call__(self, signals: TokenSignals) -> Tensor:
        """Return 1 for marked tokens, else 0, ``(N,)``."""
        return _ones_on_marked(signals)


def _ones_on_marked(signals: TokenSignals) -> Tensor:
    assert signals.marked is not None
    return signals.marked.to(signals.logps.dtype)
