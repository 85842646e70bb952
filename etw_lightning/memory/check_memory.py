"""What a run needs in memory: from its module, data and trainer, and as a warning or a table."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.accelerators import CUDAAccelerator
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
)

from etw_lightning.data.stored_rows import longest
from etw_lightning.memory.outline import TraceError
from etw_lightning.memory.prediction import GIB, Strategy, choose_strategy, predict_footprint
from etw_lightning.memory.run_needs import RunShape, Sizes, find_sizes, needs_by_strategy
from etw_lightning.memory.table import in_gib, memory_table, say_choice
from etw_lightning.models.loading import load_config
from etw_lightning.notices import for_screen
from etw_lightning.training.datamodule import UnlearningDataModule
from etw_lightning.training.module import UnlearningModule

__all__ = [
    "asked_layout",
    "available_memory",
    "print_memory",
    "resident_memory",
    "run_shape",
    "sizes_of",
    "warning_of_memory",
]

#: A run of which a generous bound stays below this share of the memory is not looked at closely.
_CLEARLY_SMALL = 0.5


def run_shape(module: UnlearningModule, data: UnlearningDataModule, trainer: Trainer) -> RunShape:
    """Return what of a run decides its memory.

    Args:
        module: Not configured.
        data: Loaded.
        trainer: Gives precision, accumulation and the kind of the devices.
    """
    method = module.method
    reads = method.needs | {name for names in method.reference_needs.values() for name in names}
    in_step = module.reference if method.reference_needs else None
    lengths = [len(row.input_ids) for row in longest(data.streams.values())]
    largest = max((len(one.examples) for one in data.eval_sets.values()), default=0)
    return RunShape(
        rows=data.batch_size * max(len(data.streams), 1),
        tokens=max([2, *lengths]),
        dtype=module.dtype_name,
        precision=str(trainer.precision),
        attention=module.attention,
        gradient_checkpointing=module.gradient_checkpointing,
        chunk_size=module.chunk_size,
        optimizer=module.optimizer,
        rounding=module.rounding,
        peft=module.peft,
        train_only=module.train_only,
        freeze_embeddings=module.freeze_embeddings,
        reference=in_step if in_step != "cache" else None,
        reads_distributions=any(name.endswith("distributions") for name in reads),
        accumulates=trainer.accumulate_grad_batches > 1,
        gradients_apart=0 if module.surgery is None else 2,
        gradients_kept=int(module.surgery is not None and module.surgery.remembers),
        eval_rows=min(data.eval_batch_size, largest),
        eval_tokens=data.encoder.max_length,
        new_tokens=max((one.max_new_tokens for one in data.eval_sets.values()), default=0),
        on_cuda=isinstance(trainer.accelerator, CUDAAccelerator),
    )


def asked_layout(trainer: Trainer) -> tuple[Strategy, int]:
    """Return the strategy that a trainer has, and over how many devices it goes."""
    strategy, count = trainer.strategy, trainer.num_devices * trainer.num_nodes
    if isinstance(strategy, DeepSpeedStrategy):
        zero = cast(Mapping[str, Any], strategy.config or {}).get("zero_optimization", {})
        if zero.get("stage", 0) < 3:
            return "deepspeed_zero2", count
        offloads = "offload_param" in zero or "offload_optimizer" in zero
        return "deepspeed_zero3_offload" if offloads else "deepspeed_zero3", count
    if isinstance(strategy, FSDPStrategy | ModelParallelStrategy):
        return "fsdp", count
    return ("ddp" if isinstance(strategy, DDPStrategy) else "single"), count


def available_memory(trainer: Trainer) -> int | None:
    """Return the bytes that one device has: a GPU's whole, a process's share of free memory.

    None where the system does not say.
    """
    if isinstance(trainer.accelerator, CUDAAccelerator):
        device = trainer.strategy.root_device
        return int(torch.cuda.get_device_properties(device).total_memory)
    file = Path("/proc/meminfo")
    if not file.is_file():
        return None
    lines = dict(line.split(":") for line in file.read_text(encoding="utf-8").splitlines())
    return 1024 * int(lines["MemAvailable"].split()[0]) // trainer.num_devices


def resident_memory() -> int:
    """Return the bytes that this process holds; 0 where the system does not say."""
    file = Path("/proc/self/status")
    if not file.is_file():
        return 0
    lines = dict(line.split(":", 1) for line in file.read_text(encoding="utf-8").splitlines())
    return 1024 * int(lines["VmRSS"].split()[0])


def sizes_of(
    module: UnlearningModule, data: UnlearningDataModule, trainer: Trainer
) -> Sizes | None:
    """Return a run's sizes; None if they can't be told without the weights.

    Args:
        module: Not configured.
        data: Loaded.
        trainer: Gives precision and accumulation.
    """
    try:
        config, shape = load_config(module.pretrained), run_shape(module, data, trainer)
        return find_sizes(config, shape, deepspeed=isinstance(trainer.strategy, DeepSpeedStrategy))
    except TraceError:
        return None


def warning_of_memory(
    module: UnlearningModule, data: UnlearningDataModule, trainer: Trainer
) -> str | None:
    """Return one line if the layout that is asked for does not fit the devices; else None.

    Args:
        module: Not configured.
        data: Loaded.
        trainer: Gives layout and devices.
    """
    available = available_memory(trainer)
    sizes = sizes_of(module, data, trainer)
    if available is None or sizes is None:
        return None
    if 8 * sizes.checkpoint + sizes.working < _CLEARLY_SMALL * available:
        return None
    shape = run_shape(module, data, trainer)
    config = load_config(module.pretrained)
    strategy, count = asked_layout(trainer)
    try:
        needs = needs_by_strategy(config, shape)
    except TraceError as error:
        return f"memory is not predicted: {error}"
    total = predict_footprint(needs[strategy], strategy, count).total
    if total <= available:
        return None
    device = "GPU" if shape.on_cuda else "process"
    # More processes on one host share its memory.
    choice = choose_strategy(needs, available) if shape.on_cuda else None
    return (
        f"this run needs about {in_gib(total)} for each {device} ({strategy} on {count}), "
        f"{in_gib(available)} are there; {say_choice(choice)}."
    )


def print_memory(
    module: UnlearningModule,
    data: UnlearningDataModule,
    trainer: Trainer,
    memory_per_gpu: float | None,
) -> None:
    """Print what a run on a CPU needs there; else, or if asked, what strategies need on GPUs.

    Args:
        module: Not configured.
        data: Loaded.
        trainer: Gives layout, devices, precision and accumulation.
        memory_per_gpu: GiB of one GPU; None for that of the GPU that is used.
    """
    shape = run_shape(module, data, trainer)
    available = available_memory(trainer)
    if memory_per_gpu is not None:
        shape, available = replace(shape, on_cuda=True), round(memory_per_gpu * GIB)
    config = load_config(module.pretrained)
    try:
        needs = needs_by_strategy(config, shape)
    except TraceError as error:
        sys.stdout.write(f"memory: not predicted: {error}\n")
        return
    count = needs["single"].num_weights
    sys.stdout.write(
        f"memory: {count / 1e6:.0f} million weights, {module.dtype_name} with {shape.precision}, "
        f"{shape.rows} rows x {shape.tokens} tokens\n"
    )
    if shape.on_cuda:
        assert available is not None
        sys.stdout.write(f"{memory_table(needs, available)}\n")
        sys.stdout.write(f"{say_choice(choose_strategy(needs, available))}\n")
        return
    strategy, processes = asked_layout(trainer)
    # Of a run's libraries and rows this process holds all, and it will be gone then.
    held = resident_memory()
    total = predict_footprint(needs[strategy], strategy, processes).total + held
    there = ""
    if available is not None:
        there = f", {in_gib(available + held // trainer.num_devices)} are free for it"
    own = f", {in_gib(held)} of it libraries and rows" if held else ", without libraries and rows"
    line = (
        f"each process of this run needs about {in_gib(total)} ({strategy} on {processes}{own})"
        f"{there}; --memory_per_gpu GIB tells what it would need on GPUs"
    )
    sys.stdout.write(f"{for_screen(line)}\n")
