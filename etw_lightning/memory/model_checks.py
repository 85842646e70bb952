"""What is verified before the first step beside the rows themselves; nothing here is written."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.accelerators import CUDAAccelerator
from lightning.pytorch.strategies import DeepSpeedStrategy

from etw_lightning.catalogue.entries import Part
from etw_lightning.data.stored_rows import longest
from etw_lightning.memory.check_memory import asked_layout
from etw_lightning.memory.outline import TraceError
from etw_lightning.memory.run_needs import RunShape, Sizes, run_outline
from etw_lightning.memory.table import in_gib
from etw_lightning.models.head_probe import vocabulary_size
from etw_lightning.models.label_scorer import LabelScorer
from etw_lightning.models.loading import check_stored
from etw_lightning.models.positions import check_extents, limits_of, row_extents
from etw_lightning.schema import EncodedRow, InputError
from etw_lightning.training.datamodule import Role, UnlearningDataModule
from etw_lightning.training.module import UnlearningModule
from etw_lightning.training.other_models import OtherModels
from etw_lightning.training.quickstart_models import PREFIX, check_role
from etw_lightning.tuning.optimizers import make_optimizer

__all__ = [
    "check_devices",
    "check_disk",
    "check_parts",
    "check_training",
    "describe_input",
    "describe_other",
    "describe_weights",
]


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
            "--config strategy/fsdp, strategy/ddp or strategy/single, or run where a GPU is."
        )
    device, several = ("GPU", "GPUs") if on_cuda else ("CPU process", "CPU processes")
    return f"strategy: {name} on {count} {device if count == 1 else several}"


def check_disk(
    folder: Path,
    sizes: Sizes | None,
    num_checkpoints: int,
    *,
    saves_model: bool,
    keeps_best: bool = True,
) -> str:
    """Refuse a folder on a disk without room for what a run leaves there.

    Args:
        folder: The run's; it need not exist. What an earlier run left there counts as free, since
            it is replaced.
        sizes: Of the model; None if they are not known.
        num_checkpoints: Last checkpoints that are kept, beside the one that is being written; 0
            for a run that writes none.
        saves_model: Whether the model is exported.
        keeps_best: Whether the best one is kept too.

    Returns:
        What is needed and free, for the user.

    Raises:
        InputError: Names the folder and the ways out.
    """
    if sizes is None:
        return "disk: not verified, for the model's size is not known without its weights"
    count = num_checkpoints + keeps_best + 1 if num_checkpoints else 0
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
        ways = ["make room"]
        ways += ["--checkpoints.keep with a lower number"] if num_checkpoints > 1 else []
        ways += ["--checkpoints.best null"] if count and keeps_best else []
        ways += ["--no_save_model"] if saves_model else []
        raise InputError(
            f"output_dir {str(folder)!r} needs up to {what}; {in_gib(free)} are free there: "
            f"{', '.join(ways)} or give a folder on another disk."
        )
    return f"disk: up to {what}, {in_gib(free)} free in {place}"


def check_parts(module: UnlearningModule, config: Any) -> None:
    """Refuse layers that the model does not have, and more tokens than are kept of the target's.

    Args:
        module: Not configured.
        config: The model's ``transformers`` configuration.

    Raises:
        InputError: As ``Method.check_layers`` and ``ForgetObjective.check_held``.
    """
    method = module.method
    if method.layers:
        method.check_layers(config.get_text_config().num_hidden_layers)
    if method.forget is not None and "reference_distributions" in method.forget.needs:
        whole = vocabulary_size(config)
        held = min(module.reference_top_k, whole) if module.reference == "cache" else whole
        method.forget.check_held(held, whole)


def check_training(
    module: UnlearningModule, config: Any, shape: RunShape, streams: Iterable[Sequence[EncodedRow]]
) -> None:
    """Refuse what training would refuse of rows, of the weights that train and of the optimiser.

    Args:
        module: Not configured.
        config: The model's ``transformers`` configuration.
        shape: Of the run.
        streams: The rows that are trained on.

    Raises:
        InputError: As ``check_extents``, ``UnlearningModule.check_reach`` and ``make_optimizer``.
    """
    try:
        outline = run_outline(config, shape)
    except TraceError:
        # An adapter that is made from numbers: ``fit`` will see.
        return
    rows = row_extents(longest(streams))
    check_extents(limits_of(outline.lm), type(outline.lm).__name__, rows)
    if module.method.layers:
        module.check_reach(LabelScorer(outline.lm))
    make_optimizer(
        outline.lm.named_parameters(),
        module.optimizer,
        lr=module.lr,
        betas=module.betas,
        weight_decay=module.weight_decay,
        optimizer_args=module.optimizer_args,
        rounding=module.rounding,
    )


def describe_input(data: UnlearningDataModule, config: Any) -> list[str]:
    """Return what has been read, a line each.

    Args:
        data: Loaded.
        config: The model's ``transformers`` configuration.
    """
    streams = {name: rows for name, rows in data.streams.items() if rows}
    trained = [f"{name} {len(rows)} rows" for name, rows in streams.items()]
    most = max((len(row.input_ids) for row in longest(streams.values())), default=0)
    scored = [f"{name} {len(one.examples)} rows" for name, one in data.eval_sets.items()]
    size = vocabulary_size(config)
    lines = [f"data: {', '.join(trained)}; the longest has {most} tokens"] if trained else []
    lines += [f"scored: {', '.join(scored)}"] if scored else []
    return [
        *lines,
        f"tokenizer: {len(data.encoder.tokenizer)} tokens, the model has {size}",
        "; ".join([f"template: {data.template}", *data.encoder.set_right]),
    ]


def describe_weights(given: str) -> str:
    """Verify from their names and shapes that the stored weights are the model's.

    Args:
        given: The model, as the user gave it.

    Returns:
        What was found, for the user; empty for a model that the run makes itself.

    Raises:
        InputError: As ``check_stored``.
    """
    if given.startswith(PREFIX):
        return ""
    return f"weights: {check_stored(given) or 'not verified, for they are not on this machine'}"


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
    key = f"data.{role}_model"
    if given.startswith(PREFIX):
        check_role(given, key)
    else:
        others.pretrained(role)
        check_stored(given, key)
    return f"{role} results: fit scores data.{role}_model {given} on {', '.join(needs)}"
