"""Methods by the names of their files: what a name stands for, as settings for Python."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import yaml

from etw_lightning.benchmarks.source import check_name
from etw_lightning.files.config_files import shipped
from etw_lightning.method import Method
from etw_lightning.schema import InputError
from etw_lightning.weighting import TokenWeighting, Uniform

__all__ = ["method_names", "method_settings", "weighting_named"]


def method_names() -> tuple[str, ...]:
    """Return the methods there are."""
    return tuple(sorted(path.stem for path in shipped().values() if path.parent.name == "method"))


def method_settings(method: str | Method) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what a method sets: arguments of ``UnlearningModule``, and of the data module.

    Args:
        method: Name of a method file, or the parts themselves.

    Raises:
        InputError: If there is no such method.
    """
    if isinstance(method, Method):
        parts = {"weighting": method.weighting, "forget": method.forget, "retain": method.retain}
        return parts, {}
    if not isinstance(method, str):
        raise InputError(
            "method must be the name of a method or a Method of parts; got "
            f"{type(method).__name__}. Names are {', '.join(method_names())}."
        )
    check_name("method", method, method_names())
    said = yaml.safe_load(shipped()[f"method/{method}"].read_text(encoding="utf-8"))
    settings = {key: _built(value) for key, value in said["model"].items()}
    return settings, dict(said.get("data", {}))


def _built(value: Any) -> Any:
    """Return the object that a class path with arguments stands for; anything else as it is."""
    if not isinstance(value, Mapping) or "class_path" not in value:
        return value
    module, _, name = value["class_path"].rpartition(".")
    arguments = {key: _built(one) for key, one in value.get("init_args", {}).items()}
    return getattr(import_module(module), name)(**arguments)


def weighting_named(weighting: str | TokenWeighting) -> TokenWeighting:
    """Return a weighting: that of a method, with its numbers, or the object itself.

    Args:
        weighting: Name of a method, or ``uniform``.

    Raises:
        InputError: If there is none of this name.
    """
    if isinstance(weighting, TokenWeighting):
        return weighting
    if not isinstance(weighting, str):
        got = type(weighting).__name__
        raise InputError(f"weighting must be a name or a TokenWeighting; got {got}.")
    if weighting == "uniform":
        return Uniform()
    check_name("weighting", weighting, (*method_names(), "uniform"))
    found: TokenWeighting = method_settings(weighting)[0]["weighting"]
    return found
