"""Checkpoints that are read without running what they hold.

A pickle can name any function of any package and have it called by whoever reads it. What our
checkpoints name is known: tensors, plain values, PyTorch's own records of where a tensor lies in a
folder of shards, and a few classes of DeepSpeed. A file that names anything else is refused before
it is read, and while a strategy restores from it nothing else can be built either.
"""

from __future__ import annotations

import importlib
import io
import os
import pickle
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch

from etw_lightning.schema import InputError

__all__ = ["check_checkpoint", "reading_safely"]

_METADATA = ".metadata"
_FORCE, _FORCE_NOT = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"

#: What DeepSpeed keeps beside its optimiser's tensors, by module: records without behaviour.
_DEEPSPEED = {
    "deepspeed.runtime.fp16.loss_scaler": ("DynamicLossScaler", "LossScaler"),
    "deepspeed.runtime.zero.config": ("ZeroStageEnum",),
    "deepspeed.utils.tensor_fragment": ("fragment_address",),
}
#: What the index of a folder of PyTorch's shards is made of, by module.
_INDEX = {
    "collections": ("OrderedDict",),
    "pathlib": ("PosixPath", "PurePosixPath", "WindowsPath"),
    "torch": ("Size",),
    "torch.distributed.checkpoint.filesystem": ("_StorageInfo",),
    "torch.distributed.checkpoint.metadata": (
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    ),
    "torch.serialization": ("_get_layout",),
}


def check_checkpoint(path: str | Path, key: str) -> None:
    """Refuse a checkpoint that would run something when it is read.

    Args:
        path: A file of ``torch.save``, or a folder as FSDP2 or DeepSpeed writes it.
        key: Configuration key that errors name.

    Raises:
        InputError: Names the file and what it would call; or if a file is damaged.
    """
    place = Path(path).expanduser()
    files = [place] if place.is_file() else sorted(file for file in place.rglob("*"))
    for file in files:
        if file.name == _METADATA:
            _check_index(file, key)
        elif file.suffix in (".pt", ".ckpt") and file.is_file():
            with file.open("rb") as stream:
                _check_saved(stream, file, key)
        elif file.name == "latest":
            _check_tag(file, key)


@contextmanager
def reading_safely() -> Iterator[None]:
    """Have whatever is read by ``torch.load`` meanwhile build tensors and plain values only.

    Also what asks for more: DeepSpeed and PyTorch's own loader of shards do. What runs inside may
    not change ``TORCH_FORCE_WEIGHTS_ONLY_LOAD``. The index of a folder of shards is read by other
    means, so ``check_checkpoint`` must come first.
    """
    before = {name: os.environ.pop(name, None) for name in (_FORCE, _FORCE_NOT)}
    os.environ[_FORCE] = "1"
    try:
        with torch.serialization.safe_globals(_deepspeed_classes()):
            yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _deepspeed_classes() -> list[Any]:
    """Return the classes that a checkpoint of DeepSpeed may hold, if that is in use."""
    if "deepspeed" not in sys.modules:
        return []
    return [
        getattr(importlib.import_module(module), name)
        for module, names in _DEEPSPEED.items()
        for name in names
    ]


def _check_saved(stream: BinaryIO, file: Path, key: str) -> None:
    """Look through what one ``torch.save`` has written, without building it."""
    try:
        named = set(torch.serialization.get_unsafe_globals_in_checkpoint(stream))
    except (ValueError, RuntimeError, pickle.UnpicklingError) as error:
        raise _unreadable(file, key, error) from error
    known = {f"{module}.{name}" for module, names in _DEEPSPEED.items() for name in names}
    _refuse(sorted(named - known), file, key)


def _unreadable(file: Path, key: str, error: Exception) -> InputError:
    reason = " ".join(str(error).split())
    return InputError(
        f"{key}: checkpoint {str(file)!r} can't be read ({reason:.100}); copy it anew, or give "
        "another one."
    )


def _refuse(named: list[str], file: Path, key: str) -> None:
    if named:
        raise InputError(
            f"{key}: checkpoint {str(file)!r} holds {named[0]}, more than weights and plain "
            "values, which is not safe to read; give a checkpoint that a run of this package "
            "wrote, or a folder in Hugging Face layout."
        )


class _IndexReader(pickle.Unpickler):
    """Reads an index of shards, and finds nothing else."""

    def __init__(self, stream: BinaryIO, file: Path, key: str) -> None:
        super().__init__(stream)
        self.file, self.key = file, key

    def find_class(self, module: str, name: str) -> Any:
        """Return what the index names, if it may."""
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if not is_dtype and name not in _INDEX.get(module, ()):
            _refuse([f"{module}.{name}"], self.file, self.key)
        return super().find_class(module, name)


def _check_index(file: Path, key: str) -> None:
    """Check the index of a folder of shards, and what it says lies there as a pickle."""
    from torch.distributed.checkpoint.metadata import BytesStorageMetadata

    try:
        with file.open("rb") as stream:
            index = _IndexReader(stream, file, key).load()
        places = {where.fqn: found for where, found in index.storage_data.items()}
        pickled = [
            places[name]
            for name, kind in index.state_dict_metadata.items()
            if isinstance(kind, BytesStorageMetadata)
        ]
        names = {found.relative_path for found in index.storage_data.values()}
    except (pickle.UnpicklingError, EOFError, AttributeError, KeyError, TypeError) as error:
        raise _unreadable(file, key, error) from error
    for name in names:
        if Path(name).name != name:
            raise InputError(
                f"{key}: checkpoint {str(file)!r} names a file outside its folder, {name!r}; give "
                "a checkpoint that a run of this package wrote."
            )
    for found in pickled:
        shard = file.parent / found.relative_path
        if not shard.is_file():
            raise InputError(
                f"{key}: checkpoint {str(shard)!r} is not there; copy the checkpoint anew."
            )
        with shard.open("rb") as stream:
            stream.seek(found.offset)
            _check_saved(io.BytesIO(stream.read(found.length)), shard, key)


def _check_tag(file: Path, key: str) -> None:
    """Check the name that DeepSpeed follows to a folder."""
    name = file.read_text(encoding="utf-8").strip()
    if Path(name).name != name:
        raise InputError(
            f"{key}: checkpoint {str(file)!r} names a folder outside its own, {name!r}; give a "
            "checkpoint that a run of this package wrote."
        )
