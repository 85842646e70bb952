"""What ``--help`` of ``fit``, ``evaluate`` and ``check`` shows, kept beside the code.

The parser itself needs Lightning and everything else that a run needs, which takes seconds. What it
shows is written to a file by ``python -m etw_lightning.commands.stored_help`` and laid out here for
the width of the terminal. It counts while the sources that define the options, and the libraries
that do, are those it was made with; else the parser is asked.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import etw_lightning
from etw_lightning.notices import program

__all__ = [
    "add_options",
    "describe_parser",
    "described",
    "laid_out",
    "load",
    "made",
    "state",
]

_FILE = Path(__file__).with_name("stored_help.json")
_LIBRARIES = ("jsonargparse", "lightning")
#: Where options are defined: classes by their fields and arguments, the parser by its whole code.
_CLASSES = (
    "callbacks/*.py",
    "forget/*.py",
    "retain/*.py",
    "runs/checkpointing.py",
    "runs/trainer.py",
    "schema.py",
    "training/datamodule.py",
    "training/module.py",
    "weighting/*.py",
)
#: What is stored as the name of the program; it is shown as it was typed.
_PROGRAM = "python -m etw_lightning"
_WHOLE = ("commands/cli.py", "commands/parser.py")


def load() -> Mapping[str, Any] | None:
    """Return what is shown, by command; None if it is not of these sources and libraries."""
    try:
        held = json.loads(_FILE.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if held["state"] != state():
        return None
    commands: dict[str, Any] = held["commands"]
    for command in commands.values():
        for group in command["groups"]:
            group["options"] = [held["options"][name] for name in group["options"]]
        command["keys"] = held["keys"]
        command["choices"] = held["choices"]
    return commands


def state() -> dict[str, str]:
    """Return what decides of the help: versions, and a hash of the sources that define options."""
    try:
        versions = {name: version(name) for name in _LIBRARIES}
    except PackageNotFoundError:
        return {}
    root = Path(etw_lightning.__file__).parent
    outline = hashlib.sha256()
    for pattern in _CLASSES:
        for path in sorted(root.glob(pattern)):
            for line in _outline(path.read_text(encoding="utf-8")):
                outline.update(line.encode())
    for name in _WHOLE:
        outline.update((root / name).read_bytes())
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    return {**versions, "python": python, "sources": outline.hexdigest()[:16]}


@cache
def _outline(source: str) -> tuple[str, ...]:
    r"""Return what of a module its options are made of: classes with docstring and arguments.

    Example:
        >>> _outline("class A:\n    'Does.'\n    x: int = 3\n    def f(self): pass\n")
        ('A', 'Does.', 'x: int = 3')
    """
    return tuple(_lines_of_options(source))


def _lines_of_options(source: str) -> Iterator[str]:
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield node.name
            yield ast.get_docstring(node) or ""
            for item in node.body:
                if isinstance(item, ast.AnnAssign):
                    yield ast.unparse(item)
                elif isinstance(item, ast.FunctionDef) and item.name == "__init__":
                    yield ast.unparse(item.args)
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0])[:1].isupper():
            yield ast.unparse(node)


def describe_parser(parser: Any) -> dict[str, Any]:
    """Return what a command's parser shows, as plain values.

    Args:
        parser: The parser of jsonargparse.
    """
    formatter = parser.formatter_class(prog=parser.prog)
    groups = []
    for group in parser._action_groups:
        shown = [one for one in group._group_actions if one.help != argparse.SUPPRESS]
        options = [
            {
                "flags": list(one.option_strings),
                "takes": _takes(formatter, one),
                "required": one.required,
                "help": formatter._expand_help(one),
            }
            for one in shown
        ]
        if options:
            texts = {"title": group.title, "description": group.description}
            groups.append({**texts, "options": options})
    return {"usage": parser.usage, "description": parser.description, "groups": groups}


def _takes(formatter: Any, action: Any) -> str:
    """Return what stands behind an option's name; empty if nothing does."""
    if action.nargs == 0:
        return ""
    default = formatter._get_default_metavar_for_optional(action)
    return str(formatter._format_args(action, default))


class _Option(argparse.Action):
    """An option that is shown and never parsed."""

    def __call__(self, *_: Any) -> None:
        """Do nothing."""


def laid_out(held: Mapping[str, Any]) -> str:
    """Return a command's help for the width of the terminal, as its parser would show it.

    Args:
        held: What ``describe_parser`` gave.
    """
    parser = argparse.ArgumentParser(
        usage=held["usage"].replace(_PROGRAM, program(), 1),
        description=held["description"],
        add_help=False,
        allow_abbrev=False,
    )
    add_options(parser, held)
    return parser.format_help()


def add_options(parser: argparse.ArgumentParser, held: Mapping[str, Any]) -> dict[str, Any]:
    """Add a command's options to a parser that shows or completes them; return them by name.

    Args:
        parser: Where they go.
        held: What ``describe_parser`` gave.
    """
    shown = {}
    for group in held["groups"]:
        place = parser.add_argument_group(group["title"], group["description"])
        for one in group["options"]:
            takes = one["takes"]
            option = _Option(
                one["flags"],
                dest=one["flags"][-1],
                nargs=None if takes else 0,
                metavar=takes or None,
                choices=takes[1:-1].split(",") if takes.startswith("{") else None,
                required=one["required"],
                help=one["help"].replace("%", "%%"),
            )
            place._add_action(option)
            shown[one["flags"][-1]] = option
    return shown


def described() -> dict[str, Any]:
    """Return what the commands show, by command, from the parser itself."""
    from etw_lightning.commands.run_reader import RunReader

    parser: Any = RunReader().parser
    children = parser._subcommands_action._name_parser_map
    return {name: describe_parser(child) for name, child in children.items()}


def made() -> str:
    """Return what the file should hold."""
    # First the reader: a parser lists classes in the order in which they were imported.
    from etw_lightning.commands import run_reader
    from etw_lightning.commands.parser import CLASSES, known_keys

    commands = described()
    options: dict[str, Any] = {}
    for name, command in commands.items():
        for group in command["groups"]:
            # The commands show most options alike.
            group["options"] = [_filed(options, one, name) for one in group["options"]]
    keys = sorted(set(known_keys(run_reader.RunReader().parser)))
    # A callback may be any of Lightning's too, by its short name.
    choices = {key: [*classes] for key, classes in CLASSES.items() if key != "trainer.callbacks"}
    held = {
        "state": state(),
        "commands": commands,
        "keys": keys,
        "choices": choices,
        "options": options,
    }
    # A value a line, so that a new option is a few changed lines.
    return f"{json.dumps(held, indent=0, ensure_ascii=False)}\n"


def _filed(options: dict[str, Any], one: Any, command: str) -> str:
    """Put an option among all others; return its name there."""
    name = one["flags"][-1]
    if options.setdefault(name, one) != one:
        name = f"{command} {name}"
        options[name] = one
    return name


if __name__ == "__main__":
    _FILE.write_text(made(), encoding="utf-8")
