"""Where a run may write, and what a name that comes from a file may point at.

The line: a place that the user names as one, ``output_dir``, ``model.reference_cache`` and
``$ETW_CACHE``, may be anywhere, and so may files that are only read. Everything else that a run
writes lies in its folder: settings of loggers, callbacks and profilers that name a file are refused
when they lead out of it, and so are links in it. Names that come from files, those of record sets,
of a model's shards, of a sweep's runs and of splits below ``data.root``, stay in the folder of the
file; links count where the folder is one that a run has written.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from etw_lightning.schema import InputError

__all__ = ["cache_dir", "check_links", "check_written", "expand_home", "is_below", "require_inside"]

#: Settings that are texts for a model, in which a tilde is a tilde.
_NO_PATHS = ("system_prompt", "template_kwargs")
_TILDE = re.compile("~(/|$)").match

#: Settings of the trainer's loggers, callbacks and profilers that name the place of a file; of the
#: last, the names of files and folders below such a place.
_FOLDERS = (
    "default_root_dir",
    "dir",
    "dirpath",
    "exclude_batches_path",
    "log_dir",
    "offline_directory",
    "root_dir",
    "save_dir",
)
_NAMES = ("filename", "name", "sub_dir", "version")


def expand_home(settings: Any) -> None:
    """Put the home folder in place of ``~`` wherever a setting begins with it, in place.

    Files joined by ``+`` are told apart.

    Args:
        settings: Nested mappings, namespaces and lists.
    """
    pairs = vars(settings).items() if hasattr(settings, "__dict__") else None
    if isinstance(settings, dict):
        pairs = settings.items()
    elif isinstance(settings, list):
        pairs = enumerate(settings)
    for key, value in list(pairs or ()):
        if key in _NO_PATHS:
            continue
        if isinstance(value, str):
            parts = [
                str(Path(part).expanduser()) if _TILDE(part) else part for part in value.split("+")
            ]
            if isinstance(settings, dict | list):
                settings[key] = "+".join(parts)
            else:
                setattr(settings, str(key), "+".join(parts))
        else:
            expand_home(value)


def cache_dir() -> Path:
    """Return the folder of all that is kept between runs: ``$ETW_CACHE`` or the user's cache."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("ETW_CACHE") or Path(base) / "etw_lightning").expanduser()


def is_below(name: str) -> bool:
    """Tell whether a relative name stays below the folder it is relative to.

    Example:
        >>> [is_below(name) for name in ("a/b", "a/../b", "../b", "/b", "..")]
        [True, True, False, False, False]
    """
    if PurePath(name).is_absolute():
        return False
    return os.path.normpath(name).split(os.sep)[0] != os.pardir


def require_inside(path: Path, folder: Path, key: str) -> None:
    """Refuse a path that lies outside of a folder, or that a link leads out of it.

    Args:
        path: File or folder; it need not exist.
        folder: Where it must lie.
        key: Configuration key that the error names.

    Raises:
        InputError: If it leaves the folder.
    """
    real, home = (Path(os.path.realpath(one)) for one in (path, folder))
    if not real.is_relative_to(home):
        raise InputError(
            f"{key}: {str(path)!r} leads out of the folder {str(folder)!r}, to {str(real)!r}; "
            "only what lies in the folder is used. Put the file itself there."
        )


def check_links(folder: Path) -> None:
    """Refuse a run's folder that something would be written through, or loaded from, unasked.

    Args:
        folder: The run's folder; it need not exist.

    Raises:
        InputError: If it holds a link that leads out of it, or a checkpoint that Lightning loads by
            its name under Slurm, whatever else it is told.
    """
    if not folder.is_dir():
        return
    home = Path(os.path.realpath(folder))
    for path in sorted(folder.iterdir()):
        real = Path(os.path.realpath(path))
        if path.is_symlink() and not real.is_relative_to(home):
            raise InputError(
                f"output_dir {str(folder)!r} holds the link {path.name!r}, which leads out of it, "
                f"to {str(real)!r}; remove the link, or give another folder."
            )
        if path.name.startswith("hpc_ckpt_"):
            raise InputError(
                f"output_dir {str(folder)!r} holds {path.name!r}, which Lightning would go on from "
                "and no run of this package writes; remove it, or give another folder."
            )


def check_written(trainer: Mapping[str, Any], folder: Path) -> None:
    """Refuse settings of the trainer by which something would be written outside of the run.

    Args:
        trainer: The settings, as the parser gives them.
        folder: The run's folder.

    Raises:
        InputError: Names the first setting that leads out of the folder.
    """
    home = Path(os.path.realpath(folder))
    for key, name, text in _texts(trainer, "trainer"):
        if name in _FOLDERS:
            real = Path(os.path.realpath(Path(text).expanduser()))
            if "://" in text or not real.is_relative_to(home):
                raise InputError(
                    f"{key} must lie in output_dir {str(folder)!r}; got {text!r}. Leave it out for "
                    "that folder itself, or give a folder in it."
                )
        elif name in _NAMES and not is_below(text):
            raise InputError(f"{key} must be a name without '..' or leading '/'; got {text!r}.")


def _texts(given: Any, key: str) -> Iterator[tuple[str, str, str]]:
    """Return key as the user types it, last name and value of each text in nested settings."""
    if isinstance(given, Mapping):
        for name, value in given.items():
            # Where a class's arguments stand is not typed.
            place = key if name == "init_args" else f"{key}.{name}"
            if isinstance(value, str | os.PathLike):
                yield place, name, os.fspath(value)
            else:
                yield from _texts(value, place)
    elif isinstance(given, Sequence) and not isinstance(given, str | bytes):
        for value in given:
            yield from _texts(value, key)
