"""Loggers by class path with no further key: they write into the run's folder, and offline."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger

from etw_lightning.schema import InputError

__all__ = ["give_defaults", "place_loggers"]

#: Stands for the run's folder.
_HERE = "."
#: Where each logger writes by default, by the name of its argument.
_DEFAULTS: Mapping[str, tuple[str, ...]] = {
    "CSVLogger": (_HERE,),
    "TensorBoardLogger": (_HERE,),
    "WandbLogger": (_HERE,),
    "MLFlowLogger": ("./mlruns", _HERE),
}
_PACKAGES = {"WandbLogger": ("wandb",), "MLFlowLogger": ("mlflow", "mlflow_skinny")}


def give_defaults() -> None:
    """Let ``CSVLogger`` be named without its ``save_dir``, like the other loggers."""
    defaults = CSVLogger.__init__.__defaults__ or ()
    if len(defaults) + 2 == CSVLogger.__init__.__code__.co_argcount:
        CSVLogger.__init__.__defaults__ = (_HERE, *defaults)


def place_loggers(logger: Any, folder: Path) -> None:
    """Have loggers write below a run's folder; what the user has set stays.

    Args:
        logger: The setting ``trainer.logger``, one or a list, whose arguments are changed.
        folder: The run's folder.

    Raises:
        InputError: If the package of a logger is not installed.
    """
    from importlib.util import find_spec

    for one in logger if isinstance(logger, list) else [logger]:
        path = one.get("class_path") if hasattr(one, "get") else None
        if not isinstance(path, str):
            continue
        kind = path.rpartition(".")[2]
        packages = _PACKAGES.get(kind, ())
        if packages and not any(map(find_spec, packages)):
            raise InputError(
                f"trainer.logger is {path}, which needs the package {packages[0]}; install it, or "
                "take lightning.pytorch.loggers.CSVLogger."
            )
        arguments = one.get("init_args")
        if arguments is None or kind not in _DEFAULTS:
            continue
        for key in ("save_dir", "tracking_uri"):
            if key == "save_dir" and arguments.get(key) in (None, *_DEFAULTS[kind]):
                arguments[key] = str(folder / "mlruns" if kind == "MLFlowLogger" else folder)
        if kind == "MLFlowLogger":
            # Newer versions write files only where that is allowed; a run's folder is files.
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        if kind == "WandbLogger" and "WANDB_MODE" not in os.environ:
            # Nothing leaves the machine unless it was asked to.
            arguments["offline"] = arguments.get("offline") or "WANDB_API_KEY" not in os.environ
