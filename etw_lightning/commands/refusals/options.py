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
