"""Which way a training step goes over its logits: PyTorch's operations, or kernels of our own."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from etw_lightning.kernels.plain_rows import score_in_place, slope_in_place
from etw_lightning.schema import InputError

__all__ = ["HeadKernel", "HeadWay", "check_way", "faster_way", "seconds_of_ways"]

#: How logits are gone over.
HeadWay = Literal["plain", "triton"]
#: ``fastest`` measures once, on the run's own device and sizes.
HeadKernel = Literal["plain", "triton", "fastest"]
#: Times that each way is measured, by turns, after one that compiles and warms up.
_REPEATS = 7


def check_way(way: HeadWay, device: torch.device, chosen: str = "") -> None:
    """Refuse a way that a device does not have.

    Args:
        way: As it was asked for.
        device: Where the logits will be.
        chosen: Who has asked, where it was not the user.

    Raises:
        InputError: Names the key and what is missing.
    """
    if way == "plain":
        return
    from etw_lightning.kernels import fused_rows  # Imports Triton, which takes seconds.

    lacks = fused_rows.missing(device)
    if lacks:
        raise InputError(
            f"model.head_kernel is {way}{chosen}, but {lacks}; give --model.head_kernel plain, "
            "which computes the same with other last digits."
        )


def faster_way(
    positions: int, vocabulary: int, dtype: torch.dtype, device: torch.device
) -> HeadWay:
    """Measure both ways over a chunk of random logits; plain where there are no kernels.

    Two measurements may differ where the ways are about as fast: who needs the same bits again
    keeps what was returned.

    Args:
        positions: Rows of a chunk.
        vocabulary: Logits of a row.
        dtype: Of the products that take the gradient.
        device: Where the logits will be.
    """
    from etw_lightning.kernels import fused_rows

    if fused_rows.missing(device):
        return "plain"
    seconds = seconds_of_ways(positions, vocabulary, dtype, device)
    return min(seconds, key=lambda way: seconds[way])


def seconds_of_ways(
    positions: int, vocabulary: int, dtype: torch.dtype, device: torch.device
) -> dict[HeadWay, float]:
    """Return what a chunk's scores, entropies and gradient take each way, seconds (median).

    Args:
        positions: As of ``faster_way``.
        vocabulary: As of ``faster_way``.
        dtype: As of ``faster_way``.
        device: With kernels.
    """
    generator = torch.Generator().manual_seed(0)
    made = torch.randn(positions, vocabulary, generator=generator).to(device)
    labels = torch.randint(vocabulary, (positions,), generator=generator).to(device)
    ways: dict[HeadWay, Callable[[Tensor], Tensor]] = {
        "plain": lambda logits: _plain(logits, labels, dtype),
        "triton": lambda logits: _fused(logits, labels, dtype),
    }
    spent: dict[HeadWay, list[float]] = {way: [] for way in ways}
    for repeat in range(_REPEATS + 1):
        for way, work in ways.items():
            logits = made.clone()
            _settle(device)
            start = time.perf_counter()
            work(logits)
            _settle(device)
            if repeat:
                spent[way].append(time.perf_counter() - start)
    return {way: statistics.median(times) for way, times in spent.items()}


def _plain(logits: Tensor, labels: Tensor, dtype: torch.dtype) -> Tensor:
    found = score_in_place(logits, labels, 1.0, keeps=True)
    logps, _, _, shares, places = (torch.cat(column) for column in zip(*found, strict=True))
    return slope_in_place(logits, labels, logps, shares, places).to(dtype)


def _fused(logits: Tensor, labels: Tensor, dtype: torch.dtype) -> Tensor:
    from etw_lightning.kernels import fused_rows

    logps, _, largest, shares, _ = fused_rows.score_rows(logits, labels, 1.0, None)
    out = logits if dtype == logits.dtype else torch.empty_like(logits, dtype=dtype)
    return fused_rows.slope_rows(logits, labels, logps, largest, shares, None, out)


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
