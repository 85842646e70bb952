"""Settings of an adapter: checked before ``peft`` sees them, in its own names."""

from __future__ import annotations

import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args, get_origin

from torch import nn

from etw_lightning.schema import InputError

__all__ = ["MERGEABLE", "REFUSALS", "make_config", "refused"]

#: Kinds of adapters whose weights go into the model's own, that start as the model they are added
#: to, and that need nothing between steps. Left out, for example: ADALORA (wants a call after each
#: step and a penalty), PVERA (draws its weights), C3A and VBLORA (start elsewhere), prompts.
MERGEABLE = (
    *("LORA", "BOFT", "DELORA", "FOURIERFT", "GRALORA", "HIRA", "HRA", "IA3", "LN_TUNING"),
    *("LOHA", "LOKR", "MISS", "OFT", "RANDLORA", "ROAD", "SHIRA", "VERA"),
)
#: Settings of peft's that are not ours to give: they change the model itself, or mean nothing here.
_HIDDEN = {
    *("peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path"),
    *("revision", "inference_mode", "layer_replication", "megatron_config", "megatron_core"),
    *("runtime_config", "loftq_config", "eva_config", "corda_config", "lora_ga_config"),
    *("velora_config", "monteclora_config", "kasa_config", "arrow_config", "use_bdlora"),
    *("alora_invocation_tokens", "use_qalora", "qalora_group_size", "trainable_token_indices"),
}
#: Kinds whose ``r`` is a rank of each adapted matrix.
_OF_A_RANK = ("LORA", "DELORA", "HIRA", "LOHA", "MISS")
#: First weights of LoRA's that leave the model as it is.
_PLAIN_INITS = (True, "gaussian", "orthogonal")
_KINDS = {
    types.NoneType: "null",
    bool: "true or false",
    dict: "pairs {name: value}",
    float: "a number",
    int: "a whole number",
    list: "a list",
    set: "a list",
    str: "a text",
}
#: Settings that hold names of modules, or patterns of them.
_NAMES = {
    *("target_modules", "feedforward_modules", "exclude_modules", "modules_to_save"),
    *("rank_pattern", "alpha_pattern"),
}
#: What peft raises at settings that it does not take.
REFUSALS = (ValueError, TypeError, KeyError, NotImplementedError, RuntimeError, ImportError)


def make_config(lm: Any, settings: Mapping[str, Any], key: str) -> Any:
    """Return peft's configuration of checked settings.

    Args:
        lm: The model the adapter is for.
        settings: ``peft_type`` and arguments of its configuration.
        key: Configuration key that errors name.

    Raises:
        InputError: If a setting is unknown, of the wrong type or out of range, or names modules
            that are not there.
    """
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    kinds = [name for name in MERGEABLE if name in PEFT_TYPE_TO_CONFIG_MAPPING]
    kind = settings.get("peft_type")
    if kind not in kinds:
        near = difflib.get_close_matches(str(kind).upper(), kinds, n=1, cutoff=0.75)
        suggestion = f" Did you mean {near[0]!r}?" if near else ""
        raise InputError(
            f"{key}.peft_type must be a kind that can be merged into the model: "
            f"{', '.join(kinds)}; got {kind!r}.{suggestion}"
        )
    cls = PEFT_TYPE_TO_CONFIG_MAPPING[kind]
    hints = typing.get_type_hints(cls)
    known = {one.name for one in dataclasses.fields(cls) if one.init} - _HIDDEN
    given = {name: value for name, value in settings.items() if name != "peft_type"}
    for name, value in given.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            other = (
                f"did you mean {near[0]!r}?" if near else f"it takes {', '.join(sorted(known))}."
            )
            raise InputError(f"{key}.{name} is not a setting of {kind}; {other}")
        # Before the type, whose words are mostly others.
        if name == "init_lora_weights" and (value is not True and value not in _PLAIN_INITS[1:]):
            raise InputError(
                f"{key}.{name} must be true, gaussian or orthogonal; got {value!r}. Others read "
                "data, change the model's own weights, or start away from it."
            )
        # peft calls LoRA's alpha a whole number, and takes any.
        hint = float if name.endswith("alpha") else hints[name]
        if not _fits(value, hint):
            raise InputError(f"{key}.{name} must be {_kind(hint)}; got {value!r}.")
        if name.endswith("dropout") and not 0 <= value < 1:
            raise InputError(f"{key}.{name} must be at least 0 and below 1; got {value}.")
        if name.endswith("alpha") and not value > 0:
            raise InputError(f"{key}.{name} must be > 0; got {value}.")
        if name == "bias" and value != "none":
            raise InputError(
                f"{key}.bias must be none; got {value!r}. The model's own biases can't be "
                "switched off with the adapter; train them with model.train_only."
            )
    _check_modules(lm, given, key)
    _check_sizes(lm, kind, given, key)
    try:
        return cls(**given)
    except REFUSALS as error:
        raise refused(error, cls, settings, key) from error


def _check_modules(lm: Any, given: Mapping[str, Any], key: str) -> None:
    """Refuse names and numbers of which one matches nothing: peft is content with any that does."""
    names = [name for name, _ in lm.named_modules() if name]
    for setting in _NAMES & set(given):
        wanted = given[setting]
        for name in [wanted] if isinstance(wanted, str) else wanted or ():
            if isinstance(wanted, dict):
                is_there = _matches(rf"(.*\.)?({name})", names, f"{key}.{setting}")
            elif isinstance(wanted, str):
                # A text is a regular expression on whole names, or a word for all of a kind.
                is_there = name == "all-linear" or _matches(name, names, f"{key}.{setting}")
            else:
                is_there = any(there == name or there.endswith(f".{name}") for there in names)
            if not is_there:
                further = "; it takes all-linear, too" * (setting == "target_modules")
                raise InputError(
                    f"{key}.{setting} must name modules of the model; {name!r} matches none. "
                    f"There are {', '.join(_leaves(lm))}{further}."
                )
    weights = [name for name, _ in lm.named_parameters()]
    for name in given.get("target_parameters") or ():
        if not any(there == name or there.endswith(f".{name}") for there in weights):
            example = next(one for one in weights if one.count("."))
            raise InputError(
                f"{key}.target_parameters must name weights of the model; {name!r} matches none. "
                f"One is {example!r}; modules go into target_modules."
            )
    layers, count = given.get("layers_to_transform"), lm.config.get_text_config().num_hidden_layers
    for layer in [layers] if isinstance(layers, int) else layers or ():
        if not 0 <= layer < count:
            raise InputError(
                f"{key}.layers_to_transform must be from 0 to {count - 1}; got {layer}."
            )


def _check_sizes(lm: Any, kind: str, given: Mapping[str, Any], key: str) -> None:
    """Refuse a rank that no matrix has, and two sizes of OFT's blocks at a time."""
    rank = given.get("r")
    if kind == "OFT" and rank and given.get("oft_block_size") != 0:
        raise InputError(
            f"{key}.r is the number of OFT's blocks, which oft_block_size (32 by default) sets, "
            f"too; got {rank}. Leave r out, or set oft_block_size to 0."
        )
    if kind not in _OF_A_RANK or rank is None:
        return
    wanted, sizes = given.get("target_modules"), {}
    for name, layer in _linear(lm).items():
        if isinstance(wanted, str) and wanted != "all-linear":
            is_adapted = re.fullmatch(wanted, name) is not None
        else:
            is_adapted = not isinstance(wanted, list | tuple | set) or any(
                name == one or name.endswith(f".{one}") for one in wanted
            )
        if is_adapted:
            sizes[name] = min(layer.in_features, layer.out_features)
    if sizes and rank > min(sizes.values()):
        least = min(sizes, key=lambda name: sizes[name])
        raise InputError(
            f"{key}.r must be at most {sizes[least]}, the smaller side of {least}, above which an "
            f"adapter gains nothing; got {rank}."
        )


def _linear(lm: Any) -> dict[str, nn.Linear]:
    """Return linear layers by name, without the output head."""
    head = lm.get_output_embeddings()
    named = lm.named_modules()
    return {name: m for name, m in named if isinstance(m, nn.Linear) and m is not head}


def _leaves(lm: Any) -> list[str]:
    """Return the last parts of the names of linear layers, without the output head."""
    return list(dict.fromkeys(name.split(".")[-1] for name in _linear(lm)))


def _matches(pattern: str, names: Sequence[str], key: str) -> bool:
    try:
        return any(re.fullmatch(pattern, name) for name in names)
    except re.error as error:
        raise InputError(f"{key} must be a regular expression; {pattern!r} is none.") from error


def refused(error: Exception, config: Any, settings: Mapping[str, Any], key: str) -> InputError:
    """Return one line for what peft refuses, with the key that it speaks of."""
    reason = " ".join(str(error).split()).rstrip(".")
    words = re.findall(r"\w+", reason)
    typed = [name for name in settings if name in words]
    fields = [one.name for one in dataclasses.fields(config) if one.name in words]
    name = next((f".{name}" for name in (*typed, *fields)), "")
    return InputError(f"{key}{name} is refused by peft: {reason:.300}.")


def _fits(value: Any, hint: Any) -> bool:
    """Tell whether a value from a configuration file is of a type."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, one) for one in inner)
    if origin is Literal:
        return value in inner
    if origin in (list, set, tuple):
        return isinstance(value, list | set | tuple) and all(_fits(one, inner[0]) for one in value)
    if hint in (int, float):
        return isinstance(value, (int, hint)) and not isinstance(value, bool)
    kind = origin or hint
    return value is None if hint is types.NoneType else isinstance(value, kind)


def _kind(hint: Any) -> str:
    """Say what a setting takes."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(_kind(one) for one in inner))
    if origin is Literal:
        return " or ".join(map(str, inner))
    return _KINDS.get(origin or hint, getattr(hint, "__name__", str(hint)))
