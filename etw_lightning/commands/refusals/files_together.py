"""Configurations that exclude each other: of the first stays what the later one leaves out."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from etw_lightning.files.yaml_checks import composed, keyed
from etw_lightning.schema import InputError

__all__ = ["check_together"]

#: Keys that make a file a complete run; files laid over one may set some of them.
_COMPLETE = ("model.pretrained", "model.forget", "data.benchmark")


def check_together(files: Iterable[Path]) -> None:
    """Refuse two method files, and two complete runs.

    Args:
        files: All configurations of a command, in order.

    Raises:
        InputError: Names both files.
    """
    files = list(files)
    methods = [file for file in files if file.absolute().parent.name == "method"]
    if len(methods) > 1:
        raise InputError(
            f"config must hold one method file (method/...); got {_named(methods)}: what "
            "the later one leaves out would stay from the first."
        )
    runs = [file for file in files if _is_complete(file)]
    if len(runs) > 1:
        raise InputError(
            f"config must hold one complete run; got {_named(runs)}: what the later one leaves "
            "out would stay from the first; give one of them, and what differs in flags or in a "
            f"file without {', '.join(_COMPLETE[:-1])} or {_COMPLETE[-1]}."
        )


def _named(files: Iterable[Path]) -> str:
    return " and ".join(map(str, files))


def _is_complete(file: Path) -> bool:
    """Tell whether a file names a model, an objective (or that there is none) and the data."""
    keys = {key.removesuffix(".class_path") for key, _ in keyed(composed(file))}
    return keys.issuperset(_COMPLETE)
