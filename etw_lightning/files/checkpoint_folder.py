"""Checkpoints of a run on the disk: written whole or not at all, and recognised when they are not.

A checkpoint is a folder ``checkpoints/step-00000012`` that holds ``state.ckpt`` (a file, or a
folder of shards) and ``manifest.json``, which lists every file with its size and checksum. It is
written under a name that is never read, flushed to the disk, and renamed; so a folder of the right
name was once whole, and the manifest tells whether it still is.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = [
    "FOLDER",
    "MANIFEST",
    "STATE",
    "Saved",
    "describe_files",
    "draft_of",
    "files_below",
    "folder_of",
    "publish",
    "remove",
    "remove_checkpoints",
    "remove_drafts",
    "saved_checkpoints",
    "set_aside",
    "what_is_wrong",
]

#: Folder of all checkpoints of a run, in the run's own.
FOLDER = "checkpoints"
#: What a checkpoint holds: the trainer's state, and the list of its files.
STATE, MANIFEST = "state.ckpt", "manifest.json"

_NAME = re.compile(r"step-(\d{8,})(?:-(\d+))?")
_BLOCK = 1 << 22


@dataclass(frozen=True)
class Saved:
    """A checkpoint that was once whole.

    Args:
        folder: Where it lies.
        manifest: What its manifest says; empty if that can't be read.
    """

    folder: Path
    manifest: Mapping[str, Any]

    @classmethod
    def of(cls, state: Path) -> Saved | None:
        """Return the checkpoint that a state belongs to; None of one that lies by itself."""
        is_saved = state.name == STATE and _NAME.fullmatch(state.parent.name)
        return cls(state.parent, _read(state.parent)) if is_saved else None

    @property
    def step(self) -> int:
        """Optimiser steps made before it was saved."""
        return self.order[0]

    @property
    def order(self) -> tuple[int, int]:
        """Its step, and how often that step had been saved before."""
        found = _NAME.fullmatch(self.folder.name)
        assert found is not None
        return int(found[1]), int(found[2] or 0)

    @property
    def state(self) -> Path:
        """What the trainer restores."""
        return self.folder / STATE


def folder_of(run: Path, step: int) -> Path:
    """Return the folder of a checkpoint that is about to be made.

    A step that has been saved before gets another name, so that there always is a whole one.

    Example:
        >>> folder_of(Path("run"), 12).as_posix()
        'run/checkpoints/step-00000012'
    """
    before = [one.order[1] for one in saved_checkpoints(run) if one.step == step]
    return run / FOLDER / (f"step-{step:08d}" + (f"-{max(before) + 1}" if before else ""))


def draft_of(folder: Path) -> Path:
    """Return the name under which a checkpoint is written."""
    return folder.with_name(f".{folder.name}.part")


def describe_files(root: Path, files: Iterable[Path]) -> dict[str, list[int]]:
    """Flush files to the disk; return size and CRC-32 of each, by its path below ``root``."""
    found = {}
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            found[path.relative_to(root).as_posix()] = [path.stat().st_size, _checksum(file)]
    return found


def publish(draft: Path, folder: Path, manifest: Mapping[str, Any]) -> None:
    """Give a checkpoint whose files are on the disk its manifest and its name.

    Args:
        draft: Where it was written.
        folder: What it is to be called; not there yet.
        manifest: Any values of JSON; ``files`` is what ``describe_files`` returns.
    """
    with (draft / MANIFEST).open("w", encoding="utf-8") as file:
        json.dump(manifest, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    for below in (path for path in draft.rglob("*") if path.is_dir()):
        _sync_folder(below)
    _sync_folder(draft)
    draft.rename(folder)
    _sync_folder(folder.parent)


def saved_checkpoints(run: Path) -> list[Saved]:
    """Return the checkpoints of a run, the oldest first, whole or not."""
    place = run / FOLDER
    folders = [one for one in place.iterdir() if one.is_dir()] if place.is_dir() else []
    found = [Saved(one, _read(one)) for one in folders if _NAME.fullmatch(one.name)]
    return sorted(found, key=lambda one: one.order)


def what_is_wrong(saved: Saved, *, contents: bool = True) -> str:
    """Return why a checkpoint can't be used; empty if it is whole.

    Args:
        saved: The checkpoint.
        contents: Read every file for its checksum; else sizes alone are compared.
    """
    files = saved.manifest.get("files")
    if not isinstance(files, Mapping) or not files:
        return f"its {MANIFEST} is missing or cut"
    for name, (size, checksum) in files.items():
        path = saved.folder / name
        if not path.resolve().is_relative_to(saved.folder.resolve()):
            return f"its {MANIFEST} names {name!r}, which lies outside"
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes of {size}"
        if contents:
            with path.open("rb") as file:
                if _checksum(file) != checksum:
                    return f"{name} has another checksum than when it was written"
    return ""


def set_aside(saved: Saved) -> Path:
    """Rename a damaged checkpoint so that it is not read again; return its new place."""
    aside = saved.folder.with_name(f"{saved.folder.name}.damaged")
    shutil.rmtree(aside, ignore_errors=True)
    return saved.folder.rename(aside)


def remove(folder: Path) -> None:
    """Remove a checkpoint; one that is half removed is none."""
    draft = draft_of(folder)
    shutil.rmtree(draft, ignore_errors=True)
    folder.rename(draft)
    shutil.rmtree(draft)


def remove_checkpoints(run: Path) -> None:
    """Remove all checkpoints of a run; what others have put beside them stays."""
    for saved in saved_checkpoints(run):
        remove(saved.folder)
    remove_drafts(run)
    with contextlib.suppress(OSError):  # not there, or not empty
        (run / FOLDER).rmdir()


def remove_drafts(run: Path) -> None:
    """Remove what a killed run was writing."""
    for draft in (run / FOLDER).glob(".step-*.part"):
        shutil.rmtree(draft)


def files_below(root: Path) -> Sequence[Path]:
    """Return all files of a draft, in one order."""
    return sorted(path for path in root.rglob("*") if path.is_file())


def _read(folder: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return manifest if isinstance(manifest, dict) else {}


def _checksum(file: Any) -> int:
    value = 0
    while block := file.read(_BLOCK):
        value = zlib.crc32(block, value)
    return value


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
