"""Warnings of what is allowed but probably unintended: once, from one process."""

from __future__ import annotations

import os
import warnings

__all__ = ["is_first", "warn_first"]

#: Where launchers say which process this is; torchrun, Lightning and SLURM.
_RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID")


def is_first() -> bool:
    """Tell whether this is the first process of its run, as far as launchers have said."""
    return next((os.environ[name] for name in _RANKS if name in os.environ), "0") == "0"


def warn_first(message: str) -> None:
    """Warn if this is the first process; a message that was shown already is left out."""
    if is_first():
        warnings.warn(message, stacklevel=2)
