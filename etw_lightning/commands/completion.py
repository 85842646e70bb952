"""Completion of commands and options in a shell, by shtab.

The parser's own way to it follows every class that an argument of a class may be, and weightings
hold weightings: it finds no end. What ``--help`` shows is enough.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any, cast

from etw_lightning.commands.refusals.early import choices_of
from etw_lightning.commands.stored_help import add_options, described, load
from etw_lightning.files.config_files import shipped
from etw_lightning.schema import InputError

__all__ = ["completion_script"]

#: Commands that have a parser of their own.
_OTHERS = ("alternatives", "sweep", "sequence", "export", "report", "compare", "attack", "configs")
#: Options that name a file or a folder.
_FILES, _FOLDERS = ("--checkpoint", "--ckpt_path", "--output", "--rows"), ("--output_dir", "--copy")
#: Completes the names of the shipped configurations, and files.
_CONFIGS = {"bash": "_etw_configs", "zsh": "_etw_configs", "tcsh": "f"}


def completion_script(shell: str, lines: Mapping[str, str]) -> str:
    """Return what completes the words of ``etw`` in a shell.

    Args:
        shell: ``bash``, ``tcsh`` or ``zsh``.
        lines: Each command and what it does.

    Raises:
        InputError: If shtab is not installed.
    """
    if find_spec("shtab") is None:
        raise InputError(
            "--print_completion needs shtab, which is not installed: pip install "
            "'etw-lightning[completion]'."
        )
    import shtab

    whole = argparse.ArgumentParser("etw")
    whole.add_argument("--version", action="store_true")
    commands = whole.add_subparsers()
    for name, held in (load() or described()).items():
        options = add_options(commands.add_parser(name, add_help=False, help=lines[name]), held)
        _complete_values(options, held)
    for name in _OTHERS:
        given = importlib.import_module(f"etw_lightning.commands.{name}").parser()
        other = commands.add_parser(name, help=lines[name])
        for action in given._actions[1:]:  # the first is --help
            other._add_action(action)
        if name == "attack":
            _add_attacks(other)
    commands.add_parser("explain", help=lines["explain"])
    for child in commands.choices.values():
        for action in child._actions:
            _complete_files(action, shtab)
    names = " ".join(shipped())
    preamble = {
        "bash": f'_etw_configs() {{ compgen -W "{names}" -- "$1"; compgen -f -- "$1"; }}',
        "zsh": f"_etw_configs() {{ compadd -- {names}; _files }}",
        "tcsh": "",
    }
    return f"{shtab.complete(whole, shell, preamble=cast(Any, preamble))}\n"


def _add_attacks(other: argparse.ArgumentParser) -> None:
    """Complete the names of the attacks, and what they take."""
    from dataclasses import fields

    from etw_lightning import attacks

    name = next(one for one in other._actions if one.dest == "name")
    name.choices = [one.removeprefix("attack/") for one in shipped() if one.startswith("attack/")]
    kinds = [getattr(attacks, one) for one in attacks.__all__]
    taken = {
        field.name
        for kind in kinds
        if issubclass(kind, attacks.Attack) and kind is not attacks.Attack
        for field in fields(kind)
    }
    for one in sorted(taken):
        other.add_argument(f"--attack.{one}")


def _complete_values(options: Mapping[str, Any], held: Mapping[str, Any]) -> None:
    """Give the options that take some words alone these words, and classes their names."""
    for one in (one for group in held["groups"] for one in group["options"]):
        name = one["flags"][-1]
        words = held["choices"].get(name[2:]) or choices_of(one)
        if words:
            options[name].choices = words


def _complete_files(action: Any, shtab: Any) -> None:
    if "--config" in action.option_strings:
        action.complete = _CONFIGS
    elif set(action.option_strings) & set(_FILES):
        action.complete = shtab.FILE
    elif set(action.option_strings) & set(_FOLDERS):
        action.complete = shtab.DIRECTORY
