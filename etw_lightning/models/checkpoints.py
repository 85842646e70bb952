"""Models in Lightning checkpoints of our module: what is stored with the weights, and read back."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch

from etw_lightning.files.foreign_models import NO_CODE, check_attention
from etw_lightning.files.safe_files import check_checkpoint
from etw_lightning.files.stored_weights import (
    find_checkpoint,
    is_checkpoint,
    read_description,
    read_weights,
)
from etw_lightning.models.adapters import add_adapter
from etw_lightning.schema import InputError

__all__ = [
    "check_resume",
    "checkpoint_config",
    "checkpoint_dtype",
    "checkpoint_model",
    "checkpoint_tokenizer",
    "describe_model",
    "is_checkpoint",
]

_ENTRY = "etw_lightning"
_WEIGHTS = "scorer.lm."


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


def check_resume(path: str, settings: Mapping[str, str], names: Collection[str]) -> set[str]:
    """Refuse to go on from a checkpoint of another method or model.

    Args:
        path: The checkpoint, ``ckpt_path``.
        settings: This run's, as of ``describe_model``.
        names: This run's names of weights.

    Returns:
        Names of the callbacks whose state the checkpoint holds.

    Raises:
        InputError: Names the first setting that differs, or that the weights do.
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
    # Of shards a strategy itself refuses names that are not there.
    if "state_dict" in content and content["state_dict"].keys() != set(names):
        other = sorted(content["state_dict"].keys() ^ set(names))
        raise InputError(
            f"ckpt_path {path!r} holds other weights than this run trains ({other[0]} and "
            f"{len(other) - 1} more are in one of the two alone); give the model.pretrained, "
            "model.peft and model.reference of its run."
        )
    return {name.split("{")[0] for name in content.get("callbacks", {})}


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
    weights = {
        name.removeprefix(_WEIGHTS): weight
        for name, weight in read_weights(find_checkpoint(path, key), key).items()
        if name.startswith(_WEIGHTS)
    }
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise InputError(
            f"{key} {path!r}: the weights are not those of its configuration: "
            f"{' '.join(str(error).split()):.200}."
        ) from error
    stored = json.loads(content[_ENTRY]["generation_config"])
    model.generation_config = GenerationConfig.from_dict(stored)
    if adapter is not None:
        model = adapter.merge_for_good()
    model.tie_weights()
    return model.eval()


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
