"""What the words of a command mean, read as ``fit`` reads them; nothing is run."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser

from etw_lightning.commands.cli import SETTINGS, UnlearningCLI
from etw_lightning.commands.parser import Parser
from etw_lightning.schema import InputError

__all__ = ["RunReader"]


class RunReader(UnlearningCLI):
    """Reads what the words of a command mean, as ``fit`` does, and runs nothing."""

    def __init__(self) -> None:
        super().__init__(args=[], **SETTINGS)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Leave everything to ``read``; no random generator is seeded."""
        self.config = Namespace(subcommand=None, seed_everything=False)

    def instantiate_classes(self) -> None:
        """Build nothing."""

    def read(self, words: Sequence[str]) -> dict[str, Any]:
        """Return all settings of a run.

        Args:
            words: The command, from ``fit`` or ``evaluate`` on.

        Raises:
            InputError: If the parser refuses them.
        """
        printed = io.StringIO()
        Parser.typed = list(words)
        try:
            with contextlib.redirect_stderr(printed):
                # Through the parser of all commands each setting would be parsed twice.
                config = self._parser(Parser.typed[0]).parse_args(Parser.typed[1:])
        except UnicodeDecodeError as error:
            raise InputError(f"Problems parsing config: {error}") from error
        except SystemExit as error:
            raise InputError(printed.getvalue().strip().removeprefix("error: ")) from error
        self._settle(config)
        return config.as_dict()
