"""Label log-probabilities and entropies from hidden states, never holding all logits."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from etw_lightning.kernels.logits import LogitTransform
from etw_lightning.kernels.plain_rows import (
    Scored,
    describe_in_place,
    score_in_place,
    slope_in_place,
)

__all__ = [
    "LinearScores",
    "LinearStatistics",
    "linear_scores",
    "linear_statistics",
]


#: Bytes of probabilities that a forward pass keeps at most for its backward pass.
_ROOM = 1 << 30


class LinearScores(NamedTuple):
    """What the output head says at N positions.

    Args:
        logps: Log-probability of the label, nats, float32, differentiable, ``(N,)``.
        entropies: Entropy of ``softmax(logits / temperature)``, nats, float32, not
            differentiable, ``(N,)``; None if not asked for.
    """

    logps: Tensor
    entropies: Tensor | None


class LinearStatistics(NamedTuple):
    """What an evaluation keeps of N predictions, none of it differentiable.

    Args:
        logps: Log-probability of the label, nats, ``(N,)``.
        entropies: Entropy of the prediction, nats, >= 0, ``(N,)``.
        variances: Variance of log p(v) with v drawn from the prediction, nats^2, >= 0, ``(N,)``.
        matches: Whether the label is the likeliest token, the first of equals, ``(N,)``.
    """

    logps: Tensor
    entropies: Tensor
    variances: Tensor
    matches: Tensor


def linear_scores(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None = None,
    *,
    temperature: float = 1.0,
    chunk_size: int = 256,
    entropy: bool = True,
    transform: LogitTransform | None = None,
    fused: bool = False,
) -> LinearScores:
    """Score labels under ``softmax(hidden @ weight.T + bias)`` in chunks of positions.

    At most ``chunk_size`` rows of logits are worked on at a time. The backward pass takes the
    probabilities of the first rows, as far as 1 GiB holds them, from the forward pass, and
    computes the others again, as it does all where logits are capped: memory does not grow with
    ``N``. Logits, log-probabilities and entropies are float32 whatever the dtype of the inputs
    (float64 for float64 inputs). The products of the backward pass use the dtype of the run: that
    of ``hidden``, or the autocast dtype.

    Args:
        hidden: Hidden states at the positions that predict the labels, ``(N, D)``.
        weight: Output embedding, ``(V, D)``.
        labels: Token ids in ``[0, V)``, ``(N,)``.
        bias: Output bias, ``(V,)``.
        temperature: Divides the logits for the entropy only, > 0.
        chunk_size: Positions at a time, >= 1. Changes memory, not values.
        entropy: Also compute entropies.
        transform: What the model makes of the logits; labels must lie in what it keeps of the
            vocabulary. A soft cap takes one more chunk of logits in the backward pass.
        fused: Go over the logits in the kernels of ``fused_rows``, whose sums round otherwise.
            The backward pass then takes logits themselves from the forward pass, capped ones too.

    Returns:
        ``LinearScores`` with ``(N,)`` log-probabilities and entropies (None if not asked for).

    Raises:
        ValueError: If float64 inputs are to go through kernels, which are of float32.

    Source: entropy-guided token weighting, arXiv:2604.17785; the entropy comes from the logits
    the loss needs anyway.

    Differs from ``cross_entropy(logits.transpose(-1, -2), labels)``, as widely used scoring has
    it: in float32 on CPUs torch 2.13 reads every loss low there, by 1e-5 nats at a vocabulary of
    32,000 and 1e-4 at 128,000. Float64 agrees with what is computed here.

    Example:
        >>> scores = linear_scores(torch.zeros(1, 2), torch.zeros(4, 2), torch.tensor([3]))
        >>> scores.logps.item() == -scores.entropies.item()  # uniform over four tokens
        True
    """
    if transform is not None:
        weight, bias = transform.cut(weight, bias)
    if fused and hidden.dtype == torch.float64:
        raise ValueError("fused must be False for float64; the kernels are of float32.")
    keeps = torch.is_grad_enabled() and (fused or transform is None or transform.cap is None)
    logps, entropies = _LinearScores.apply(
        hidden,
        weight,
        bias,
        labels,
        temperature if entropy else None,
        chunk_size,
        transform,
        _ROOM if keeps else 0,
        fused,
    )
    return LinearScores(logps, entropies if entropy else None)


@torch.no_grad()
def linear_statistics(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None = None,
    *,
    chunk_size: int = 256,
    transform: LogitTransform | None = None,
) -> LinearStatistics:
    """Describe the predictions ``softmax(hidden @ weight.T + bias)`` in chunks of positions.

    At most ``chunk_size`` rows of logits exist at a time. Everything is float32 whatever the dtype
    of the inputs (float64 for float64 inputs), and keeps its digits for near-certain predictions.

    Args:
        hidden: Hidden states at the positions that predict the labels, ``(N, D)``.
        weight: Output embedding, ``(V, D)``.
        labels: Token ids in ``[0, V)``, ``(N,)``.
        bias: Output bias, ``(V,)``.
        chunk_size: Positions at a time, >= 1. Changes memory, not values.
        transform: As for ``linear_scores``.

    Example:
        >>> head = torch.tensor([[0.0], [1.0]])
        >>> even, sure = torch.tensor([[0.0], [20.0]])
        >>> linear_statistics(even[None], head, torch.tensor([0])).variances
        tensor([0.])
        >>> linear_statistics(sure[None], head, torch.tensor([0])).matches
        tensor([False])
    """
    dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    if transform is not None:
        weight, bias = transform.cut(weight, bias)
    found: list[tuple[Tensor, ...]] = []
    with torch.autocast(hidden.device.type, enabled=False):
        wide = _widened(weight, hidden, dtype)
        for start in range(0, len(labels), chunk_size):
            part = slice(start, start + chunk_size)
            logits = _float_logits(hidden[part], wide, bias, dtype)
            if transform is not None:
                transform.change_(logits)
            found.append(describe_in_place(logits, labels[part]))
    if not found:
        empty = hidden.new_empty(0, dtype=dtype)
        return LinearStatistics(empty, empty, empty, empty.bool())
    return LinearStatistics(*(torch.cat(parts) for parts in zip(*found, strict=True)))


def _widened(weight: Tensor, hidden: Tensor, dtype: torch.dtype) -> Tensor:
    """Return an output head in ``dtype``; on CUDA as it is, where products need no copy."""
    return weight if hidden.is_cuda and hidden.dtype == weight.dtype else weight.to(dtype)


def _float_logits(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """Return ``hidden @ weight.T + bias`` accumulated and stored in ``dtype``.

    Args:
        hidden: Hidden states, ``(n, D)``.
        weight: As ``_widened`` gives it, ``(V, D)``.
        bias: Output bias, ``(V,)``.
        dtype: Of the sums.
    """
    if hidden.dtype == weight.dtype != dtype:
        # Exact products of 16-bit numbers summed in float32, without a float32 copy of the head.
        logits = torch.mm(hidden, weight.T, out_dtype=dtype)
    else:
        logits = hidden.to(dtype) @ weight.to(dtype).T
    return logits if bias is None else logits.add_(bias.to(dtype))


class _LinearScores(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        temperature: float | None,
        chunk_size: int,
        transform: LogitTransform | None,
        room: int,
        fused: bool,
    ) -> tuple[Tensor, Tensor]:
        device = hidden.device.type
        dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        autocast = torch.is_autocast_enabled(device)
        ctx.product_dtype = torch.get_autocast_dtype(device) if autocast else hidden.dtype
        ctx.chunk_size, ctx.dtype, ctx.transform, ctx.fused = chunk_size, dtype, transform, fused
        room = room if any(ctx.needs_input_grad) else 0
        found: list[Scored] = []
        #: Of the first chunks what the backward pass takes, by where they begin: shares, or logits
        #: where kernels make their gradient.
        ctx.kept = {}
        with torch.autocast(device, enabled=False):
            wide = _widened(weight, hidden, dtype)
            for start in range(0, len(labels), chunk_size):
                part = slice(start, start + chunk_size)
                logits = _float_logits(hidden[part], wide, bias, dtype)
                room -= logits.nbytes
                if fused:
                    score = _fused_rows().score_rows
                    found.append(score(logits, labels[part], temperature, transform))
                else:
                    if transform is not None:
                        transform.change_(logits)
                    found += score_in_place(logits, labels[part], temperature, keeps=room >= 0)
                if room >= 0:
                    ctx.kept[start] = logits
        if not found:
            logps, entropies, largest, shares = hidden.new_empty(4, 0, dtype=dtype)
            found = [Scored(logps, entropies, largest, shares, labels[:0])]
        logps, entropies, *saved = (torch.cat(column) for column in zip(*found, strict=True))
        ctx.save_for_backward(hidden, weight, bias, labels, *saved)
        ctx.mark_non_differentiable(entropies)
        return logps, entropies

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, labels, largest, largest_shares, places = ctx.saved_tensors
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        dtype, low = ctx.dtype, ctx.product_dtype
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        grad_weight: Tensor | None = None
        if needs_weight and low == dtype:
            grad_weight = torch.zeros_like(weight, dtype=dtype)
        grad_bias = torch.zeros_like(bias, dtype=dtype) if needs_bias else None
        device = hidden.device.type
        with torch.autocast(device, enabled=False):
            wide: Tensor | None = None
            narrow = weight.to(low)
            for start in range(0, len(labels), ctx.chunk_size):
                part = slice(start, start + ctx.chunk_size)
                incoming, shares = grad[part].to(dtype), largest_shares[part]
                # What is kept is used up here; a second backward pass computes it again.
                logits = ctx.kept.pop(start, None)
                is_kept = logits is not None
                if not is_kept:
                    # A copy of the head where it is of 16 bits: made only if it is wanted.
                    wide = _widened(weight, hidden, dtype) if wide is None else wide
                    logits = _float_logits(hidden[part], wide, bias, dtype)
                if ctx.fused:
                    scored = (labels[part], incoming, largest[part], shares)
                    # A bias takes their sum, which is not to be rounded before.
                    in_place = needs_bias or low == dtype
                    out = logits if in_place else torch.empty_like(logits, dtype=low)
                    slope = _fused_rows().slope_rows(logits, *scored, ctx.transform, out)
                else:
                    own_slope = None if ctx.transform is None else ctx.transform.scale
                    if not is_kept:
                        if ctx.transform is not None:
                            own_slope = ctx.transform.slope(ctx.transform.change_(logits))
                        logits.sub_(largest[part, None]).exp_()
                    slope = slope_in_place(logits, labels[part], incoming, shares, places[part])
                    if own_slope is not None:
                        slope.mul_(own_slope)
                product = slope.to(low)
                if grad_hidden is not None:
                    grad_hidden[part] = (product @ narrow).to(hidden.dtype)
                if grad_weight is not None and low == dtype:
                    grad_weight.addmm_(product.T, hidden[part])
                elif needs_weight:
                    own = product.T @ hidden[part].to(low)
                    # Sums are wide; a single chunk's needs no copy of the head's size.
                    grad_weight = own if grad_weight is None else grad_weight.to(dtype).add_(own)
                    del own
                if grad_bias is not None:
                    grad_bias += slope.sum(0)
                del logits, slope, product
        return (
            grad_hidden,
            _or_zeros(grad_weight, weight) if needs_weight else None,
            None if grad_bias is None else grad_bias.to(bias.dtype),
            None,
            None,
            None,
            None,
            None,
            None,
        )


def _or_zeros(grad: Tensor | None, weight: Tensor) -> Tensor:
    """Return a gradient in its weight's dtype; of no label it is 0."""
    return torch.zeros_like(weight) if grad is None else grad.to(weight.dtype)


def _fused_rows() -> Any:
    """Return the kernels' module, which imports Triton."""
    from etw_lightning.kernels import fused_rows

    return fused_rows
