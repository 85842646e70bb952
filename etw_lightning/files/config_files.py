"""The shipped configurations, and a configuration file found by its name or by its path.

A name is what stands below ``configs`` without the ending: ``quickstart``, ``method/npo``. In an
installed package the files lie inside it; in a checkout in the folder at its top.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import etw_lightning
from etw_lightning.schema import InputError

__all__ = ["Found", "about", "find_config", "resolve_words", "shipped", "shipped_folder"]

_ENDINGS = (".yaml", ".yml")
_OPTIONS = ("--config", "-c")


class Found(NamedTuple):
    """Where a configuration is.

    Args:
        path: Its file.
        note: A line to show, if a file of the current folder hides a shipped one; else empty.
    """

    path: Path
    note: str


def shipped_folder() -> Path:
    """Return the folder of the shipped configurations."""
    package = Path(etw_lightning.__file__).parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


@cache
def shipped() -> dict[str, Path]:
    """Return all shipped configurations, complete runs first, by name."""
    folder = shipped_folder()
    files = sorted(folder.rglob("*.yaml"), key=lambda path: (path.parent != folder, path))
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in files}


def about(path: Path) -> str:
    """Return the first sentence of the comment that a configuration begins with."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# "))
    return re.split(r"(?<=\.)\s", " ".join(lines), maxsplit=1)[0].rstrip(".")


def find_config(given: str, key: str = "config") -> Found:
    """Find a configuration file: in the current folder first, then among the shipped ones.

    Args:
        given: A path, or the name of a shipped file, with or without ending and ``configs/``.
        key: What errors name.

    Raises:
        InputError: If there is none; names what is near.
    """
    path = Path(given).expanduser()
    name = path.with_suffix("") if path.suffix in _ENDINGS else path
    theirs = None if path.is_absolute() else shipped().get(_without_top(name.as_posix()))
    tries = [path]
    if path.name and path.suffix not in _ENDINGS:
        tries.append(path.with_name(f"{path.name}.yaml"))
    if theirs is not None:
        tries.append(Path("configs") / f"{_without_top(name.as_posix())}.yaml")
    here = next((one for one in tries if one.is_file()), None)
    if here is None:
        if theirs is None:
            raise InputError(_absent(given, path, key))
        return Found(theirs, "")
    if theirs is None or here.samefile(theirs):
        return Found(here, "")
    return Found(
        here,
        f"{key} {given}: {str(here)!r} of the current folder is read, not the shipped "
        f"configuration of this name, {str(theirs)!r}",
    )


def _without_top(name: str) -> str:
    return name.removeprefix("./").removeprefix("configs/")


def _absent(given: str, path: Path, key: str) -> str:
    """Say that a file is absent, and which ones are near."""
    if path.is_dir():
        return f"{key} must be a YAML file; {given!r} is a folder."
    folder = path.parent if path.parent.is_dir() else Path()
    there = [one.name for one in folder.iterdir() if one.suffix in _ENDINGS]
    wanted = _without_top(path.with_suffix("").as_posix())
    near = difflib.get_close_matches(wanted, list(shipped()), n=2, cutoff=0.6)
    beside = difflib.get_close_matches(path.name, there, n=1, cutoff=0.8)
    near += [str(folder / name) for name in beside]
    if not near:
        ends = {name.split("/")[-1]: name for name in reversed(shipped())}
        near = [ends[end] for end in difflib.get_close_matches(wanted.split("/")[-1], ends, n=1)]
    names = [repr(name) for name in dict.fromkeys(near)]
    hint = f" Did you mean {' or '.join(names)}?" if names else ""
    return f"{key}: there is no file {given!r}.{hint} The command 'configs' lists the shipped ones."


def resolve_words(words: Sequence[str]) -> tuple[list[str], list[Found]]:
    """Return a command's words with paths in place of the names of configurations, and the files.

    Text that holds settings instead of naming a file is left as it is.

    Raises:
        InputError: If a file is absent.
    """
    resolved: list[str] = []
    found: list[Found] = []
    is_value = False
    for word in words:
        option, is_pair, value = word.partition("=")
        is_joined = bool(is_pair) and option in _OPTIONS
        if not (is_value or is_joined):
            resolved.append(word)
            is_value = word in _OPTIONS
            continue
        given, is_value = value if is_joined else word, False
        if re.search(r"[{\n]|: ", given):
            resolved.append(word)
            continue
        found.append(find_config(given))
        path = found[-1].path
        if found[-1].note:
            path = path.absolute()  # found again by this, it is not told again
        resolved.append(f"{option}={path}" if is_joined else str(path))
    return resolved, found
