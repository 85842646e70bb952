"""Whether a run may write to a folder, and whether what lies there is a run's."""

from __future__ import annotations

import tempfile
from pathlib import Path

from etw_lightning.schema import InputError

__all__ = ["check_place"]

#: By what a folder is known as a run's: what one leaves, or has left when it was broken off.
_OURS = (
    "results.json",
    "config.yaml",
    "hparams.yaml",
    "records",
    ".lock",
    "checkpoints/step-*",
    "checkpoints/.step-*",
    "events.*",
    "exported",
)
#: What a scheduler, a sweep, or a logger that has just been built puts there before a run begins.
_LOGS = ("*.out", "*.err", "*.log", "log.txt", "mlruns", "wandb")


def check_place(folder: Path) -> None:
    """Refuse a folder that can't be written, or that holds files which no run has written.

    Nothing is left there.

    Args:
        folder: The run's; it need not exist.

    Raises:
        InputError: Names the folder and the way out.
    """
    _check_contents(folder)
    paths = (folder.absolute(), *folder.absolute().parents)
    place = next(path for path in paths if path.is_dir())
    try:
        with tempfile.TemporaryDirectory(prefix=".etw-", dir=place):
            pass
    except OSError as error:
        raise InputError(
            f"output_dir {str(folder)!r} can't be written: {str(place)!r} takes no new folder "
            f"({error.strerror or error}); give another folder."
        ) from error


def _check_contents(folder: Path) -> None:
    if not folder.is_dir():
        return
    held = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    strange = [path for path in held if not any(path.match(pattern) for pattern in _LOGS)]
    if strange and not any(next(folder.glob(pattern), None) for pattern in _OURS):
        raise InputError(
            f"output_dir {str(folder)!r} is no run's folder: it holds {strange[0].name!r}, which "
            "no run has written; give a new folder, or an empty one."
        )
