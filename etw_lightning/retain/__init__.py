"""Retain objectives: what holds the retain set."""

from etw_lightning.retain.objectives import KL, NLL, EmbedDiff, RetainObjective

__all__ = ["KL", "NLL", "EmbedDiff", "RetainObjective"]
