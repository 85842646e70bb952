"""Predicted memory as text: a table of strategies by devices, and what fits first."""

from __future__ import annotations

from collections.abc import Mapping

from etw_lightning.memory.prediction import (
    DEVICE_COUNTS,
    GIB,
    Footprint,
    Needs,
    Strategy,
    predict_footprint,
    predict_host,
)

__all__ = ["in_gib", "memory_table", "say_choice"]


def in_gib(size: int) -> str:
    """Return bytes as text.

    Example:
        >>> in_gib(3 * 2**29)
        '1.5 GiB'
    """
    return f"{size / GIB:.1f} GiB" if size >= GIB / 10 else f"{size / 2**20:.1f} MiB"


def memory_table(needs_of: Mapping[Strategy, Needs], available: int) -> str:
    """Return GiB of each GPU for every strategy and number of GPUs; ``*`` marks what fits.

    Args:
        needs_of: What the run needs under each strategy.
        available: Bytes of one GPU.
    """
    rows = [["GiB per GPU", *map(str, DEVICE_COUNTS), "largest part"]]
    for strategy, needs in needs_of.items():
        counts = [count for count in DEVICE_COUNTS if strategy != "single" or count == 1]
        found = {count: predict_footprint(needs, strategy, count) for count in counts}
        cells = [_cell(found.get(count), available) for count in DEVICE_COUNTS]
        rows.append([strategy, *cells, _largest(found[counts[0]])])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if place in (0, len(widths) - 1) else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    offloaded = needs_of.get("deepspeed_zero3_offload")
    notes = [f"* fits {in_gib(available)} of each GPU"]
    if offloaded is not None:
        notes.append(f"offloading takes {in_gib(predict_host(offloaded))} of the hosts' memory")
    return "\n".join([*lines, "; ".join(notes)])


def _cell(found: Footprint | None, available: int) -> str:
    if found is None:
        return "-"
    return f"{found.total / GIB:.1f}{'*' if found.total <= available else ' '}"


def _largest(found: Footprint) -> str:
    """Return the name of the largest part, and when the most is needed."""
    names = ("weights", "gradients", "state", "working", "gathered")
    name = max(names, key=lambda one: int(getattr(found, one)))
    return f"{name} in {found.moment}"


def say_choice(choice: tuple[Strategy, int] | None) -> str:
    """Return what fits first, or what to change if nothing does."""
    if choice is None:
        return (
            "no strategy fits; try --model.gradient_checkpointing true, a lower data.batch_size or "
            "data.eval_batch_size, model.dtype bfloat16, or model.peft"
        )
    strategy, count = choice
    devices = "one GPU" if count == 1 else f"{count} GPUs"
    return f"the first that fits is --config strategy/{strategy} on {devices}"
