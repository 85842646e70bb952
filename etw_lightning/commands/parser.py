"""The parser of the command line, whose errors are one line."""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

from lightning.pytorch.cli import LightningArgumentParser

from etw_lightning import callbacks, forget, retain, weighting
from etw_lightning.commands.refusals.class_changes import check_order, forget_arguments
from etw_lightning.commands.refusals.files_together import check_together
from etw_lightning.commands.refusals.messages import LAMBDA, one_line, with_lambda
from etw_lightning.commands.refusals.own_classes import Making, check_classes
from etw_lightning.files.config_files import resolve_words
from etw_lightning.files.moved_classes import check_current
from etw_lightning.files.yaml_checks import scalars
from etw_lightning.notices import for_screen, program
from etw_lightning.schema import Conventions
from etw_lightning.training.datamodule import UnlearningDataModule
from etw_lightning.training.strategies import is_first_process

__all__ = ["CLASSES", "Parser", "data_of", "known_keys"]

_DESCRIPTION = (
    "Machine unlearning of language models: train one to forget some rows and keep others (fit), "
    "score one (evaluate), verify a run and predict its memory (check), show the weights of a row "
    "(weights). Three more commands: 'sweep plan|run|report --config FILE' trains with several "
    "settings and picks one; 'export "
    "--checkpoint PATH' makes a model's folder of a checkpoint; 'explain NAME' says what a metric "
    "or a number of results.json is."
)


def _classes(module: ModuleType, parent: type) -> dict[str, type]:
    """Return a module's public classes of one kind, without the kind itself."""
    found = {name: getattr(module, name) for name in module.__all__ if name != parent.__name__}
    return {name: item for name, item in found.items() if isinstance(item, type)}


#: What a message says may stand for a class.
CLASSES = {
    "model.weighting": _classes(weighting, weighting.TokenWeighting),
    "model.forget": _classes(forget, forget.ForgetObjective),
    "model.retain": _classes(retain, retain.RetainObjective),
    "trainer.callbacks": _classes(callbacks, callbacks.EvaluationCallback),
}


class Parser(LightningArgumentParser):
    """A parser whose errors are one line that names the key; exit status 2."""

    #: Words of the command line, for messages.
    typed: ClassVar[Sequence[str]] = ()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Make a parser; what lists the commands says what the program is."""
        kwargs.setdefault("prog", program())
        kwargs.setdefault("description", _DESCRIPTION)
        super().__init__(*args, **kwargs)
        forget_arguments()

    def parse_args(self, args: Any = None, *rest: Any, **kwargs: Any) -> Any:
        """Parse; configurations may be given by name, and ``--model.forget_weight`` as lambda.

        ``--model.lambda auto`` is a weight of 1 that counts in gradients.

        Raises:
            InputError: If a file is absent, holds a key twice, names a class as it was called, or
                two files exclude each other.
        """
        given = list(sys.argv[1:] if args is None else args)
        given = [re.sub(rf"^--{LAMBDA[0]}(?==|$)", f"--{LAMBDA[1]}", word) for word in given]
        return super().parse_args(_with_files(_with_auto(given)), *rest, **kwargs)

    def instantiate_classes(self, cfg: Any, **kwargs: Any) -> Any:
        """Make what settings name; what a class of the user's own raises is one line.

        Raises:
            InputError: Names its key and path.
        """
        making = Making(cfg)
        try:
            return super().instantiate_classes(
                cfg, instantiators=[(making, object, True)], **kwargs
            )
        except ValueError:
            if making.refusal is None:
                raise
        # What a key takes besides a class is tried after it, and the reasons are lost on the way.
        raise making.refusal

    def error(self, message: str, ex: Exception | None = None) -> Any:
        """Print one line and exit; a parser inside another one raises what the outer one prints."""
        if not self.exit_on_error:
            return super().error(message, ex)
        line = one_line(message, [LAMBDA[0], *known_keys(self)], CLASSES, self.typed)
        line = with_lambda(line, self.typed)
        sys.stderr.write(for_screen(f"error: {line}", is_error=True) + "\n")
        self.exit(2)


def _with_auto(words: list[str]) -> list[str]:
    """Put what a lambda of ``auto`` stands for in its place.

    Example:
        >>> _with_auto(["fit", "--model.forget_weight", "auto"])
        ['fit', '--model.forget_weight=1.0', '--model.forget_unit=gradient']
    """
    flag = f"--{LAMBDA[1]}"
    stands_for = [f"{flag}=1.0", "--model.forget_unit=gradient"]
    found: list[str] = []
    for word in words:
        if word == f"{flag}=auto":
            found += stands_for
        elif word == "auto" and found and found[-1] == flag:
            found[-1:] = stands_for
        else:
            found.append(word)
    return found


def _with_files(words: list[str]) -> list[str]:
    """Put paths in place of the names of configurations, and look through the files."""
    check_current(((word, 0) for word in words), "command line")
    check_order(words, CLASSES)
    resolved, found = resolve_words(words)
    check_together(one.path for one in found)
    check_classes(words, [one.path for one in found], CLASSES)
    for one in found:
        status = one.path.stat()
        _look_through(one.path, (status.st_mtime_ns, status.st_size))
        if one.note and is_first_process():
            sys.stderr.write(f"note: {one.note}\n")
    return resolved


@cache
def _look_through(path: Path, _state: tuple[int, int]) -> None:
    """Refuse a file's keys that stand twice and former names, once for each state of the file."""
    check_current(scalars(path), f"config {str(path)!r}")


def known_keys(parser: Any) -> list[str]:
    """Return the keys of a parser, of its subcommands and of the classes that may be named."""
    keys = [
        f"{key}.{name}"
        for key, classes in CLASSES.items()
        for kind in classes.values()
        for name in inspect.signature(kind).parameters
    ]
    keys += [f"conventions.{field.name}" for field in fields(Conventions)]
    for action in parser._actions:
        options = [option.lstrip("-").rstrip("+") for option in action.option_strings]
        keys += [option for option in options if not option.endswith(".help")]
        for child in (getattr(action, "_name_parser_map", None) or {}).values():
            keys += known_keys(child)
    return keys


def data_of(settings: Mapping[str, Any]) -> UnlearningDataModule:
    """Return what reads rows, made from a run's settings of them.

    Args:
        settings: What ``data`` holds.
    """
    inner: Any = Parser(exit_on_error=False)
    inner.add_argument("--config", action="config")
    inner.add_class_arguments(UnlearningDataModule, "data")
    config = inner.parse_args(["--config", json.dumps({"data": settings}, default=str)])
    made: UnlearningDataModule = inner.instantiate(config).data
    return made
