"""The content key of a run: equal for two configurations that give equal results."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from etw_lightning.callbacks.collapse_settings import CollapseSettings
from etw_lightning.files.moved_classes import new_name
from etw_lightning.schema import Conventions

__all__ = ["differences", "run_key", "that_count"]

#: Settings that change where a run writes, what it prints or how fast it is, and no number.
_NO_RESULT: Mapping[str, tuple[str, ...]] = {
    "": ("checkpoints", "config", "output_dir", "overwrite", "save_model"),
    "data": ("num_workers",),
    "trainer": (
        "default_root_dir",
        "enable_autolog_hparams",
        "enable_model_summary",
        "enable_progress_bar",
        "log_every_n_steps",
        "logger",
        "model_registry",
        "profiler",
    ),
}
#: Stands for a setting that one of two runs lacks.
_ABSENT = object()


def run_key(config: Mapping[str, Any]) -> str:
    """Return the content key of a run, 12 hexadecimal digits.

    What decides is the value that each setting has in the end, so a default that is written out,
    another order of the files or ``1e-4`` for ``0.0001`` leave the key as it is. Files that a run
    reads count by their names, not by what they hold.

    Args:
        config: All settings of the run as the parser gives them, defaults filled in.

    Example:
        >>> one = run_key({"seed_everything": 1, "output_dir": "a"})
        >>> one == run_key({"output_dir": "b", "seed_everything": 1})
        True
        >>> one == run_key({"seed_everything": 2, "output_dir": "a"})
        False
    """
    text = json.dumps(that_count(config), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def that_count(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that change results, each written in one way."""
    kept = {
        name: _bare({key: one for key, one in value.items() if key not in _NO_RESULT.get(name, ())})
        if isinstance(value, Mapping)
        else _bare(value)
        for name, value in config.items()
        if name not in _NO_RESULT[""]
    }
    if isinstance(kept.get("data"), dict) and kept["data"].get("seed") is None:
        kept["data"]["seed"] = kept.get("seed_everything")
    # Runs from before there was such a guard had none.
    if kept.get("collapse") == CollapseSettings()._asdict():
        del kept["collapse"]
    named = {"definition": Conventions(), "peer": Conventions.peer()}
    given = kept.get("conventions", "definition")
    if isinstance(given, str):
        given = asdict(named[given])
    kept["conventions"] = given
    return kept


def differences(one: Any, other: Any, key: str = "") -> dict[str, tuple[str, str]]:
    """Return the keys in which two runs' settings differ, to both values as JSON.

    Args:
        one: Settings as ``that_count`` returns them.
        other: The same of the other run; what it lacks is ``absent``.
        key: Where they stand.

    Example:
        >>> differences({"model": {"lr": 1, "dtype": None}}, {"model": {"lr": 2, "dtype": None}})
        {'model.lr': ('1', '2')}
    """
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        found: dict[str, tuple[str, str]] = {}
        for name in dict.fromkeys((*one, *other)):
            place = f"{key}.{name}" if key else str(name)
            found |= differences(one.get(name, _ABSENT), other.get(name, _ABSENT), place)
        return found
    texts = tuple(
        "absent" if value is _ABSENT else json.dumps(value, sort_keys=True, default=str)
        for value in (one, other)
    )
    return {} if texts[0] == texts[1] else {key: (texts[0], texts[1])}


def _bare(value: Any) -> Any:
    """Return a setting without empty lists of arguments, which may be left out.

    Classes have their present names: checkpoints from before they moved hold the former ones.
    """
    if isinstance(value, Mapping):
        inner = {name: _bare(one) for name, one in value.items()}
        path = inner.get("class_path")
        if isinstance(path, str):
            inner["class_path"] = new_name(path) or path
        return {name: one for name, one in inner.items() if name != "init_args" or one}
    return [_bare(one) for one in value] if isinstance(value, list | tuple) else value
