"""What is verified before the first step beside the input: devices, disk and memory."""

from __future__ import annotations

import itertools
import shutil
import sys
from collections.abc import Collection, Mapping
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

from etw_lightning.data import Role, UnlearningDataModule
from etw_lightning.entries import Part
from etw_lightning.memory import GIB, Strategy, choose_strategy, predict_footprint
from etw_lightning.memory_table import in_gib, memory_table, say_choice
from etw_lightning.models import load_config
from etw_lightning.module import UnlearningModule
from etw_lightning.optimizers import make_optimizer
from etw_lightning.other_models import OtherModels
from etw_lightning.quickstart_models import PREFIX
from etw_lightning.run_needs import RunShape, Sizes, needs_by_strategy, run_outline
from etw_lightning.schema import InputError
from etw_lightning.step_trace import TraceError

__all__ = [
    "asked_layout",
    "available_memory",
    "check_devices",
    "check_disk",
    "check_parts",
    "describe_input",
    "describe_other",
    "print_memory",
    "run_shape",
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
    lengths = [len(row.input_ids) for rows in data.streams.values() for row in rows]
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
        peft=module.peft,
        train_only=module.train_only,
        freeze_embeddings=module.freeze_embeddings,
        reference=in_step if in_step != "cache" else None,
        reads_distributions=any(name.endswith("distributions") for name in reads),
        accumulates=trainer.accumulate_grad_batches > 1,
        eval_rows=min(data.eval_batch_size, largest),
        eval_tokens=data.max_length,
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


def check_devices(trainer: Trainer) -> str:
    """Refuse a strategy that does not run on the devices that are there.

    Lightning itself refuses more GPUs than there are, when the trainer is made.

    Returns:
        What runs where, for the user.

    Raises:
        InputError: Names the strategy and the ways out.
    """
    name, count = asked_layout(trainer)
    on_cuda = isinstance(trainer.accelerator, CUDAAccelerator)
    if type(trainer.strategy) is DeepSpeedStrategy and not on_cuda:
        kind = type(trainer.accelerator).__name__.removesuffix("Accelerator")
        raise InputError(
            f"trainer.strategy {name} runs on CUDA GPUs only; this run is on {kind}. Take "
            "configs/strategy/fsdp.yaml, ddp.yaml or single.yaml, or run where a GPU is."
        )
    device, several = ("GPU", "GPUs") if on_cuda else ("CPU process", "CPU processes")
    return f"strategy: {name} on {count} {device if count == 1 else several}"


def check_disk(folder: Path, sizes: Sizes, num_checkpoints: int, *, saves_model: bool) -> str:
    """Refuse a folder on a disk without room for what a run leaves there.

    Args:
        folder: The run's; it need not exist. What an earlier run left there counts as free, since
            it is replaced.
        sizes: Of the model.
        num_checkpoints: Last checkpoints that are kept, beside the best one and the one that is
            being written; 0 for a run that writes none.
        saves_model: Whether the model is exported.

    Returns:
        What is needed and free, for the user.

    Raises:
        InputError: Names the folder and the ways out.
    """
    count = num_checkpoints + 2 if num_checkpoints else 0
    needed = count * sizes.checkpoint + (sizes.model if saves_model else 0)
    if not needed:
        return "disk: nothing large is written"
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())
    held = sum(
        file.stat().st_size
        for name in ("checkpoints", "model")
        for file in (folder / name).rglob("*")
        if file.is_file()
    )
    free = shutil.disk_usage(place).free + held
    parts = [f"{count} checkpoints of {in_gib(sizes.checkpoint)}"] if count else []
    parts += [f"the model of {in_gib(sizes.model)}"] if saves_model else []
    what = f"{in_gib(needed)} ({' and '.join(parts)})"
    if needed > free:
        less = "--checkpoints.keep with a lower number" if count else "--no_save_model"
        raise InputError(
            f"output_dir {str(folder)!r} needs up to {what}; {in_gib(free)} are free there. "
            f"Give a folder on another disk, make room, or {less}."
        )
    return f"disk: up to {what}, {in_gib(free)} free in {place}"


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


def warning_of_memory(config: Any, shape: RunShape, sizes: Sizes, trainer: Trainer) -> str | None:
    """Return one line if the layout that is asked for does not fit the devices; else None.

    Args:
        config: The model's ``transformers`` configuration.
        shape: Of the run.
        sizes: Of the model.
        trainer: Gives layout and devices.
    """
    available = available_memory(trainer)
    bound = 8 * sizes.checkpoint + sizes.working
    if available is None or bound < _CLEARLY_SMALL * available:
        return None
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


def check_parts(module: UnlearningModule, config: Any, shape: RunShape) -> None:
    """Refuse what training would refuse of a model's layers and of the optimiser's arguments.

    Args:
        module: Not configured.
        config: The model's ``transformers`` configuration.
        shape: Of the run.

    Raises:
        InputError: As ``Method.check_layers`` and ``make_optimizer``.
    """
    outline = run_outline(config, shape)
    if module.method.layers:
        module.method.check_layers(len(outline.layer_sizes))
    make_optimizer(
        outline.lm.named_parameters(),
        module.optimizer,
        lr=module.lr,
        betas=module.betas,
        weight_decay=module.weight_decay,
        optimizer_args=module.optimizer_args,
    )


def describe_input(data: UnlearningDataModule, config: Any) -> list[str]:
    """Return what has been read, a line each.

    Args:
        data: Loaded.
        config: The model's ``transformers`` configuration.
    """
    lengths = {
        name: [len(row.input_ids) for row in rows] for name, rows in data.streams.items() if rows
    }
    trained = [f"{name} {len(found)} rows" for name, found in lengths.items()]
    longest = max(itertools.chain.from_iterable(lengths.values()), default=0)
    scored = [f"{name} {len(one.examples)} rows" for name, one in data.eval_sets.items()]
    size = config.get_text_config().vocab_size
    lines = [f"data: {', '.join(trained)}; the longest has {longest} tokens"] if trained else []
    lines += [f"scored: {', '.join(scored)}"] if scored else []
    return [
        *lines,
        f"tokenizer: {len(data.encoder.tokenizer)} tokens, the model has {size}",
        f"template: {data.template}",
    ]


def describe_other(
    others: OtherModels, role: Role, needs: Mapping[str, Collection[Part]]
) -> str | None:
    """Verify the records or the model that give another model's numbers.

    Args:
        others: The retain and the target model.
        role: Which.
        needs: Parts of sets whose records are read.

    Returns:
        Where they come from, for the user; None if none are read.

    Raises:
        InputError: If there are none, or they are of other rows.
    """
    data = others.data
    if not needs or (role == "target" and data.starts_from_target):
        return None
    given = data.retain_model if role == "retain" else data.target_model
    if role in data.results or given is None:
        others.need(role, needs)
        return f"{role} results: {data.results[role].source} has the rows of {', '.join(needs)}"
    if not given.startswith(PREFIX):
        others.pretrained(role)
    return f"{role} results: fit scores data.{role}_model {given} on {', '.join(needs)}"


def print_memory(
    module: UnlearningModule,
    data: UnlearningDataModule,
    trainer: Trainer,
    memory_per_gpu: float | None,
) -> None:
    """Print what every strategy needs on GPUs, and what fits first.

    Args:
        module: Not configured.
        data: Loaded.
        trainer: Gives precision and accumulation.
        memory_per_gpu: GiB of one GPU; None for that of the first GPU there is, else 80.
    """
    available = 80 * GIB
    if memory_per_gpu is not None:
        available = round(memory_per_gpu * GIB)
    elif torch.cuda.is_available():
        available = torch.cuda.get_device_properties(0).total_memory
    shape = replace(run_shape(module, data, trainer), on_cuda=True)
    config = load_config(module.pretrained)
    try:
        needs = needs_by_strategy(config, shape)
    except TraceError as error:
        sys.stdout.write(f"memory: not predicted: {error}\n")
        return
    count = needs["single"].num_weights
    sys.stdout.write(
        f"memory: {count / 1e6:.0f} million weights, {module.dtype_name} with {shape.precision}, "
        f"{shape.rows} rows x {shape.tokens} tokens\n{memory_table(needs, available)}\n"
        f"{say_choice(choose_strategy(needs, available))}\n"
    )
