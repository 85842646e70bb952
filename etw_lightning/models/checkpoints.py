"""Models in Lightning checkpoints of our module: what is stored with the weights, and read back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch

from etw_lightning.files.foreign_models import NO_CODE, check_attention
from etw_lightning.files.misfit import Misfit, refuse_misfit, shapes_of
from etw_lightning.files.safe_files import check_checkpoint
from etw_lightning.files.stored_weights import (
    find_checkpoint,
    is_checkpoint,
    read_description,
    read_shapes,
    read_weights,
)
from etw_lightning.models.weight_fit import PREFIXES, empty_model
from etw_lightning.schema import InputError
from etw_lightning.tuning.adapters import add_adapter, wrap_model

__all__ = [
    "check_checkpoint_weights",
    "check_resume",
    "check_resume_settings",
    "checkpoint_config",
    "checkpoint_dtype",
    "checkpoint_model",
    "checkpoint_tokenizer",
    "describe_model",
    "is_checkpoint",
]

_ENTRY = "etw_lightning"
_WEIGHTS = "scorer.lm."
_T = TypeVar("_T")


def describe_model(
    lm: Any,
    tokenizer_name: str,
    peft: Mapping[str, Any] | None = None,
    settings: Mapping[str, str] | None = None,
) -> dict[str, dict[str, str]]:
    """Return what a checkpoint needs beside the weights, to be loaded as a model.

    Args:
        lm: The model in training.
        tokenizer_name: Where its tokenizer comes from.
        peft: Settings of the adapter that is trained, if any.
        settings: What a run that goes on from here must have in common with this one, by key.
    """
    local = Path(tokenizer_name).expanduser()
    stored = {
        "config": lm.config.to_json_string(use_diff=False),
        "generation_config": lm.generation_config.to_json_string(use_diff=False),
        "tokenizer": str(local.resolve()) if local.exists() else tokenizer_name,
    }
    if peft is not None:
        stored["peft"] = json.dumps(dict(peft))
    if settings is not None:
        stored["settings"] = json.dumps(dict(settings))
    return {_ENTRY: stored}


def check_resume(path: str, settings: Mapping[str, str], weights: Mapping[str, Any]) -> set[str]:
    """Refuse to go on from a checkpoint of another method or model.

    Args:
        path: The checkpoint, ``ckpt_path``.
        settings: This run's, as of ``describe_model``.
        weights: This run's, by name.

    Returns:
        Names of the callbacks whose state the checkpoint holds.

    Raises:
        InputError: Names the first setting that differs, or that the weights do.
    """
    content = check_resume_settings(path, settings)
    # Of shards a strategy itself refuses names that are not there.
    if "state_dict" in content and content["state_dict"].keys() != weights.keys():
        other = sorted(content["state_dict"].keys() ^ weights.keys())
        raise InputError(
            f"ckpt_path {path!r} holds other weights than this run trains ({other[0]} and "
            f"{len(other) - 1} more are in one of the two alone); give the model.pretrained, "
            "model.peft and model.reference of its run."
        )
    # A weight that is dealt out among processes is empty here.
    wanted = {name: shape for name, shape in shapes_of(weights).items() if 0 not in shape}
    stored = shapes_of(content.get("state_dict", {}))
    found = Misfit.between({name: stored.get(name, wanted[name]) for name in wanted}, wanted)
    refuse_misfit(found, path, "ckpt_path", "give the model.pretrained of its run")
    return {name.split("{")[0] for name in content.get("callbacks", {})}


def check_resume_settings(path: str, settings: Mapping[str, str]) -> dict[str, Any]:
    """Refuse to go on from a checkpoint of another method, whatever its weights are.

    Args:
        path: As of ``check_resume``.
        settings: As of ``check_resume``.

    Returns:
        What the checkpoint holds.

    Raises:
        InputError: Names the first setting that differs.
    """
    content = _described(path, "ckpt_path")
    # A strategy reads the shards by loaders of its own.
    check_checkpoint(find_checkpoint(path, "ckpt_path"), "ckpt_path")
    for key, was in json.loads(content[_ENTRY].get("settings", "{}")).items():
        if settings.get(key) != was:
            raise InputError(
                f"{key} is {settings.get(key)}, but ckpt_path {path!r} is of a run with {was}; "
                "give that value to go on with it, or start anew without ckpt_path."
            )
    return content


def checkpoint_model(path: str, key: str, dtype: torch.dtype, extra: dict[str, Any]) -> Any:
    """Return the model of a checkpoint, with the adapter merged that it was trained with.

    Args:
        path: The checkpoint: a file, a folder of shards or a run's.
        key: Configuration key that errors name.
        dtype: Precision of the weights.
        extra: Further arguments of the model's class.

    Raises:
        InputError: If it is no checkpoint of our module, or its weights are not all there.
    """
    from transformers import AutoModelForCausalLM, GenerationConfig

    content = _described(path, key)
    config = checkpoint_config(path, key)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype, **NO_CODE, **extra)
    settings = content[_ENTRY].get("peft")
    # Its shape only: of random weights the checkpoint holds the trained ones.
    adapter = None if settings is None else add_adapter(model, json.loads(settings), key)
    weights = _own(read_weights(find_checkpoint(path, key), key))
    refuse_misfit(Misfit.between(shapes_of(weights), shapes_of(model.state_dict())), path, key)
    model.load_state_dict(weights)
    stored = json.loads(content[_ENTRY]["generation_config"])
    model.generation_config = GenerationConfig.from_dict(stored)
    if adapter is not None:
        model = adapter.merge_for_good()
    model.tie_weights()
    return model.eval()


def check_checkpoint_weights(path: str, key: str) -> None:
    """Refuse a checkpoint whose weights are not its model's, by names and shapes alone.

    Args:
        path: As of ``checkpoint_model``.
        key: Configuration key that errors name.

    Raises:
        InputError: As ``checkpoint_model``.
    """
    content = _described(path, key)
    model = empty_model(checkpoint_config(path, key))
    settings = content[_ENTRY].get("peft")
    if settings is not None:
        wrap_model(model, json.loads(settings), key)
    shapes = _own(read_shapes(find_checkpoint(path, key), key))
    refuse_misfit(Misfit.between(shapes, shapes_of(model.state_dict())), path, key)


def _own(entries: Mapping[str, _T]) -> dict[str, _T]:
    """Return what belongs to the model, under its names there.

    Example:
        >>> _own({"scorer.lm.a": 1, "_forward_module.scorer.lm._orig_mod.b": 2, "reference.a": 3})
        {'a': 1, 'b': 2}
    """
    bare = {_without_prefixes(name): entry for name, entry in entries.items()}
    return {
        _without_prefixes(name.removeprefix(_WEIGHTS)): entry
        for name, entry in bare.items()
        if name.startswith(_WEIGHTS)
    }


def _without_prefixes(name: str) -> str:
    found = next((prefix for prefix in PREFIXES if name.startswith(prefix)), None)
    return name if found is None else _without_prefixes(name.removeprefix(found))


def checkpoint_config(path: str, key: str) -> Any:
    """Return the model's configuration.

    Raises:
        InputError: As ``checkpoint_model``.
    """
    from transformers import AutoConfig

    stored = json.loads(_described(path, key)[_ENTRY]["config"])
    stored.pop("quantization_config", None)
    config = AutoConfig.for_model(**stored)
    check_attention(config, path, key)
    return config


def checkpoint_dtype(path: str, key: str) -> str:
    """Return the precision in which the model was trained: ``float32``, ``bfloat16``, ...

    Raises:
        InputError: As ``checkpoint_model``.
    """
    content = _described(path, key)
    own = [w for name, w in content.get("state_dict", {}).items() if name.startswith(_WEIGHTS)]
    dtype = own[0].dtype if own else checkpoint_config(path, key).dtype
    return str(dtype or "float32").removeprefix("torch.")


def checkpoint_tokenizer(path: str, key: str) -> str:
    """Return where the tokenizer comes from.

    Raises:
        InputError: As ``checkpoint_model``; or if a folder that it came from is gone.
    """
    name: str = _described(path, key)[_ENTRY]["tokenizer"]
    if Path(name).is_absolute() and not Path(name).exists():
        raise InputError(
            f"{key} {path!r} was trained from {name!r}, which is gone; its tokenizer is needed: "
            "give data.tokenizer."
        )
    return name


def _described(path: str, key: str) -> dict[str, Any]:
    """Return what a checkpoint of ours holds; of shards, without the weights."""
    content = read_description(find_checkpoint(path, key), key)
    if _ENTRY not in content:
        raise InputError(
            f"{key}: checkpoint {path!r} was not written by a run of this package; give a folder "
            "in Hugging Face layout."
        )
    return content
