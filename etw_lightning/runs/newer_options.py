"""Runs from before an option existed: they are what runs with its default are now."""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Mapping
from typing import Any

from etw_lightning.files.class_paths import class_at
from etw_lightning.runs.key import differences, run_key, that_count
from etw_lightning.schema import Conventions, InputError

__all__ = ["is_of", "unlike"]


def unlike(then: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Return the keys in which an earlier run's settings differ from a run's of today.

    An option that the earlier run did not know, and that has its default now, is no difference.

    Args:
        then: The earlier run's, as ``that_count`` returns them or as they were stored.
        now: Today's.

    Returns:
        As ``differences``.
    """
    before, today = (json.loads(json.dumps(that_count(one), default=str)) for one in (then, now))
    return differences(_completed(before, today, {}), today)


def is_of(manifest: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Tell whether a checkpoint is of the run with these settings, under whatever names.

    Args:
        manifest: The checkpoint's.
        now: The settings of the run.
    """
    then = manifest.get("settings") or {}
    return manifest.get("key") == run_key(now) or (bool(then) and not unlike(then, now))


def _completed(then: Any, now: Any, defaults: Mapping[str, Any]) -> Any:
    """Return settings with what they lack of today's, as far as that has its default.

    Args:
        then: Settings of the earlier run.
        now: The same of today's.
        defaults: Defaults of the options that stand here, as far as they are known.
    """
    if isinstance(then, list) and isinstance(now, list) and len(then) == len(now):
        return [_completed(old, new, {}) for old, new in zip(then, now, strict=True)]
    if not isinstance(then, Mapping) or not isinstance(now, Mapping):
        return then
    found = dict(then)
    path = now.get("class_path")
    if isinstance(path, str) and then.get("class_path") == path:
        # Arguments that are all left out are not stored.
        found.setdefault("init_args", {})
    for name, value in now.items():
        if name in found:
            found[name] = _completed(found[name], value, _defaults_below(name, now, defaults))
        elif name in defaults and _text(defaults[name]) == _text(value):
            found[name] = value
    return {name: one for name, one in found.items() if name != "init_args" or one}


def _defaults_below(name: str, now: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Return the defaults of the options below one."""
    if name == "init_args" and isinstance(now.get("class_path"), str):
        try:
            return _defaults_of(class_at(now["class_path"], object, "class_path"))
        except InputError:
            return {}
    if "model" in now and "data" in now:  # the whole
        return _of_section(name)
    default = above.get(name)
    is_fields = dataclasses.is_dataclass(default) and not isinstance(default, type)
    return dataclasses.asdict(default) if is_fields else {}  # type: ignore[arg-type]


def _of_section(name: str) -> dict[str, Any]:
    """Return the defaults of a part of a run."""
    # They need torch, which a sweep's file is read without.
    from lightning.pytorch import Trainer

    from etw_lightning.training.datamodule import UnlearningDataModule
    from etw_lightning.training.module import UnlearningModule

    kinds: dict[str, Any] = {"data": UnlearningDataModule, "model": UnlearningModule}
    kinds |= {"trainer": Trainer, "conventions": Conventions}
    return _defaults_of(kinds[name]) if name in kinds else {}


def _defaults_of(kind: Any) -> dict[str, Any]:
    """Return the defaults of a class's arguments."""
    return {
        name: one.default
        for name, one in inspect.signature(kind).parameters.items()
        if one.default is not inspect.Parameter.empty
    }


def _text(value: Any) -> str:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    return json.dumps(value, sort_keys=True, default=str)
