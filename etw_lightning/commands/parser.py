"""The parser of the command line, whose errors are one line."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Sequence
from dataclasses import fields
from types import ModuleType
from typing import Any, ClassVar

from lightning.pytorch.cli import LightningArgumentParser

from etw_lightning import callbacks, forget, retain, weighting
from etw_lightning.commands.messages import one_line
from etw_lightning.schema import Conventions

__all__ = ["Parser"]

_DESCRIPTION = (
    "Machine unlearning of language models: train one to forget some rows and keep others (fit), "
    "score one (evaluate), verify a run and predict its memory (check). Three more commands: "
    "'sweep plan|run|report --config FILE' trains with several settings and picks one; 'export "
    "--checkpoint PATH' makes a model's folder of a checkpoint; 'explain NAME' says what a metric "
    "or a number of results.json is."
)
#: The paper calls the weight of the forget term lambda, which is no name in Python.
_LAMBDA = ("--model.lambda", "--model.forget_weight")


def _classes(module: ModuleType, parent: type) -> dict[str, type]:
    """Return a module's public classes of one kind, without the kind itself."""
    found = {name: getattr(module, name) for name in module.__all__ if name != parent.__name__}
    return {name: item for name, item in found.items() if isinstance(item, type)}


#: What a message says may stand for a class.
_CLASSES = {
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
        kwargs.setdefault("prog", "python -m etw_lightning")
        kwargs.setdefault("description", _DESCRIPTION)
        super().__init__(*args, **kwargs)

    def parse_args(self, args: Any = None, *rest: Any, **kwargs: Any) -> Any:
        """Parse; ``--model.lambda`` is read as ``--model.forget_weight``."""
        given = list(sys.argv[1:] if args is None else args)
        given = [re.sub(rf"^{_LAMBDA[0]}(?==|$)", _LAMBDA[1], word) for word in given]
        return super().parse_args(given, *rest, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> Any:
        """Print one line and exit; a parser inside another one raises what the outer one prints."""
        if not self.exit_on_error:
            return super().error(message, ex)
        short, plain = (name.lstrip("-") for name in _LAMBDA)
        line = one_line(message, [short, *_known_keys(self)], _CLASSES, self.typed)
        if any(word.startswith("--model.la") for word in self.typed):  # mistyped too
            line = line.replace(plain, short)
        else:  # a file takes the plain name only
            line = line.replace(f"mean {short!r}", f"mean {plain!r}")
        sys.stderr.write(f"error: {line}\n")
        self.exit(2)


def _known_keys(parser: Any) -> list[str]:
    """Return the keys of a parser, of its subcommands and of the classes that may be named."""
    keys = [
        f"{key}.{name}"
        for key, classes in _CLASSES.items()
        for kind in classes.values()
        for name in inspect.signature(kind).parameters
    ]
    keys += [f"conventions.{field.name}" for field in fields(Conventions)]
    for action in parser._actions:
        options = [option.lstrip("-") for option in action.option_strings]
        keys += [option for option in options if not option.endswith(".help")]
        for child in (getattr(action, "_name_parser_map", None) or {}).values():
            keys += _known_keys(child)
    return keys
