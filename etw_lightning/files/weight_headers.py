"""Which weights a model's folder holds, read from the headers of its safetensors files alone."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from etw_lightning.files.places import is_below
from etw_lightning.schema import InputError

__all__ = [
    "INDEX",
    "PLAIN",
    "read_dtypes",
    "read_headers",
    "read_packing",
    "shard_names",
    "weight_files",
]

_FILE, INDEX = "model.safetensors", "model.safetensors.index.json"
#: Shards that processes have written each for itself; ``transformers`` prefers them to all others.
_RANKED = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors")
#: What safetensors calls numbers that a model computes with.
PLAIN = {"F64", "F32", "F16", "BF16"}
#: In names of tensors that tell how bitsandbytes, or compressed-tensors, has packed a weight.
_STATE, _SHAPE = ".quant_state.bitsandbytes__", ".weight_shape"


def weight_files(folder: Path, key: str) -> list[Path]:
    """Return the files that hold a model's weights.

    Args:
        folder: In Hugging Face layout.
        key: Configuration key that errors name.

    Raises:
        InputError: If there are none, one that the index names is absent, or two sets of files are
            there, of which only one can be the model.
    """
    single, index = folder / _FILE, folder / INDEX
    ranked = sorted(path.name for path in folder.iterdir() if _RANKED.fullmatch(path.name))
    shards = sorted(shard_names(index, key)) if index.is_file() else []
    if single.is_file() and index.is_file() and shards != [_FILE]:
        raise _ambiguous(folder, _FILE, f"{shards[0]}, named by {INDEX}", key)
    if ranked and (single.is_file() or index.is_file()):
        raise _ambiguous(folder, _FILE if single.is_file() else INDEX, ranked[0], key)
    if not single.is_file() and not index.is_file():
        what = f"{ranked[0]}, a share of one process," if ranked else f"no {_FILE}"
        raise InputError(
            f"{key}: folder {str(folder)!r} holds {what} and no {INDEX}; give a folder saved by "
            "save_pretrained, a .gguf file or a hub name."
        )
    absent = [name for name in shards if not (folder / name).is_file()]
    if absent:
        raise InputError(
            f"{key}: {str(index)!r} names {absent[0]}, which is not there ({len(absent)} of "
            f"{len(shards)} files are absent); copy the folder anew."
        )
    return [folder / name for name in shards] or [single]


def _ambiguous(folder: Path, one: str, other: str, key: str) -> InputError:
    return InputError(
        f"{key}: folder {str(folder)!r} holds the weights twice, in {one} and in {other}; remove "
        "those that are not meant."
    )


def shard_names(index: Path, key: str) -> set[str]:
    """Return the names of the files in an index of shards.

    Raises:
        InputError: If it is no such index, or names a file that is not in its folder.
    """
    try:
        names: set[Any] = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{key}: {str(index)!r} is no index of a model's files ({type(error).__name__}); give "
            "a folder saved by save_pretrained."
        ) from error
    for name in names:
        if not isinstance(name, str) or not is_below(name):
            raise InputError(
                f"{key}: {str(index)!r} names the file {name!r:.60}, which is not in the "
                "model's folder; give a folder saved by save_pretrained."
            )
    if not names:
        raise InputError(f"{key}: {str(index)!r} names no file; copy the folder anew.")
    return names


def read_headers(files: list[Path], key: str) -> dict[str, tuple[int, ...]]:
    """Return the shape of each weight by its name; no weight is read.

    Args:
        files: Of one model.
        key: Configuration key that errors name.

    Raises:
        InputError: If a file can't be read, or two hold a weight of one name.
    """
    from safetensors import SafetensorError, safe_open

    shapes: dict[str, tuple[int, ...]] = {}
    places: dict[str, Path] = {}
    for file in files:
        try:
            with safe_open(file, "pt") as opened:
                found = {name: opened.get_slice(name).get_shape() for name in opened.keys()}  # noqa: SIM118 (no mapping)
        except (SafetensorError, OSError) as error:
            raise InputError(
                f"{key} {str(file.parent)!r} could not be loaded: {file.name} can't be read "
                f"({' '.join(str(error).split()):.100}); copy it anew."
            ) from error
        twice = sorted(found.keys() & shapes.keys())
        if twice:
            raise InputError(
                f"{key}: {twice[0]} stands both in {str(places[twice[0]])!r} and in {file.name} "
                f"({len(twice)} weights do); copy the folder anew."
            )
        shapes |= {name: tuple(shape) for name, shape in found.items()}
        places |= dict.fromkeys(found, file)
    return shapes


def read_dtypes(files: list[Path]) -> dict[str, str]:
    """Return what safetensors calls the numbers of each tensor.

    Args:
        files: Of one model, as ``read_headers`` has read them.
    """
    from safetensors import safe_open

    found: dict[str, str] = {}
    for file in files:
        with safe_open(file, "pt") as opened:
            found |= {name: opened.get_slice(name).get_dtype() for name in opened.keys()}  # noqa: SIM118 (no mapping)
    return found


def read_packing(files: list[Path], key: str) -> dict[str, dict[str, Any]]:
    """Return what small tensors beside packed weights tell of them, by the names of these tensors.

    Args:
        files: Of one model, as ``read_headers`` has read them.
        key: Configuration key that errors name.

    Returns:
        ``shape`` before packing, and of bitsandbytes ``blocksize``.

    Raises:
        InputError: If one tells nothing of the kind.
    """
    from safetensors import safe_open

    found = {}
    for file in files:
        with safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118 (no mapping)
                if _STATE not in name and not name.endswith(_SHAPE):
                    continue
                numbers = opened.get_tensor(name).tolist()
                try:
                    told = json.loads(bytes(numbers)) if _STATE in name else {"shape": numbers}
                    found[name] = {**told, "shape": tuple(map(int, told["shape"]))}
                except (ValueError, TypeError, KeyError) as error:
                    raise InputError(
                        f"{key} {str(file.parent)!r}: {name} does not tell what was packed "
                        f"({type(error).__name__}); copy {file.name} anew."
                    ) from error
    return found
