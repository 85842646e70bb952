"""What ``collapse`` is unless a run says otherwise; read without loading a model's libraries."""

from __future__ import annotations

from typing import Literal, NamedTuple

__all__ = ["Action", "CollapseSettings"]

Action = Literal["stop", "warn"]


class CollapseSettings(NamedTuple):
    """Settings of ``Collapse``, which says what they mean.

    Args:
        action: ``stop`` or ``warn``.
        retain_factor: A multiple, > 1, or None.
        utility_floor: A share, above 0 and below 1, or None.
        repetition: A share, above 0 and below 1, or None.
        window: Optimiser steps, >= 1.
    """

    action: Action = "warn"
    retain_factor: float | None = 4.0
    utility_floor: float | None = 0.5
    repetition: float | None = 0.3
    window: int = 8
