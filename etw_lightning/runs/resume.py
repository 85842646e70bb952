"""Where a run that was broken off goes on, and that it is the same run that does."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from etw_lightning.files.checkpoint_folder import (
    FOLDER,
    Saved,
    remove_drafts,
    saved_checkpoints,
    set_aside,
    what_is_wrong,
)
from etw_lightning.notices import warn_first
from etw_lightning.runs.folder import finished_command
from etw_lightning.runs.key import differences, run_key, that_count
from etw_lightning.runs.newer_options import is_of, unlike
from etw_lightning.schema import InputError
from etw_lightning.scoring.provenance import library_versions

__all__ = [
    "check_processes",
    "check_same_run",
    "check_unchanged",
    "has_lock",
    "is_same_run",
    "lock_run",
    "manifest_of",
    "newest_checkpoint",
    "traces_of",
    "unfinished_run",
]

#: Seconds to wait for a process that has just been killed to let go of its folder.
_PATIENCE = 20.0


def manifest_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a checkpoint says of the run that wrote it.

    Args:
        config: All settings of the run.
    """
    settings = json.loads(json.dumps(that_count(config), default=str))
    return {"key": run_key(config), "settings": settings, "versions": library_versions()}


def unfinished_run(parent: Path, config: Mapping[str, Any]) -> Path | None:
    """Return the newest folder whose run was broken off and nobody goes on with; None if none is.

    Args:
        parent: Folder of the runs.
        config: All settings of the run.
    """
    folders = [one.parent for one in parent.glob(f"*/{FOLDER}")]
    for folder in sorted(folders, reverse=True):
        saved = saved_checkpoints(folder)
        is_same = bool(saved) and any(is_of(one.manifest, config) for one in saved)
        if is_same and finished_command(folder) is None and _is_free(folder):
            return folder
    return None


def newest_checkpoint(run: Path, *, is_first: bool) -> Saved | None:
    """Return the newest whole checkpoint of a run; damaged ones are set aside.

    Args:
        run: The run's folder.
        is_first: Whether this process looks at every byte and tidies up; the others compare sizes.
    """
    if is_first:
        remove_drafts(run)
    for saved in reversed(saved_checkpoints(run)):
        wrong = what_is_wrong(saved, contents=is_first)
        if not wrong:
            return saved
        if is_first:
            aside = set_aside(saved)
            warn_first(
                f"checkpoint {saved.folder} is damaged ({wrong}); it is now {aside.name}, and the "
                "one before it is used."
            )
    return None


def check_processes(saved: Saved, world_size: int) -> None:
    """Refuse to go on with another number of processes.

    Raises:
        InputError: Names the keys, both numbers and the way out.
    """
    was = saved.manifest.get("world_size")
    if was != world_size:
        raise InputError(
            f"trainer.devices and trainer.num_nodes make {world_size} processes, but checkpoint "
            f"{str(saved.folder)!r} is of a run with {was}; start as many, another output_dir, or "
            "--overwrite to start anew."
        )


def is_same_run(config: Mapping[str, Any], saved: Saved) -> bool:
    """Tell whether a checkpoint was made with these settings."""
    return not unlike(saved.manifest.get("settings", {}), config)


def check_same_run(config: Mapping[str, Any], saved: Saved) -> None:
    """Refuse to go on with other settings than a checkpoint was made with.

    Args:
        config: All settings of this run.
        saved: The checkpoint.

    Raises:
        InputError: Names the first setting that differs, both values and the way out.
    """
    now = manifest_of(config)
    for key, (was, given) in unlike(saved.manifest.get("settings", {}), config).items():
        name = key.replace(".init_args", "").removesuffix(".class_path")
        raise InputError(
            f"{name} is {_short(given)}, but {str(saved.folder)!r} is a checkpoint of a run with "
            f"{_short(was)}; give that value to go on with it, another output_dir, or --overwrite "
            "to start anew."
        )
    other = differences(saved.manifest.get("versions", {}), now["versions"])
    if other:
        said = ", ".join(
            f"{name} {was} then, {is_now} now" for name, (was, is_now) in other.items()
        )
        warn_first(f"going on with other versions ({said}): results may differ in the last digits.")


def _short(value: str) -> str:
    return value if len(value) <= 80 else f"{value[:77]}..."


def lock_run(run: Path) -> FileLock | None:
    """Keep a run's folder for this process, to its end.

    Returns:
        The lock, to be held; None where the file system has none.

    Raises:
        InputError: If another process has it.
    """
    run.mkdir(parents=True, exist_ok=True)
    lock = FileLock(run / ".lock")
    try:
        lock.acquire(timeout=_PATIENCE)
    except Timeout as error:
        raise InputError(
            f"output_dir {str(run)!r} is in use by another run; wait for it, or give another "
            "folder."
        ) from error
    except NotImplementedError:
        warn_first(f"{run} can't be locked: see that no second run writes to it.")
        return None
    return lock


def has_lock(run: Path) -> bool:
    """Tell whether a run has been, or is, in a folder."""
    return (run / ".lock").exists()


def traces_of(run: Path) -> tuple[str | None, list[tuple[int, int]]]:
    """Return by what a folder tells how far its run has come: its results and its checkpoints."""
    return finished_command(run), [one.order for one in saved_checkpoints(run)]


def check_unchanged(run: Path, before: tuple[str | None, list[tuple[int, int]]]) -> None:
    """Refuse a folder that another run has written to since this one looked at it.

    Args:
        run: The run's folder, locked.
        before: What ``traces_of`` it was then.

    Raises:
        InputError: If it is not what it was.
    """
    if traces_of(run) != before:
        raise InputError(
            f"output_dir {str(run)!r} has just been written to by another run; give another "
            "folder, or the same command again to go on from there."
        )


def _is_free(run: Path) -> bool:
    lock = FileLock(run / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    except NotImplementedError:
        return True
    lock.release()
    return True
