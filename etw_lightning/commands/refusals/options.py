"""Options of subcommands that take no configuration of a run."""

from __future__ import annotations

import argparse
from typing import NoReturn

from etw_lightning.notices import program
from etw_lightning.schema import InputError

__all__ = ["Options"]


class Options(argparse.ArgumentParser):
    """Options of one subcommand, none abbreviated, whose errors are one line.

    Args:
        command: The subcommand.
        description: What ``--help`` begins with.
    """

    def __init__(self, command: str, description: str | None) -> None:
        self.command = command
        super().__init__(
            f"{program()} {command}".rstrip(),
            description=description,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def error(self, message: str) -> NoReturn:
        """Raise what the command line prints."""
        name = f"{self.command} " if self.command else ""
        prefix = f"{self.command}: " if self.command else ""
        raise InputError(f"{prefix}{message}; {name}--help lists what there is.")

    def add_file(self, kind: str, shipped: str, of_set: str) -> None:
        """Add the options of a command that reads a file of several runs.

        Args:
            kind: What the runs make up: a ``sweep`` or a ``sequence``.
            shipped: Name of a shipped file.
            of_set: What ``--set`` does.
        """
        self.add_argument(
            "--config",
            required=True,
            help=f"a {kind}'s file, or the name of a shipped one, as {shipped}",
        )
        self.add_argument("--output_dir", help="folder of the runs; takes the file's place")
        self.add_settings("--set", "key=value", of_set)

    def add_settings(self, option: str, form: str, text: str) -> None:
        """Add an option that takes settings, and may be given more than once.

        Args:
            option: Its name.
            form: What a setting looks like.
            text: What it does.
        """
        self.add_argument(option, action="extend", nargs="+", default=[], metavar=form, help=text)
