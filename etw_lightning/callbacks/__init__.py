"""Watchers of a run: numbers at epoch ends, guards, the retain budget."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from etw_lightning.callbacks.evaluation import (
        EvaluationCallback,
        ForgetQuality,
        ModelUtility,
        Muse,
        PrivLeak,
        SetScores,
        Suite,
    )
    from etw_lightning.callbacks.retain_budget import RetainBudget

__all__ = [
    "EvaluationCallback",
    "ForgetQuality",
    "ModelUtility",
    "Muse",
    "PrivLeak",
    "RetainBudget",
    "SetScores",
    "Suite",
]


def __getattr__(name: str) -> Any:
    """Import Lightning when a class is used, not when the collapse guard's settings are read."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "retain_budget" if name == "RetainBudget" else "evaluation"
    return getattr(import_module(f"{__name__}.{module}"), name)
