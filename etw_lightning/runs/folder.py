"""The folder of a run: which it is, what it may hold before, and what is removed from it."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from etw_lightning.files.places import check_links
from etw_lightning.runs.key import run_key
from etw_lightning.runs.launched import agreed_name
from etw_lightning.runs.newer_options import unlike
from etw_lightning.runs.place import check_place
from etw_lightning.schema import InputError

__all__ = [
    "BEFORE",
    "RETAIN",
    "UNREADABLE",
    "check_run",
    "finished_command",
    "is_of_fit",
    "is_result_of",
    "made_as",
    "remove_run",
    "run_folder",
    "run_label",
    "settings_in",
]

#: Folder of a run, laid out as the run's own, that holds the records of before training.
BEFORE = "before"
#: The same with the records of the retain model, as far as they are in the table.
RETAIN = "retain_model"
#: What ``finished_command`` returns for a ``results.json`` that was cut.
UNREADABLE = "unreadable"


def run_folder(
    output_dir: str | None,
    config_files: Any,
    prefix: str = "",
    unfinished: Callable[[Path], Path | None] | None = None,
    *,
    label: str = "",
) -> Path:
    """Return the run's folder: the one asked for, one to go on with, or a new one.

    A new one is named after the run's first file. Processes that this one starts take its name
    from the environment.

    Args:
        output_dir: The folder asked for.
        config_files: Files the run is configured by.
        prefix: What a new folder's name begins with.
        unfinished: Finds a folder to go on with among those of a parent; None for a new one.
        label: What tells runs from each other, before the time in a new folder's name.

    Raises:
        InputError: If the folder asked for is none, or each process would name its own.
    """
    if output_dir is not None:
        if not output_dir.strip():
            raise InputError("output_dir must be a folder, or null for a new one; got ''.")
        return Path(output_dir)
    first = next((str(file) for file in config_files or ()), "run")
    parent = Path("runs") / Path(first).stem
    if _STAMP not in os.environ:
        found = unfinished(parent) if unfinished is not None else None
        name = found.name if found else _new_name(parent, f"{prefix}{label}")
        if _are_strangers():
            name = agreed_name(name) or ""
        if not name:
            raise InputError(
                "output_dir must be given where srun starts the processes, or torchrun without a "
                "store: each would name a folder of its own. Give --output_dir DIR."
            )
        os.environ[_STAMP] = name
        return parent / os.environ[_STAMP]
    return parent / f"{prefix}{os.environ[_STAMP].removeprefix(prefix)}"


def run_label(config: Mapping[str, Any], files: Any = ()) -> str:
    """Return what a new folder's name begins with: the method, and the numbers runs differ in.

    Args:
        config: All settings of a run, as plain values.
        files: Files it is configured by; one of a folder ``method`` names the method.

    Example:
        >>> config = {"model": {"forget_weight": 0.1, "lr": 2e-4}, "seed_everything": 3}
        >>> run_label(config, ["configs/quickstart.yaml", "configs/method/npo.yaml"])
        'npo-lambda0.1-lr0.0002-seed3-'
    """
    model = config.get("model") or {}
    stems = [Path(str(one)).stem for one in files or () if Path(str(one)).parent.name == "method"]
    parts = [
        str((model.get(key) or {}).get("class_path", "")).rpartition(".")[2].lower()
        for key in ("weighting", "forget")
        if isinstance(model.get(key), Mapping)
    ]
    method = stems[-1] if stems else "-".join(filter(None, parts))
    if not model.get("forget") and not stems:
        method = "finetune" if "forget" in model else method
    numbers = {"lambda": model.get("forget_weight"), "lr": model.get("lr")}
    words = [method, *(f"{key}{one:g}" for key, one in numbers.items() if one is not None)]
    words.append(f"seed{int(config.get('seed_everything') or 0)}")
    return "".join(f"{word}-" for word in words if word)


def _new_name(parent: Path, prefix: str) -> str:
    """Return a name of the time that no folder has, also if two runs begin in one second."""
    stamp = prefix + time.strftime("%Y%m%d-%H%M%S")
    names = itertools.chain([stamp], (f"{stamp}-{number}" for number in itertools.count(1)))
    return next(name for name in names if not (parent / name).exists())


#: Where the processes that a run starts find the name of its folder.
_STAMP = "ETW_RUN_STAMP"
#: Where launchers say how many processes there are, beside what says which of them this one is.
_WORLDS = {"RANK": "WORLD_SIZE", "SLURM_PROCID": "SLURM_NTASKS"}


def _are_strangers() -> bool:
    """Whether another program has started several processes, which must agree on a name."""
    return any(
        rank in os.environ and int(os.environ.get(world) or 1) > 1
        for rank, world in _WORLDS.items()
    )


#: Settings of the trainer by which an evaluation set could be scored in part: what they may be.
_WHOLE: dict[str, tuple[Any, ...]] = {
    "fast_dev_run": (False,),
    "limit_val_batches": (1.0, 0, None),
    "num_sanity_val_steps": (-1, 0),
    "overfit_batches": (0.0, 0),
}


def check_run(config: Any, folder: Path) -> None:
    """Refuse what the trainer would take, and fail over or measure wrongly later."""
    trainer = config.trainer
    if trainer is None:
        raise InputError("trainer must be pairs {name: value}; got null.")
    if trainer.accumulate_grad_batches < 1:
        raise InputError(
            "trainer.accumulate_grad_batches must be a whole number > 0; "
            f"got {trainer.accumulate_grad_batches}."
        )
    for key, allowed in _WHOLE.items():
        value = getattr(trainer, key)
        # 1 is one batch, 1.0 is all of them.
        if not any(value == one and type(value) is type(one) for one in allowed):
            raise InputError(
                f"trainer.{key} must be {' or '.join(map(json.dumps, allowed))}; got "
                f"{json.dumps(value)}: sets are scored whole. data.rows takes fewer rows of them."
            )
    if "metrics" in config:
        if trainer.limit_val_batches == 0:
            raise InputError(
                "trainer.limit_val_batches must be 1.0 or null; got 0, which would score nothing."
            )
        if config.ckpt_path:
            raise InputError(
                "ckpt_path belongs to fit; to evaluate a checkpoint: --model.pretrained "
                f"{config.ckpt_path}"
            )
    elif config.weights_only is False:
        raise InputError(
            "weights_only must be true or left out; got false: of a checkpoint nothing but weights "
            "and plain values is read, as a pickle can run anything."
        )
    elif config.ckpt_path and not Path(config.ckpt_path).exists():
        raise InputError(f"ckpt_path must be a checkpoint; there is no file {config.ckpt_path!r}.")
    for key in ("data.retain_results", "data.target_results"):
        given = config.get(key)
        if given is not None and not given.strip():
            raise InputError(f"{key} must be a folder or a file, or null; got {given!r}.")
    if "metrics" not in config:
        _check_trains(trainer)
        # Of questions to score alone it is said later that there is nothing to train on.
        if config.get("data.benchmark") != "choice":
            _check_ends(trainer)
    check_links(folder)
    if config.overwrite:
        _check_nothing_needed(config, folder)
    paths = (folder, *folder.parents)
    file = next((path for path in paths if path.exists() and not path.is_dir()), None)
    if file is not None:
        raise InputError(f"output_dir must be a folder; {str(file)!r} is a file.")
    check_place(folder)


def _check_trains(trainer: Any) -> None:
    """Refuse a length of training that is none."""
    if trainer.max_epochs is not None and trainer.max_epochs < 1:
        raise InputError(
            f"trainer.max_epochs must be a whole number > 0 or null; got {trainer.max_epochs}."
        )
    # -1 is no bound by steps.
    if trainer.max_steps is not None and trainer.max_steps < 1 and trainer.max_steps != -1:
        raise InputError(
            "trainer.max_steps must be a whole number > 0, or -1 for no bound; "
            f"got {trainer.max_steps}."
        )
    limit = trainer.limit_train_batches
    if limit is not None and not limit > 0:
        raise InputError(
            "trainer.limit_train_batches must be a number of batches > 0, a share of them in "
            f"(0, 1] or null; got {limit}."
        )
    clip = trainer.gradient_clip_val
    if clip is not None and not clip >= 0:
        raise InputError(
            f"trainer.gradient_clip_val must be a number > 0, or 0 for no clipping; got {clip}."
        )
    every = trainer.check_val_every_n_epoch
    if every is not None and every < 1:
        raise InputError(
            "trainer.check_val_every_n_epoch must be a whole number > 0 or null; got "
            f"{every}. trainer.limit_val_batches 0 leaves evaluations out."
        )
    interval = trainer.val_check_interval
    if isinstance(interval, int | float) and not interval > 0:
        raise InputError(
            "trainer.val_check_interval must be a number of batches > 0, a share of an epoch in "
            f"(0, 1] or null; got {interval}. trainer.limit_val_batches 0 leaves evaluations out."
        )


#: Settings that name what a run reads and no other run can make anew.
_READ = (
    "model.pretrained",
    "model.entropy_model",
    "data.retain_model",
    "data.target_model",
    "data.retain_results",
    "data.target_results",
)


def _check_ends(trainer: Any) -> None:
    """Refuse training without an end; Lightning would train for a thousand epochs."""
    if trainer.max_epochs is None and trainer.max_steps in (None, -1) and trainer.max_time is None:
        raise InputError(
            "trainer.max_epochs is null and trainer.max_steps sets no bound, so that the run has "
            "no end; give one of them, or trainer.max_time."
        )


def _check_nothing_needed(config: Any, folder: Path) -> None:
    """Refuse to overwrite a folder that holds what the run reads."""
    for key in _READ:
        given = config.get(key)
        if given is not None and Path(given).exists():
            path, place = Path(given).resolve(), folder.resolve()
            if path.is_relative_to(place):
                raise InputError(
                    f"{key} {str(given)!r} lies in output_dir {str(folder)!r}, which --overwrite "
                    "replaces; give another folder."
                )


def finished_command(folder: Path) -> str | None:
    """Return the command that left finished results in a folder; None if there are none.

    Of a ``results.json`` that was cut nothing is known but that it is there: ``UNREADABLE``.

    Raises:
        InputError: If there is a ``results.json`` that is none of ours.
    """
    path = folder / "results.json"
    if not path.is_file():
        return None
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        return str(results.get("command", "fit")) if results.get("finished") else None
    except ValueError:
        return UNREADABLE
    except AttributeError as error:
        raise InputError(
            f"output_dir {str(folder)!r} holds a results.json that no run has written; give "
            "another folder."
        ) from error


class FinishedError(Exception):
    """The run that was asked for has been made: its results are there.

    Args:
        folder: Its folder.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(f"finished: {folder / 'results.json'} holds this run's results")


def is_result_of(folder: Path, config: Mapping[str, Any]) -> bool:
    """Tell whether the results in a folder are those of a run with these settings.

    Args:
        folder: A folder with finished results.
        config: All settings of the run.
    """
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    key = results.get("config_hash")
    return bool(key == run_key(config)) or made_as(folder, key, config)


def made_as(folder: Path, key: Any, config: Mapping[str, Any]) -> bool:
    """Tell whether results from before some option existed are those of a run of today.

    Args:
        folder: Their folder.
        key: Their ``run_key``.
        config: Settings of today's run.
    """
    then = settings_in(folder)
    # Settings that were changed since have made no results.
    return bool(then) and run_key(then) == key and not unlike(then, config)


def settings_in(folder: Path) -> dict[str, Any]:
    """Return the settings that a run has left in its folder; empty if they can't be read."""
    try:
        found = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}


def is_of_fit(folder: Path) -> bool:
    """Tell whether a folder holds what only ``fit`` writes."""
    return any(path for name in _OF_FIT for path in folder.glob(name))


#: What each command writes.
_OF_EVALUATE = (
    "results.json",
    "records",
    "worst_rows.md",
    "config.yaml",
    "tokens.jsonl.gz",
    "depth.jsonl.gz",
)
_OF_FIT = (
    "model",
    "model.part",
    "before",
    "retain_model",
    "checkpoints/step-*",
    "checkpoints/.step-*",
    "hparams.yaml",
    "events.*",
)


def remove_run(folder: Path, command: str = "fit") -> None:
    """Remove what an earlier run left in its folder, and nothing else.

    Args:
        folder: The folder.
        command: Command that is run now; ``evaluate`` never removes what only ``fit`` writes.
    """
    for pattern in (*_OF_EVALUATE, *(_OF_FIT if command == "fit" else ())):
        for path in folder.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
