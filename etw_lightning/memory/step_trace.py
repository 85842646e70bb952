"""What the tensors of one training step take, found without any weights or numbers.

The model's own code runs on fake tensors, which have a shape and no content; every tensor that is
made is counted from when it is made until it is let go. So the count follows whatever the model's
architecture, autocast, gradient checkpointing and the fused output head do.
"""

from __future__ import annotations

import logging
import weakref
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from etw_lightning.kernels.distributions import HeadDistributions
from etw_lightning.kernels.head import linear_scores, linear_statistics
from etw_lightning.memory.outline import Outline, TraceError, bytes_of
from etw_lightning.tuning.decoder import body_of

__all__ = [
    "Moment",
    "StepShape",
    "trace_evaluation",
    "trace_step",
]

#: Where a step is: one of them holds a float32 copy of a 16-bit head on the CPU, and none on CUDA.
_Phase = Literal["body", "head"]


@dataclass(frozen=True)
class StepShape:
    """Size of one micro-batch and how it is computed.

    Args:
        rows: Rows that go through the model in one pass, forget and retain together, >= 1.
        tokens: Tokens of the longest row, >= 2.
        labels: Labelled positions of all rows, >= 1.
        chunk_size: Positions at a time in the output head, >= 1.
        autocast: Precision that products are cast to; None casts nothing.
        has_reference: A frozen model, or the model without its adapter, runs on the same rows.
        reads_distributions: An objective reads whole distributions over the vocabulary.
        on_cuda: The head multiplies 16-bit weights without a float32 copy of them.
    """

    rows: int
    tokens: int
    labels: int
    chunk_size: int = 256
    autocast: torch.dtype | None = None
    has_reference: bool = False
    reads_distributions: bool = False
    on_cuda: bool = True

    def __post_init__(self) -> None:
        for name, least in (("rows", 1), ("tokens", 2), ("labels", 1), ("chunk_size", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be >= {least}; got {getattr(self, name)}.")


@dataclass(frozen=True)
class Moment:
    """The most that is alive while this many bytes of gradients are there.

    Args:
        working: Bytes besides weights, gradients and optimiser state.
        gradients: Bytes of gradients that the backward pass has made by then.
    """

    working: int
    gradients: int


def trace_step(outline: Outline, shape: StepShape) -> tuple[int, list[Moment]]:
    """Run one forward and backward pass, and return what was alive in each.

    Returns:
        Most bytes of working memory in the forward pass, while gradients of the step before are
        still there; moments of the backward pass.
    """
    weights = outline.trained
    with _tracing(outline, shape) as count:
        with _autocast(shape):
            count.phase = "body"
            hidden = _run_body(outline, shape)
            count.phase = "head"
            scores = _score(outline, hidden, shape)
            if shape.has_reference:
                _run_reference(outline, shape, count)
        forward = max(count.peaks.values())
        count.peaks.clear()
        count.record()
        handles = [weight.register_post_accumulate_grad_hook(count.keep) for weight in weights]
        if hidden.requires_grad:
            handles.append(hidden.register_hook(count.leave_head))
        del hidden
        scores.sum().backward()
        for handle in handles:
            handle.remove()
        moments = [Moment(most, gradients) for gradients, most in count.peaks.items()]
    for weight in weights:
        weight.grad = None
    return forward, moments


def trace_evaluation(outline: Outline, shape: StepShape) -> int:
    """Return the most bytes of working memory while rows are scored without gradients."""
    with _tracing(outline, shape) as count, torch.no_grad(), _autocast(shape):
        hidden = _run_body(outline, shape)
        count.phase = "head"
        labels = torch.zeros(shape.labels, dtype=torch.long)
        linear_statistics(
            hidden,
            outline.head,
            labels,
            chunk_size=shape.chunk_size,
            transform=outline.transform,
        )
        return max(count.peaks.values())


def _run_body(outline: Outline, shape: StepShape) -> Tensor:
    """Return the hidden states that predict the labels, ``(N, D)``."""
    ids = torch.zeros(shape.rows, shape.tokens, dtype=torch.long)
    # Rows of unequal length, so that there is padding to be masked.
    visible = torch.ones(shape.rows, shape.tokens, dtype=torch.long)
    out = body_of(outline.lm)(input_ids=ids, attention_mask=visible, use_cache=False)
    places = torch.zeros(shape.labels, dtype=torch.long)
    hidden: Tensor = out.last_hidden_state[:, :-1][places, places]
    return hidden


@torch.no_grad()
def _run_reference(outline: Outline, shape: StepShape, count: _Count) -> None:
    """Run the model once more, as its frozen copy or without its adapter."""
    count.phase = "body"
    hidden = _run_body(outline, shape)
    count.phase = "head"
    _score(outline, hidden, shape)


def _score(outline: Outline, hidden: Tensor, shape: StepShape) -> Tensor:
    labels = torch.zeros(shape.labels, dtype=torch.long)
    head = outline.lm.get_output_embeddings()
    bias = getattr(head, "bias", None)
    transform, size = outline.transform, shape.chunk_size
    scores = linear_scores(
        hidden, head.weight, labels, bias, chunk_size=size, transform=transform
    ).logps
    if shape.reads_distributions:
        every = HeadDistributions(hidden, head.weight, bias, size, transform)
        scores = scores + every.map(_negative_entropy)
    return scores


def _negative_entropy(logps: Tensor) -> Tensor:
    """Stand for an objective: it keeps two numbers for each of the vocabulary's."""
    return (logps.exp() * logps).sum(-1)


class _Count(TorchDispatchMode):
    """Counts the bytes of all storages that operations make, until they are let go."""

    def __init__(self, existing: Mapping[int, int], wide_head: int) -> None:
        super().__init__()
        self.known = dict(existing)
        self.live = self.gradients = 0
        self.wide_head = wide_head
        self.phase: _Phase = "body"
        #: The most of working memory, by the bytes of gradients there are.
        self.peaks: dict[int, int] = defaultdict(int)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for one in tree_leaves(out):
            if isinstance(one, Tensor):
                self._add(one.untyped_storage())
        self.record()
        return out

    def _add(self, storage: Any) -> None:
        key = storage._cdata
        if key in self.known:
            return
        self.known[key] = size = storage.nbytes()
        self.live += size
        weakref.finalize(storage, self._remove, key)

    def _remove(self, key: int) -> None:
        self.live -= self.known.pop(key)

    def record(self) -> None:
        """Note what is alive now."""
        working = self.live - self.gradients
        if self.phase == "head":
            working -= self.wide_head
        self.peaks[self.gradients] = max(self.peaks[self.gradients], working)

    def keep(self, weight: Tensor) -> None:
        """Count a weight's gradient as such from now on."""
        assert weight.grad is not None
        self.gradients += bytes_of(weight.grad)
        self.record()

    def leave_head(self, _: Tensor) -> None:
        """Note that the output head's backward pass is over."""
        self.phase = "body"


class _FusedAttention(TorchFunctionMode):
    """Takes the fused attention kernel, which the library does not choose for fake tensors."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.nn.functional.scaled_dot_product_attention:
            return _attend(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Attend as the fused kernels do: they keep inputs, output and one number a row."""
    if torch.is_autocast_enabled("cpu"):
        low = torch.get_autocast_dtype("cpu")
        query, key, value = query.to(low), key.to(low), value.to(low)
    if enable_gqa:
        group = query.shape[1] // key.shape[1]
        key, value = (part.repeat_interleave(group, 1) for part in (key, value))
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.where(attn_mask, 0.0, float("-inf")).to(query.dtype)
    attended: Tensor = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale
    )[0]
    return attended


@contextmanager
def _tracing(outline: Outline, shape: StepShape) -> Iterator[_Count]:
    """Count what is made while the context lasts, beside the model itself.

    Raises:
        TraceError: If the model needs numbers.
    """
    lm, head = outline.lm, outline.head
    existing = {one.untyped_storage()._cdata: 0 for one in (*lm.parameters(), *lm.buffers())}
    # Whole distributions are made from a float32 copy of the head on either.
    is_spared = shape.on_cuda and head.dtype.itemsize < 4 and not shape.reads_distributions
    wide = 4 * head.numel() if is_spared else 0
    log = logging.getLogger(FakeTensorMode.__module__)
    was_disabled, log.disabled = log.disabled, True
    try:
        with outline.mode, _FusedAttention(), _Count(existing, wide) as count:
            yield count
    except RuntimeError as error:
        raise TraceError(
            f"{type(lm).__name__} can't be traced: {' '.join(str(error).split()):.150}"
        ) from error
    finally:
        log.disabled = was_disabled


def _autocast(shape: StepShape) -> AbstractContextManager[Any]:
    if shape.autocast is None:
        return nullcontext()
    return torch.autocast("cpu", dtype=shape.autocast)
