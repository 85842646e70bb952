"""What a model from elsewhere may not do: run code of its own, or have pickles read.

``transformers`` asks at the terminal whether to run a model's code unless it is told; it is told
no, everywhere, and no setting, data set or model can say yes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from etw_lightning.files.weight_headers import INDEX, shard_names
from etw_lightning.schema import InputError

__all__ = ["NO_CODE", "check_attention", "check_no_adapter", "check_weights", "refusal"]

#: Arguments of every ``from_pretrained`` and ``from_config``.
NO_CODE = {"trust_remote_code": False}

_ADAPTER = "adapter_config.json"
#: Endings of weights that are pickles.
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def check_weights(folder: Path, key: str, auto_class: str = "AutoModelForCausalLM") -> None:
    """Refuse a model's folder whose weights are no safetensors, or lie outside of it.

    Args:
        folder: In Hugging Face layout.
        key: Configuration key that errors name.
        auto_class: Class of ``transformers`` that loads such a model.

    Raises:
        InputError: If it holds pickled weights alone or an adapter, or its index names files
            elsewhere.
    """
    check_no_adapter(folder, key)
    if not any(folder.glob("*.safetensors")):
        pickled = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
        if pickled:
            place = str(folder)
            raise InputError(
                f"{key} {place!r} holds its weights in {pickled[0]}, a pickle, which is never read;"
                " if you trust it, save it as safetensors: python -c 'from transformers import "
                f'{auto_class} as M; M.from_pretrained("{place}").save_pretrained("{place}")\''
            )
    if (folder / INDEX).is_file():
        shard_names(folder / INDEX, key)


def check_no_adapter(folder: Path, key: str) -> None:
    """Refuse a folder that holds an adapter of peft, which names another model to be loaded.

    Args:
        folder: Of a model.
        key: Configuration key that errors name.

    Raises:
        InputError: If there is one, with or without a model beside it.
    """
    if not (folder / _ADAPTER).is_file():
        return
    place = str(folder)
    pickled = sorted(path.name for path in folder.glob("adapter_model.*") if path.suffix == ".bin")
    if pickled:
        raise InputError(
            f"{key} {place!r} holds an adapter in {pickled[0]}, a pickle, which is never read; "
            "give the model that it was merged into, as safetensors."
        )
    raise InputError(
        f"{key} {place!r} holds an adapter ({_ADAPTER}), which is not read: merge it into its "
        "model, and give that: python -c 'from peft import AutoPeftModelForCausalLM as M; "
        f'M.from_pretrained("{place}").merge_and_unload().save_pretrained("MERGED")\''
    )


def check_attention(config: Any, given: str, key: str) -> None:
    """Refuse a model whose configuration asks for compiled code from the hub.

    Args:
        config: The model's configuration.
        given: The model, as the user gave it.
        key: Configuration key that errors name.

    Raises:
        InputError: If it names an attention that is none of the library's own.
    """
    asked = getattr(config, "_attn_implementation", None)
    if isinstance(asked, str) and "/" in asked:
        raise InputError(
            f"{key} {given!r} asks in its configuration for code from the hub "
            f"(attn_implementation {asked!r}), which is never run; take that entry out of its "
            "config.json."
        )


def refusal(error: Exception) -> str | None:
    """Return why a model was refused if it needs code of its own; None for any other error."""
    if "custom code" not in str(error) and "trust_remote_code" not in str(error):
        return None
    return (
        "it needs Python code of its own (auto_map in its configuration), which is never run; "
        "only architectures that transformers holds are loaded"
    )
