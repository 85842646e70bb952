"""What files of several runs have in common: pairs, settings of runs and a folder, checked."""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from etw_lightning.files.config_files import find_config
from etw_lightning.files.setting_names import SAME, is_unread
from etw_lightning.files.yaml_checks import check_once
from etw_lightning.schema import InputError

__all__ = [
    "FileKind",
    "as_pairs",
    "as_texts",
    "changes_of",
    "check_keys",
    "config_of",
    "folder_of",
    "needed",
    "optional",
    "read_file",
    "setting_key",
    "settings_of",
    "value_text",
]


#: What the parser of a run would take for a number.
_ENDLESS = re.compile(r"[+-]?\.?(inf|infinity|nan)", re.IGNORECASE)


class FileKind:
    """A kind of file that describes several runs.

    Args:
        name: What it is called.
        own: Settings that each of its runs has of its own.
    """

    def __init__(self, name: str, own: Sequence[str]) -> None:
        self.name, self.own = name, tuple(own)


def read_file(path: str, kind: FileKind) -> dict[str, Any]:
    """Return what a file holds.

    Raises:
        InputError: If there is none, it is no YAML, or holds a key twice.
    """
    file = find_config(path, "--config").path
    try:
        text = file.read_text(encoding="utf-8")
        check_once(yaml.compose(text), f"the {kind.name}'s file")
        given = yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"--config {path!r} is not YAML: {' '.join(str(error).split())}") from None
    return as_pairs(f"--config {path!r}", given)


def check_keys(place: str, given: Mapping[str, Any], known: Collection[str]) -> None:
    """Refuse keys that are none."""
    for key in (name for name in given if name not in known):
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
        hint = f" Did you mean {place}{near[0]}?" if near else f" There are {', '.join(known)}."
        raise InputError(f"{place}{key} is not known.{hint}")


def as_pairs(key: str, given: Any) -> dict[str, Any]:
    """Return a value that must be pairs of a name and something."""
    if not isinstance(given, dict) or not all(isinstance(name, str) for name in given):
        raise InputError(f"{key} must hold pairs `name: value`; got {given!r:.60}.")
    return given


def as_texts(key: str, given: Any) -> list[str]:
    """Return a value that must be a list of names."""
    is_list = isinstance(given, list) and given
    if not is_list or not all(isinstance(one, str) and one for one in given):
        raise InputError(f"{key} must be a list of names, at least one; got {given!r:.60}.")
    return given


def settings_of(place: str, given: Any, kind: FileKind) -> dict[str, Any]:
    """Check the names of settings; return them under the names that files of a run take."""
    found: dict[str, Any] = {}
    for name, value in as_pairs(place, given).items():
        key = SAME.get(name, name)
        if key in kind.own:
            raise InputError(f"{place} can't hold {name}: each run of a {kind.name} has its own.")
        if is_unread("fit", key):
            raise InputError(f"{place} can't hold {name}: no run reads it. Leave it out.")
        if key in found:
            both = " and ".join(one for one in given if SAME.get(one, one) == key)
            raise InputError(f"{place} must hold {key} once; {both} are the same setting.")
        _check_finite(setting_key(place, name), value)
        found[key] = value
    return found


def setting_key(place: str, name: str) -> str:
    """Return a setting's key as it was typed.

    Args:
        place: What it stands under, or the option that it was given to.
        name: Its name.

    Example:
        >>> setting_key("grid", "model.lr"), setting_key("--set", "model.lr")
        ('grid.model.lr', '--set model.lr')
    """
    return f"{place} {name}" if place.startswith("--") else f"{place}.{name}"


def _check_finite(key: str, value: Any) -> None:
    """Refuse a number that is none, which no run could begin with."""
    for one in value if isinstance(value, list) else [value]:
        is_endless = isinstance(one, float) and not math.isfinite(one)
        if is_endless or (isinstance(one, str) and _ENDLESS.fullmatch(one)):
            raise InputError(f"{key} must be a finite number; got {one}.")


def changes_of(option: str, texts: Sequence[str], kind: FileKind) -> dict[str, Any]:
    """Return the settings that texts ``key=value`` make, each given once.

    Args:
        option: What they were given to.
        texts: As typed.
        kind: Of file.
    """
    found: dict[str, Any] = {}
    for text in texts:
        key, value = _change(option, text, kind)
        if key in found:
            raise InputError(
                f"{option} must be given {key} once; got {found[key]!r} and {value!r}."
            )
        found[key] = value
    return found


def _change(option: str, text: str, kind: FileKind) -> tuple[str, Any]:
    """Return the setting that ``key=value`` makes, and its value."""
    name, is_pair, value = text.partition("=")
    if not is_pair or not name:
        raise InputError(f"{option} must be given as key=value; got {text!r}.")
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError:
        raise InputError(f"{option} {name} must be YAML; got {value!r}.") from None
    ((key, one),) = settings_of(option, {name.lstrip("-"): parsed}, kind).items()
    return key, one


def needed(given: Mapping[str, Any], key: str, hint: str, kind: FileKind) -> Any:
    """Return what a file must hold."""
    if given.get(key) is None:
        raise InputError(f"{key} is missing from the {kind.name}'s file; it holds {hint}.")
    return given[key]


def optional(given: Mapping[str, Any], key: str) -> Any:
    """Return what a file may hold; no pairs where it does not. What is wrong stays, if empty."""
    return {} if given.get(key) is None else given[key]


def config_of(given: Mapping[str, Any], kind: FileKind) -> tuple[str, ...]:
    """Return the complete run files that a file names, one or several, which must be there.

    Args:
        given: What the file holds.
        kind: Of file.
    """
    config = needed(given, "config", "names or paths of run files, as [quickstart]", kind)
    files = (config,) if isinstance(config, str) else tuple(as_texts("config", config))
    for file in files:
        find_config(file)
    return files


def folder_of(output_dir: str | None, given: Mapping[str, Any], kind: FileKind) -> str:
    """Return the folder of the runs' folders: what was typed, else the file's.

    Args:
        output_dir: What was typed.
        given: What the file holds.
        kind: Of file.
    """
    folder = output_dir
    if folder is None:
        folder = needed(given, "output_dir", "the folder of the runs' folders", kind)
    if not isinstance(folder, str) or not folder.strip():
        raise InputError(f"output_dir must be a folder; got {folder!r}.")
    folder = str(Path(folder).expanduser())
    for path in (Path(folder), *Path(folder).parents):
        if path.exists() and not path.is_dir():
            raise InputError(f"output_dir must be a folder; {str(path)!r} is none.")
    return folder


def value_text(value: Any) -> str:
    """Return a value as it is read; equal numbers give equal texts, however they are written."""
    # YAML takes 1e-4, which lacks a point, for a text.
    is_number = isinstance(value, str) and re.fullmatch(r"[+-]?[\d.]+[eE][+-]?\d+", value)
    if is_number or (isinstance(value, int | float) and not isinstance(value, bool)):
        return repr(float(value)).removesuffix(".0")
    return value if isinstance(value, str) else json.dumps(value)
