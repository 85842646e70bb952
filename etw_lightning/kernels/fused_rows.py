"""Rows of logits scored in one read, their gradient made in one more: Triton kernels for CUDA.

What ``plain_rows`` does with PyTorch's own operations, which go over a chunk of logits some eight
times, is done here once forward (maximum, sum, label, entropy) and once backward (the gradient, in
place or in the dtype of the product that takes it). Sums run along a row, a block at a time, with
the largest share kept out of them as there. PyTorch's CUDA wheels for Linux bring Triton along;
without it this module can be imported, and ``missing`` says so. ``TRITON_INTERPRET=1`` in the
environment runs the same kernels on a processor, slowly, to test them.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from etw_lightning.kernels.logits import LogitTransform
from etw_lightning.kernels.plain_rows import Scored

try:
    import triton
    from triton import language as tl
except ImportError:
    triton = tl = None

__all__ = ["missing", "score_rows", "slope_rows"]

#: Logits of a row that are worked on at a time; a power of 2.
_BLOCK = 4096
#: Below every logit.
_LOWEST = -1e30
#: Sizes above which ``tanh`` is taken from exponentials, below from its series, whose first term
#: that is left out is 62 / 2835 of the size to the ninth.
_SMALL = 0.2


def _compiled(function: Any) -> Any:
    """Make a kernel of a function, where there is Triton."""
    return function if triton is None else triton.jit(function)


def missing(device: torch.device) -> str:
    """Return what keeps the kernels from a device, in words; empty for nothing.

    Args:
        device: Where the logits will be.
    """
    if triton is None:
        return "the package triton, which PyTorch's CUDA wheels for Linux bring along, is absent"
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return f"the device is {device.type}, not cuda"
    return ""


def score_rows(
    logits: Tensor, labels: Tensor, temperature: float | None, transform: LogitTransform | None
) -> Scored:
    """Score labels in one read of the logits, which are left as they are.

    Args:
        logits: As the head says them, scaled and capped here, float32, ``(N, V)``.
        labels: Token ids in ``[0, V)``, ``(N,)``.
        temperature: Of the entropies, > 0; None for none.
        transform: As of ``linear_scores``; what it cuts is cut already.

    Returns:
        What ``score_in_place`` finds, float32, but for the places of the likeliest tokens, which
        ``slope_rows`` does without.
    """
    num, size = logits.shape
    logps, largest, shares = (torch.empty_like(logits[:, 0]) for _ in range(3))
    entropies = torch.empty_like(logps) if temperature is not None else logps.new_empty(0)
    if num:
        scale, cap = _numbers(transform)
        with _on(logits.device):
            _score_kernel[(num,)](
                *(logits, labels.contiguous(), logps, entropies, largest, shares),
                *(size, logits.stride(0), temperature or 1.0, scale, cap),
                # Fixed when it is compiled: what is not asked for costs nothing.
                has_cap=cap > 0,
                has_entropy=temperature is not None,
                is_tempered=temperature not in (None, 1.0),
                lowest=_LOWEST,
                small=_SMALL,
                block=min(_BLOCK, triton.next_power_of_2(size)),
            )
    return Scored(logps, entropies, largest, shares, labels[:0])


def slope_rows(
    logits: Tensor,
    labels: Tensor,
    incoming: Tensor,
    largest: Tensor,
    shares: Tensor,
    transform: LogitTransform | None,
    out: Tensor,
) -> Tensor:
    """Return the gradient of the head's own logits, given that of the labels' log-probabilities.

    Args:
        logits: As ``score_rows`` got them, ``(N, V)``.
        labels: ``(N,)``.
        incoming: Gradient of the loss by each log-probability, float32, ``(N,)``.
        largest: As ``score_rows`` returned it, ``(N,)``.
        shares: As ``score_rows`` returned them, ``(N,)``.
        transform: As of ``score_rows``.
        out: Where it is written, which may be ``logits``; of any floating dtype, ``(N, V)``.
    """
    num, size = logits.shape
    if num:
        scale, cap = _numbers(transform)
        block = min(_BLOCK, triton.next_power_of_2(size))
        with _on(logits.device):
            _slope_kernel[(num, triton.cdiv(size, block))](
                *(logits, labels.contiguous(), incoming.contiguous()),
                *(largest.contiguous(), shares.contiguous(), out),
                *(size, logits.stride(0), out.stride(0), scale, cap),
                has_cap=cap > 0,
                small=_SMALL,
                block=block,
            )
    return out


def _numbers(transform: LogitTransform | None) -> tuple[float, float]:
    """Return scale and cap; a cap of 0 stands for none."""
    return (1.0, 0.0) if transform is None else (transform.scale, transform.cap or 0.0)


def _on(device: torch.device) -> AbstractContextManager[Any]:
    """Launch on the device of the tensors, whichever is the current one."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


# The kernels; arguments that are `constexpr` are known when they are compiled.


@_compiled
def _changed(logits, scale, cap, has_cap: tl.constexpr, small: tl.constexpr):
    """Scale and cap logits: ``cap * tanh(scale * logits / cap)``."""
    scaled = logits * scale
    if has_cap:
        ratio = scaled / cap
        size = tl.abs(ratio)
        square = ratio * ratio
        series = ratio * (1 + square * (-1 / 3 + square * (2 / 15 - square * (17 / 315))))
        power = tl.exp(-2 * size)
        large = (1 - power) / (1 + power)
        scaled = cap * tl.where(size < small, series, tl.where(ratio < 0, -large, large))
    return scaled


@_compiled
def _joined(
    best,
    others,
    moment,
    new_best,
    new_others,
    new_moment,
    temperature,
):
    """Join what is known of two parts of a row into what is known of both.

    Each is its largest logit, the sum of ``exp(d)`` over its other logits, with ``d`` their
    distance to the largest by the temperature, and the sum of ``d * exp(d)``.
    """
    gap = (new_best - best) / temperature
    is_new = gap > 0
    apart = tl.where(is_new, -gap, gap)
    kept = tl.where(is_new, new_others, others)
    kept_moment = tl.where(is_new, new_moment, moment)
    moved = 1 + tl.where(is_new, others, new_others)
    moved_moment = tl.where(is_new, moment, new_moment)
    factor = tl.exp(apart)
    # Where nothing comes over, nothing does, however far it was.
    added = tl.where(factor == 0, 0.0, factor * (moved_moment + apart * moved))
    return kept + factor * moved, kept_moment + added


@_compiled
def _sums(distances, is_largest):
    """Sum ``exp(d)`` and ``d * exp(d)`` of all logits but the largest; of none where d = -inf."""
    exps = tl.where(is_largest, 0.0, tl.exp(distances))
    return tl.sum(exps, 0), tl.sum(exps * tl.where(exps == 0, 0.0, distances), 0)


@_compiled
def _score_kernel(
    logits,
    labels,
    logps,
    entropies,
    largest,
    shares,
    size,
    stride,
    temperature,
    scale,
    cap,
    has_cap: tl.constexpr,
    has_entropy: tl.constexpr,
    is_tempered: tl.constexpr,
    lowest: tl.constexpr,
    small: tl.constexpr,
    block: tl.constexpr,
):
    """Score one row, from left to right."""
    row = tl.program_id(0).to(tl.int64)
    begin = logits + row * stride
    best = lowest
    # No logit yet, the largest of which is far below all: it vanishes when it is joined.
    others, moment, warm_others, warm_moment = 0.0, 0.0, 0.0, 0.0
    for first in range(0, size, block):
        columns = first + tl.arange(0, block)
        inside = columns < size
        raw = tl.load(begin + columns, mask=inside, other=0.0)
        found = tl.where(inside, _changed(raw, scale, cap, has_cap, small), -float("inf"))
        new_best, place = tl.max(found, 0, return_indices=True)
        is_largest = columns == first + place
        distances = found - new_best
        some, some_moment = _sums(distances, is_largest)
        others, moment = _joined(best, others, moment, new_best, some, some_moment, 1.0)
        if is_tempered:
            some, some_moment = _sums(distances / temperature, is_largest)
            warm_others, warm_moment = _joined(
                best, warm_others, warm_moment, new_best, some, some_moment, temperature
            )
        best = tl.maximum(best, new_best)
    label = _changed(tl.load(begin + tl.load(labels + row)), scale, cap, has_cap, small)
    normalizer = _log1p(others)
    tl.store(logps + row, label - best - normalizer)
    tl.store(largest + row, best)
    tl.store(shares + row, 1 / (1 + others))
    if is_tempered:
        tl.store(entropies + row, _log1p(warm_others) - warm_moment / (1 + warm_others))
    elif has_entropy:
        tl.store(entropies + row, normalizer - moment / (1 + others))


@_compiled
def _log1p(value):
    """Return log(1 + value), value >= 0, with the digits of small ones.

    Source: Kahan's: the rounding of 1 + value is taken off again by a quotient.
    """
    whole = 1 + value
    rounded = whole - 1
    safe = tl.where(rounded == 0, 1.0, rounded)
    return tl.where(rounded == 0, value, tl.log(whole) * (value / safe))


@_compiled
def _slope_kernel(
    logits,
    labels,
    incoming,
    largest,
    shares,
    out,
    size,
    stride,
    out_stride,
    scale,
    cap,
    has_cap: tl.constexpr,
    small: tl.constexpr,
    block: tl.constexpr,
):
    """Write one block of a row: onehot(label) - softmax, times the incoming gradient."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * block + tl.arange(0, block)
    inside = columns < size
    raw = tl.load(logits + row * stride + columns, mask=inside, other=0.0)
    found = _changed(raw, scale, cap, has_cap, small)
    given = tl.load(incoming + row)
    slope = -given * tl.load(shares + row) * tl.exp(found - tl.load(largest + row))
    slope += tl.where(columns == tl.load(labels + row), given, 0.0)
    if has_cap:
        slope *= 1 - (found / cap) * (found / cap)
    slope *= scale
    tl.store(out + row * out_stride + columns, slope, mask=inside)
