"""Settings are whose class they were written for: another class begins with its own defaults.

jsonargparse keeps, of a class that is replaced, the arguments that the new one takes too; a number
chosen for one objective would reach another without a word.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Any, cast

from jsonargparse import _typehints

from etw_lightning.schema import InputError

__all__ = ["check_order", "forget_arguments"]


def forget_arguments() -> None:
    """Have the parser drop all arguments of a class that is replaced by another one."""
    cast(Any, _typehints).discard_init_args_on_class_path_change = _discard


def _discard(_parser: Any, before: Any, now: Any) -> None:
    """Empty the arguments held for a class, if the one that follows is another."""
    if not before or "init_args" not in before or before["class_path"] == now["class_path"]:
        return
    held = before["init_args"]
    for name in list(held.keys()):
        del held[name]


def check_order(words: Sequence[str], keys: Collection[str]) -> None:
    """Refuse an argument of a class that stands before the class is chosen: it would be lost.

    Args:
        words: The command line.
        keys: Keys whose values are classes.

    Raises:
        InputError: Names both.
    """
    for number, word in enumerate(words):
        key = word.removeprefix("--").partition("=")[0].removesuffix(".class_path")
        if key not in keys or not word.startswith("--"):
            continue
        earlier = [one for one in words[:number] if one.startswith(f"--{key}.")]
        lost = next((one for one in earlier if not re.search(r"\.(help|class_path)\b", one)), None)
        if lost is not None:
            name = lost.removeprefix("--").partition("=")[0]
            raise InputError(
                f"{name} stands before {key}, which chooses its class anew; give it behind."
            )
