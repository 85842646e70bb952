"""What a run needs in memory, from the keys of its configuration and the model's shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from etw_lightning.memory.outline import Outline, TraceError, build_outline
from etw_lightning.memory.prediction import STRATEGIES, Needs, Strategy, state_bytes, update_bytes
from etw_lightning.memory.step_trace import StepShape, trace_evaluation, trace_step
from etw_lightning.schema import InputError
from etw_lightning.tuning.adapters import wrap_model
from etw_lightning.tuning.rounding import block_of
from etw_lightning.tuning.trainable import choose_trained, recompute_activations

__all__ = [
    "RunShape",
    "Sizes",
    "find_sizes",
    "needs_by_strategy",
    "precision_dtypes",
    "run_needs",
    "run_outline",
]

#: What a ``trainer.precision`` casts weights to, and products to.
_TRUE = {"64-true": torch.float64, "bf16-true": torch.bfloat16, "16-true": torch.float16}
#: What scoring on a CPU takes of memory for each byte that is alive. A batch is cut into parts and
#: rows that end leave the cache, and the C library holds on to some of what is freed between: 1.4
#: (continuing) to 2.3 times (answers) were measured, ``tests/unit/memory/test_scoring_peak.py``.
_SPREAD_ON_CPU = 2
_MIXED = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


@dataclass(frozen=True)
class RunShape:
    """What of a run's settings decides its memory, besides the model's configuration.

    Args:
        rows: Rows of one micro-batch of one process, of all streams together, >= 1.
        tokens: Tokens of the longest row, >= 2.
        dtype: ``model.dtype``.
        precision: ``trainer.precision``.
        attention: ``model.attention``.
        gradient_checkpointing: ``model.gradient_checkpointing``.
        chunk_size: ``model.chunk_size``.
        optimizer: ``model.optimizer``.
        rounding: ``model.rounding``.
        peft: ``model.peft``.
        train_only: ``model.train_only``.
        freeze_embeddings: ``model.freeze_embeddings``.
        reference: ``live`` or ``adapter`` if a part reads such values in a step; else None.
        reads_distributions: An objective reads whole distributions.
        accumulates: Several micro-batches share a step.
        gradients_apart: Further gradients of all that trains in a step, ``model.surgery``'s.
        gradients_kept: Those that are kept from step to step, of ``model.surgery_average``.
        eval_rows: Rows that are scored together; 0 for no evaluation.
        eval_tokens: Tokens of the longest of them.
        new_tokens: Tokens that are generated.
        on_cuda: Devices are GPUs.
    """

    rows: int
    tokens: int
    dtype: str = "float32"
    precision: str = "32-true"
    attention: str | None = None
    gradient_checkpointing: bool = False
    chunk_size: int = 256
    optimizer: str = "torch.optim.AdamW"
    rounding: str | None = None
    peft: Mapping[str, Any] | None = None
    train_only: Sequence[str] | None = None
    freeze_embeddings: bool = False
    reference: str | None = None
    reads_distributions: bool = False
    accumulates: bool = False
    gradients_apart: int = 0
    gradients_kept: int = 0
    eval_rows: int = 0
    eval_tokens: int = 2
    new_tokens: int = 0
    on_cuda: bool = True


@dataclass(frozen=True)
class Sizes:
    """What a model takes on the disk, bytes.

    Args:
        model: The model as it is exported.
        checkpoint: One checkpoint: all weights, a frozen copy's too, and the optimiser's state.
        working: A bound for the activations of a step without checkpointing, far above them.
    """

    model: int
    checkpoint: int
    working: int


def precision_dtypes(
    dtype: str, precision: str, *, deepspeed: bool = False
) -> tuple[torch.dtype, torch.dtype | None]:
    """Return the precision of the weights on the device, and what products are cast to.

    Args:
        dtype: ``model.dtype``.
        precision: ``trainer.precision``.
        deepspeed: DeepSpeed's engine makes the weights 16 bits wide in mixed precision too, and
            casts nothing.

    Example:
        >>> precision_dtypes("float32", "bf16-mixed")
        (torch.float32, torch.bfloat16)
        >>> precision_dtypes("float32", "bf16-mixed", deepspeed=True)
        (torch.bfloat16, None)
    """
    if precision in _TRUE:
        return _TRUE[precision], None
    low = _MIXED.get(precision)
    if low is not None and deepspeed:
        return low, None
    return getattr(torch, dtype), low


def find_sizes(config: Any, shape: RunShape, *, deepspeed: bool = False) -> Sizes:
    """Return the sizes that are known without tracing a step.

    Args:
        config: The model's ``transformers`` configuration.
        shape: Of the run.
        deepspeed: As of ``precision_dtypes``; its state holds float32 weights too.

    Raises:
        InputError, TraceError: As ``run_needs``.
    """
    outline = run_outline(config, shape, deepspeed=deepspeed)
    trained = outline.trained
    numbers = sum(weight.numel() for weight in trained)
    kept = sum(weight.numel() * weight.dtype.itemsize for weight in trained)
    copies = 2 if shape.reference == "live" else 1
    state = 12 * numbers if deepspeed else state_bytes(shape.optimizer, kept, numbers)
    text = config.get_text_config()
    positions = max(shape.rows * shape.tokens, shape.eval_rows * shape.eval_tokens)
    return Sizes(
        model=outline.weights,
        checkpoint=copies * outline.weights + state,
        working=512 * positions * text.hidden_size * text.num_hidden_layers
        + 24 * outline.head.numel()
        + 24 * shape.chunk_size * outline.head.shape[0],
    )


def run_needs(config: Any, shape: RunShape, *, deepspeed: bool = False) -> Needs:
    """Return what a run needs, by a trace of one step on a model without numbers.

    Args:
        config: The model's ``transformers`` configuration.
        shape: Of the run.
        deepspeed: As of ``precision_dtypes``.

    Raises:
        InputError: If nothing trains, or an adapter's settings are refused.
        TraceError: If the model or its adapter does what depends on numbers.
    """
    _, autocast = precision_dtypes(shape.dtype, shape.precision, deepspeed=deepspeed)
    outline = run_outline(config, shape, deepspeed=deepspeed)
    step = StepShape(
        shape.rows,
        shape.tokens,
        shape.rows * (shape.tokens - 1),
        shape.chunk_size,
        autocast,
        has_reference=shape.reference is not None,
        reads_distributions=shape.reads_distributions,
        on_cuda=shape.on_cuda,
    )
    forward, moments = trace_step(outline, step)
    trained = outline.trained
    sizes = [weight.numel() * weight.dtype.itemsize for weight in trained]
    layers, whole = outline.layer_sizes, outline.weights
    numbers = sum(weight.numel() for weight in trained)
    return Needs(
        num_weights=outline.num_weights,
        num_trained=numbers,
        weights=whole,
        trained=sum(sizes),
        layer=max(layers),
        root=whole - sum(layers),
        largest=max(sizes),
        state=state_bytes(shape.optimizer, sum(sizes), numbers) + shape.gradients_kept * sum(sizes),
        apart=shape.gradients_apart * sum(sizes),
        forward=forward,
        moments=moments,
        evaluation=_evaluation(outline, shape, step),
        reference=whole if shape.reference == "live" else 0,
        accumulates=shape.accumulates,
        on_cuda=shape.on_cuda,
        update=_update(shape, trained),
    )


def _update(shape: RunShape, trained: Sequence[Tensor]) -> int | None:
    """Return what the update of one weight takes; the step on a scaled gradient is not fused."""
    if shape.on_cuda and shape.precision in ("16", "16-mixed"):
        return None
    rounds = shape.rounding != "nearest"
    largest = max(trained, key=lambda weight: weight.numel())
    block = block_of(torch.device("cuda" if shape.on_cuda else "cpu"))
    return update_bytes(
        shape.optimizer,
        largest.numel(),
        largest.dtype.itemsize,
        rounds=rounds,
        block=min(block, sum(weight.numel() for weight in trained)),
    )


def needs_by_strategy(config: Any, shape: RunShape) -> dict[Strategy, Needs]:
    """Return what a run needs under each strategy, the simplest first."""
    plain = run_needs(config, shape)
    weights = {
        kind: precision_dtypes(shape.dtype, shape.precision, deepspeed=kind)
        for kind in (False, True)
    }
    engine = plain
    if weights[True] != weights[False]:
        engine = run_needs(config, shape, deepspeed=True)
    return {one: engine if one.startswith("deepspeed") else plain for one in STRATEGIES}


def run_outline(config: Any, shape: RunShape, *, deepspeed: bool = False) -> Outline:
    """Return the model of a run without numbers: what trains, trains; an adapter is there.

    Args:
        config: The model's ``transformers`` configuration.
        shape: Of the run.
        deepspeed: As of ``precision_dtypes``.

    Raises:
        InputError, TraceError: As ``run_needs``.
    """
    dtype, _ = precision_dtypes(shape.dtype, shape.precision, deepspeed=deepspeed)
    return build_outline(config, dtype, shape.attention, lambda lm: _choose(lm, shape, dtype))


def _choose(lm: Any, shape: RunShape, dtype: torch.dtype) -> None:
    """Do what ``UnlearningModule.configure_model`` does, to a model without numbers."""
    if shape.gradient_checkpointing:
        recompute_activations(lm)
    if shape.peft is not None:
        _add_adapter(lm, shape.peft)
        if shape.precision in _TRUE:
            lm.to(dtype)
    choose_trained(lm, shape.train_only, freeze=shape.freeze_embeddings)


def _add_adapter(lm: Any, settings: Mapping[str, Any]) -> None:
    """Add an adapter's shapes; whether it can be merged shows in numbers alone."""
    try:
        wrap_model(lm, settings)
    except InputError as error:
        if isinstance(error.__cause__, NotImplementedError):
            raise TraceError(f"an adapter {settings['peft_type']} is made from numbers") from error
        raise


def _evaluation(outline: Outline, shape: RunShape, step: StepShape) -> int:
    """Return the working memory of scoring and generation; what was scored is not counted."""
    if not shape.eval_rows:
        return 0
    rows, tokens = shape.eval_rows, shape.eval_tokens
    scored = replace(step, rows=rows, tokens=tokens, labels=rows * (tokens - 1))
    working = trace_evaluation(outline, scored)
    if shape.peft is not None:
        # The adapted layers' own weights are kept while an adapter is merged.
        working += outline.weights
    if shape.new_tokens:
        size = (step.autocast or outline.head.dtype).itemsize
        working += rows * (tokens + shape.new_tokens) * size * _cached_numbers(outline.lm.config)
    return working if shape.on_cuda else _SPREAD_ON_CPU * working


def _cached_numbers(config: Any) -> int:
    """Return the numbers that a key-value cache holds of one token."""
    text = config.get_text_config()
    if not hasattr(text, "num_attention_heads"):
        return 0
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return 2 * int(text.num_hidden_layers * heads * width)
