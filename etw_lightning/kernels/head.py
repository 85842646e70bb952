"""Label log-probabilities and entropies from hidden states, never holding all logits."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from etw_lightning.kernels.logits import LogitTransform

__all__ = [
    "LinearScores",
    "LinearStatistics",
    "linear_scores",
    "linear_statistics",
]


#: Bytes of probabilities that a forward pass keeps at most for its backward pass.
_ROOM = 1 << 28
#: Bytes of logits that a processor's core has at hand while it goes over them several times.
_CACHED = 1 << 19


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
) -> LinearScores:
    """Score labels under ``softmax(hidden @ weight.T + bias)`` in chunks of positions.

    At most ``chunk_size`` rows of logits are worked on at a time. The backward pass takes the
    probabilities of the first rows, as far as 256 MiB hold them, from the forward pass, and
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

    Returns:
        ``LinearScores`` with ``(N,)`` log-probabilities and entropies (None if not asked for).

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
    keeps = torch.is_grad_enabled() and (transform is None or transform.cap is None)
    logps, entropies = _LinearScores.apply(
        hidden,
        weight,
        bias,
        labels,
        temperature if entropy else None,
        chunk_size,
        transform,
        _ROOM if keeps else 0,
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
            found.append(_describe_in_place(logits, labels[part]))
    if not found:
        empty = hidden.new_empty(0, dtype=dtype)
        return LinearStatistics(empty, empty, empty, empty.bool())
    return LinearStatistics(*(torch.cat(parts) for parts in zip(*found, strict=True)))


def _describe_in_place(logits: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    """Return the fields of ``LinearStatistics``; overwrites ``logits``.

    The largest share is kept out of the sums: of a near-certain prediction all there is to say is
    what the others sum to, and rounding ``1 + x`` would cost 5 % of an entropy of 1e-6 nats.
    """
    largest, place = logits.max(-1, keepdim=True)
    logits.sub_(largest)
    picked = logits.gather(-1, labels[:, None])[:, 0]
    exps = logits.exp().scatter_(-1, place, 0.0)
    rest = exps.sum(-1)
    normalizer = rest.log1p()
    expected = torch.linalg.vecdot(exps, logits) / (1 + rest)
    entropies = normalizer - expected
    # log p(v) + H = shifted logit - expected shifted logit: the normalizer cancels.
    squares = logits.sub_(expected[:, None]).square_().mul_(exps).sum(-1) + expected.square()
    return picked - normalizer, entropies, squares / (1 + rest), labels == place[:, 0]


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
    ) -> tuple[Tensor, Tensor]:
        device = hidden.device.type
        dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        autocast = torch.is_autocast_enabled(device)
        ctx.product_dtype = torch.get_autocast_dtype(device) if autocast else hidden.dtype
        ctx.chunk_size, ctx.dtype, ctx.transform = chunk_size, dtype, transform
        room = room if any(ctx.needs_input_grad) else 0
        found: list[_Scored] = []
        #: Shares of the first chunks, by where they begin; the backward pass takes them.
        ctx.kept = {}
        with torch.autocast(device, enabled=False):
            wide = _widened(weight, hidden, dtype)
            for start in range(0, len(labels), chunk_size):
                part = slice(start, start + chunk_size)
                logits = _float_logits(hidden[part], wide, bias, dtype)
                if transform is not None:
                    transform.change_(logits)
                room -= logits.nbytes
                scored = [
                    _score_in_place(rows, names, temperature, keeps=room >= 0)
                    for rows, names in zip(
                        _cached_rows(logits), _cached_rows(labels[part], logits), strict=True
                    )
                ]
                found += scored
                if room >= 0:
                    ctx.kept[start] = logits
        if not found:
            logps, entropies, largest, shares = hidden.new_empty(4, 0, dtype=dtype)
            found = [_Scored(logps, entropies, largest, shares, labels[:0])]
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
        grad_weight = torch.zeros_like(weight, dtype=dtype) if needs_weight else None
        grad_bias = torch.zeros_like(bias, dtype=dtype) if needs_bias else None
        device = hidden.device.type
        with torch.autocast(device, enabled=False):
            wide = _widened(weight, hidden, dtype)
            narrow = weight.to(low)
            for start in range(0, len(labels), ctx.chunk_size):
                part = slice(start, start + ctx.chunk_size)
                incoming = grad[part, None].to(dtype)
                own_slope = None if ctx.transform is None else ctx.transform.scale
                # What is kept is used up here; a second backward pass computes it again.
                exps = ctx.kept.pop(start, None)
                if exps is None:
                    exps = _float_logits(hidden[part], wide, bias, dtype)
                    if ctx.transform is not None:
                        own_slope = ctx.transform.slope(ctx.transform.change_(exps))
                    exps.sub_(largest[part, None]).exp_()
                # d logp / d logits = onehot(label) - softmax, times the incoming gradient.
                shares = -incoming * largest_shares[part, None]
                slope = exps.mul_(shares).scatter_(-1, places[part, None], shares)
                slope.scatter_add_(-1, labels[part, None], incoming)
                if own_slope is not None:
                    slope.mul_(own_slope)
                product = slope.to(low)
                if grad_hidden is not None:
                    grad_hidden[part] = (product @ narrow).to(hidden.dtype)
                if grad_weight is not None and low == dtype:
                    grad_weight.addmm_(product.T, hidden[part])
                elif grad_weight is not None:
                    grad_weight += (product.T @ hidden[part].to(low)).to(dtype)
                if grad_bias is not None:
                    grad_bias += slope.sum(0)
                del exps, slope, product
        return (
            grad_hidden,
            None if grad_weight is None else grad_weight.to(weight.dtype),
            None if grad_bias is None else grad_bias.to(bias.dtype),
            None,
            None,
            None,
            None,
            None,
        )


class _Scored(NamedTuple):
    """What one pass over N rows of logits finds, each ``(N,)``.

    Args:
        logps: Of the labels.
        entropies: Of the tempered predictions; empty if not asked for.
        largest: Largest logit.
        largest_shares: Probability of the likeliest token.
        places: Which token that is.
    """

    logps: Tensor
    entropies: Tensor
    largest: Tensor
    largest_shares: Tensor
    places: Tensor


def _cached_rows(rows: Tensor, sized: Tensor | None = None) -> tuple[Tensor, ...]:
    """Split rows, or what belongs to those of ``sized``, for several passes to find them cached."""
    sized = rows if sized is None else sized
    if sized.device.type != "cpu":
        return (rows,)
    return rows.split(max(1, _CACHED // max(1, sized[:1].nbytes)))


def _score_in_place(
    logits: Tensor, labels: Tensor, temperature: float | None, *, keeps: bool
) -> _Scored:
    """Score rows in one pass; leaves the exponentials of the others by the likeliest in ``logits``.

    As in ``_describe_in_place`` the largest share is kept out of the sums.

    Args:
        logits: Overwritten, ``(N, V)``.
        labels: ``(N,)``.
        temperature: Of the entropies; None for none.
        keeps: Whether the exponentials are wanted.
    """
    largest, place = logits.max(-1, keepdim=True)
    logits.sub_(largest)
    picked = logits.gather(-1, labels[:, None])[:, 0]
    exps = logits.exp().scatter_(-1, place, 0.0)
    rest = exps.sum(-1)
    normalizer = rest.log1p()
    entropies = picked.new_empty(0)
    if temperature == 1:
        entropies = normalizer - torch.linalg.vecdot(exps, logits) / (1 + rest)
    elif temperature is not None:
        tempered = logits.div_(temperature)
        others = tempered.exp().scatter_(-1, place, 0.0)
        sums = others.sum(-1)
        expected = torch.linalg.vecdot(others, tempered) / (1 + sums)
        entropies = sums.log1p() - expected
    if keeps:
        logits.copy_(exps)
    return _Scored(picked - normalizer, entropies, largest[:, 0], 1 / (1 + rest), place[:, 0])
