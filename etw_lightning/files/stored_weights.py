"""Checkpoints as files and folders: which one a path means, and its weights brought together."""

from __future__ import annotations

import io
import itertools
import warnings
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal

import torch
from torch import Tensor

from etw_lightning.files.checkpoint_folder import (
    FOLDER,
    STATE,
    Saved,
    saved_checkpoints,
    what_is_wrong,
)
from etw_lightning.files.safe_files import check_checkpoint, reading_safely
from etw_lightning.schema import InputError

__all__ = ["find_checkpoint", "is_checkpoint", "read_description", "read_shapes", "read_weights"]

#: What Lightning calls the folder inside the one that DeepSpeed writes.
_TAG = "checkpoint"
#: What stands before the names of weights in the index of a folder of PyTorch's shards.
_STATE = "state_dict."
_Kind = Literal["file", "fsdp2", "deepspeed"]


def is_checkpoint(pretrained: str) -> bool:
    """Tell whether a model is given as a checkpoint: a file, a folder of shards, or a run's."""
    path = Path(pretrained).expanduser()
    if path.is_dir() and (path / "config.json").is_file():
        return False
    return pretrained.rstrip("/").endswith(".ckpt") or _find(path) is not None


def find_checkpoint(pretrained: str, key: str) -> Path:
    """Return the file or folder of shards that a path means.

    Args:
        pretrained: It itself; the folder of one step, which holds it as ``state.ckpt``; or a run's
            folder, of which the newest step is taken.
        key: Configuration key that errors name.

    Raises:
        InputError: If there is none.
    """
    path = Path(pretrained).expanduser()
    found = _find(path)
    if found is None:
        what = "is no .ckpt file" if path.is_file() else "is not there"
        what = "holds no checkpoint" if path.is_dir() else what
        raise InputError(
            f"{key}: checkpoint {pretrained!r} {what}; give a .ckpt file, a folder of shards, or "
            f"the folder of a run with {FOLDER}/."
        )
    saved = Saved.of(found)
    wrong = what_is_wrong(saved, contents=False) if saved is not None else ""
    if wrong:
        raise InputError(f"{key}: checkpoint {str(found)!r} is damaged ({wrong}); give another.")
    return found


def _find(path: Path) -> Path | None:
    is_file = path.suffix == ".ckpt" and path.is_file()
    if is_file or _kind_of_folder(path) is not None:
        return path
    if (path / STATE).exists():
        return path / STATE
    steps = [step.state for step in saved_checkpoints(path) if step.state.exists()]
    return steps[-1] if steps else None


def _kind_of_folder(path: Path) -> _Kind | None:
    if (path / ".metadata").is_file() and (path / "meta.pt").is_file():
        return "fsdp2"
    return "deepspeed" if any(path.glob(f"{_TAG}/*_model_states.pt")) else None


def read_description(path: Path, key: str) -> dict[str, Any]:
    """Return what a checkpoint holds beside the weights and the optimiser's state.

    Of a file weights are there too, and stay on the disk until they are used.

    Args:
        path: As ``find_checkpoint`` gives it.
        key: Configuration key that errors name.

    Raises:
        InputError: If it is not safe to read, or damaged.
    """
    kind = "file" if path.is_file() else _kind_of_folder(path)
    files = {
        "file": lambda: path,
        "fsdp2": lambda: path / "meta.pt",
        "deepspeed": lambda: sorted(path.glob(f"{_TAG}/*_model_states.pt"))[0],
    }
    assert kind is not None
    file = files[kind]()
    check_checkpoint(file, key)
    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, EOFError, ValueError, UnpicklingError) as error:
        raise _damaged(path, key, error) from error
    return content if isinstance(content, dict) else {}


def _damaged(path: Path, key: str, error: Exception) -> InputError:
    return InputError(
        f"{key}: checkpoint {str(path)!r} can't be read ({' '.join(str(error).split()):.100}); "
        "copy it anew, or give another one."
    )


def read_weights(path: Path, key: str) -> dict[str, Tensor]:
    """Return all weights of a checkpoint whole, on the CPU, under the names of the run's module.

    DeepSpeed's come in float32, as its optimiser holds them.

    Args:
        path: As ``find_checkpoint`` gives it.
        key: Configuration key that errors name.

    Raises:
        InputError: As ``read_description``.
    """
    if path.is_file():
        weights: dict[str, Tensor] = read_description(path, key)["state_dict"]
        return weights
    check_checkpoint(path, key)
    try:
        if _kind_of_folder(path) == "fsdp2":
            return _read_fsdp2(path)
        return _read_deepspeed(path)
    except (RuntimeError, EOFError, ValueError, OSError, UnpicklingError) as error:
        raise _damaged(path, key, error) from error


def read_shapes(path: Path, key: str) -> dict[str, tuple[int, ...]]:
    """Return the shape of each weight of a checkpoint, without reading any.

    Args:
        path: As ``find_checkpoint`` gives it.
        key: Configuration key that errors name.

    Returns:
        By the names of the run's module.

    Raises:
        InputError: As ``read_description``.
    """
    if path.is_file():
        weights = read_description(path, key)["state_dict"]
        return {name: tuple(weight.shape) for name, weight in weights.items()}
    if _kind_of_folder(path) != "fsdp2":
        return _deepspeed_shapes(read_description(path, key))
    from torch.distributed.checkpoint import FileSystemReader

    check_checkpoint(path, key)
    try:
        with reading_safely():
            stored = FileSystemReader(path).read_metadata().state_dict_metadata
    except (RuntimeError, EOFError, ValueError, OSError, UnpicklingError) as error:
        raise _damaged(path, key, error) from error
    found = {name: getattr(one, "size", None) for name, one in stored.items()}
    return {
        name.removeprefix(_STATE): tuple(size)
        for name, size in found.items()
        if name.startswith(_STATE) and size is not None
    }


def _deepspeed_shapes(described: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the shapes that one process's file lists of all weights, whoever holds them."""
    weights = described.get("module", {})
    buffers = {name: weights[name].shape for name in described["buffer_names"]}
    trained = dict(itertools.chain.from_iterable(one.items() for one in described["param_shapes"]))
    found = {**buffers, **(described.get("frozen_param_shapes") or {}), **trained}
    # Tied weights are listed once.
    shared = described.get("shared_params") or {}
    found |= {name: found[other] for name, other in shared.items() if other in found}
    return {name: tuple(shape) for name, shape in found.items()}


def _read_fsdp2(path: Path) -> dict[str, Tensor]:
    """Read the weights alone; what the optimiser keeps is twice as much."""
    from torch.distributed.checkpoint import FileSystemReader
    from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner
    from torch.distributed.checkpoint.state_dict_loader import _load_state_dict

    found: dict[str, Any] = {}
    with reading_safely(), warnings.catch_warnings():
        # One process reads the shards of many, as is meant.
        warnings.filterwarnings("ignore", message=".*torch.distributed is disabled.*")
        _load_state_dict(
            found,
            storage_reader=FileSystemReader(path),
            planner=_EmptyStateDictLoadPlanner(keys={"state_dict"}),
            no_dist=True,
        )
    weights: dict[str, Tensor] = found["state_dict"]
    return weights


def _read_deepspeed(path: Path) -> dict[str, Tensor]:
    """Put each weight together from the shares that the optimiser's files hold."""
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    # It prints what it does, and draws bars.
    silent = io.StringIO()
    with reading_safely(), redirect_stdout(silent), redirect_stderr(silent):
        found: dict[str, Tensor] = get_fp32_state_dict_from_zero_checkpoint(str(path), tag=_TAG)
    return found
