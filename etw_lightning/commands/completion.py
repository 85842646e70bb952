"""Completion of commands and options in a shell, and the schema of a configuration file."""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from typing import Any, cast

from jsonargparse import ArgumentParser

from etw_lightning.commands.cli import RunReader
from etw_lightning.schema import InputError

__all__ = ["completion_script"]

#: Commands that have a parser of their own.
_OTHERS = ("sweep", "export", "configs")


def completion_script(kind: str) -> str:
    """Return what completes the words of ``etw`` in a shell.

    Args:
        kind: ``shtab-`` and the shell; or ``jsonschema``, for an editor of YAML files of ``fit``.

    Raises:
        InputError: If shtab is not installed.
    """
    if kind.startswith("shtab-") and find_spec("shtab") is None:
        raise InputError(
            "--print_completion needs shtab, which is not installed: pip install "
            "'etw-lightning[completion]'."
        )
    whole = cast(Any, RunReader().parser)
    whole.prog = "etw"
    commands = whole._subcommands_action
    if kind == "jsonschema":
        return f"{commands._name_parser_map['fit'].get_completion_script(kind)}\n"
    for name in _OTHERS:
        options = importlib.import_module(f"etw_lightning.commands.{name}").parser()
        other = cast(Any, ArgumentParser(prog=f"etw {name}", description=options.description))
        for action in options._actions[1:]:  # the first is --help
            other._add_action(action)
        commands.add_subcommand(name, other, help=options.description)
    commands.add_subcommand("explain", ArgumentParser(prog="etw explain"), help="explain NAME")
    script: str = whole.get_completion_script(kind)
    return f"{script}\n"
