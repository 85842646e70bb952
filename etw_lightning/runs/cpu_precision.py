"""The precision of a run on CPUs: what the processor computes, unless it was typed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

__all__ = ["Changed", "processor_flags", "settle_precision"]

#: Instructions that compute in bfloat16: of x86, and of ARM.
_BF16 = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
_MIXED = ("bf16-mixed", "bf16")
_CPUINFO = Path("/proc/cpuinfo")


class Changed(NamedTuple):
    """A setting that a run has taken in place of what a configuration file says.

    Args:
        asked: What the file says.
        used: What the run takes.
        why: The reason.
    """

    asked: str
    used: str
    why: str


def processor_flags() -> frozenset[str] | None:
    """Return the names of the processor's instruction sets; None where they can't be read."""
    try:
        lines = _CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return None


def settle_precision(trainer: Any, typed: Sequence[str]) -> Changed | None:
    """Compute in float32 where bfloat16 would have to be imitated, ten times as slowly.

    Args:
        trainer: The settings under ``trainer``; ``precision`` is set.
        typed: Words of the command line; a precision that was typed stays.

    Returns:
        What was changed; None for nothing, also where nothing is known of the processor.
    """
    asked = trainer.get("precision")
    if asked not in _MIXED or _is_typed(typed) or not _runs_on_cpu(trainer.get("accelerator")):
        return None
    flags = processor_flags()
    if flags is None or flags & _BF16:
        return None
    trainer["precision"] = "32-true"
    why = "this CPU has no bfloat16 instructions (avx512_bf16, amx_bf16)"
    return Changed(str(asked), "32-true", why)


def _is_typed(words: Sequence[str]) -> bool:
    options = [word.partition("=")[0] for word in words]
    pairs = zip(options, words, (*words, "")[1:], strict=True)
    return "--trainer.precision" in options or any(
        option == "--trainer" and "precision" in (word + following)
        for option, word, following in pairs
    )


def _runs_on_cpu(accelerator: Any) -> bool:
    has_other = torch.cuda.is_available() or torch.backends.mps.is_available()
    return accelerator == "cpu" or (accelerator in ("auto", None) and not has_other)
