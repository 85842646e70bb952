"""Retain objectives: what holds the retain set."""

from etw_lightning.retain.objectives import JS, KL, NLL, EmbedDiff, RetainObjective

__all__ = ["JS", "KL", "NLL", "EmbedDiff", "RetainObjective"]
