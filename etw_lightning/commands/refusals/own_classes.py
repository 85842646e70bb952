"""Classes of the user's own: what is wrong with their paths, and what they raise when made.

The parser tries a path as everything that a key takes, and keeps the reasons of each to itself: so
paths are looked at before.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace
from lightning.pytorch.callbacks import Callback

from etw_lightning.commands.refusals.refused_values import Choices
from etw_lightning.files.class_paths import build, check_class, is_class_path, path_of
from etw_lightning.files.yaml_checks import composed, keyed
from etw_lightning.forget import ForgetObjective
from etw_lightning.retain import RetainObjective
from etw_lightning.schema import InputError
from etw_lightning.weighting import TokenWeighting

__all__ = ["Making", "check_classes"]

#: Keys that take classes, with what these must be.
_KINDS: Mapping[str, type] = {
    "model.weighting": TokenWeighting,
    "model.forget": ForgetObjective,
    "model.retain": RetainObjective,
    "trainer.callbacks": Callback,
    "trainer.logger": object,
    "trainer.plugins": object,
    "trainer.profiler": object,
    "trainer.strategy": object,
}
_OURS = "etw_lightning."


def check_classes(words: Sequence[str], files: Iterable[Path], choices: Choices) -> None:
    """Refuse a path at which there is no class of the kind that its key takes.

    A path of ours is left to the parser, which lists what there is.

    Args:
        words: The command line.
        files: Its configurations.
        choices: Our classes that a key takes.

    Raises:
        InputError: Names the key, the path and what is wrong with it.
    """
    for path in files:
        status = path.stat()
        _check(_named(path, (status.st_mtime_ns, status.st_size)), choices)
    _check(_typed(words), choices)


def _check(settings: Iterable[tuple[str, str]], choices: Choices) -> None:
    for key, value in settings:
        name = key.removesuffix(".class_path")
        around = next((one for one in _KINDS if f"{name}.".startswith(f"{one}.")), None)
        if around is None or not is_class_path(value) or value.startswith(_OURS):
            continue
        is_of_kind = name == around or _is_part(name, choices.get(around, {}))
        if is_of_kind or name != key:
            check_class(value, _KINDS[around] if is_of_kind else object, name)


def _is_part(name: str, classes: Mapping[str, type]) -> bool:
    """Tell whether a key is an argument for which one of the classes takes a weighting."""
    last = name.rpartition(".")[2]
    taken = (inspect.signature(kind).parameters.get(last) for kind in classes.values())
    return any(one is not None and TokenWeighting.__name__ in str(one.annotation) for one in taken)


@cache
def _named(path: Path, _state: tuple[int, int]) -> tuple[tuple[str, str], ...]:
    """Return a file's settings, once for each state of the file."""
    return tuple(keyed(composed(path)))


def _typed(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield the settings of a command line that stand for classes or lie below."""
    for word, following in zip(words, (*words[1:], ""), strict=False):
        option, is_pair, value = word.partition("=")
        key = option.removeprefix("--").rstrip("+")
        if not option.startswith("--"):
            continue
        try:
            yield from keyed(yaml.compose(value if is_pair else following), key)
        except yaml.YAMLError:
            continue


class Making:
    """Makes what settings name by class paths; what a class that is not ours raises is one line.

    Args:
        settings: Of the command.
    """

    def __init__(self, settings: Namespace) -> None:
        held = settings.as_dict()
        self.refusal: InputError | None = None
        self.named = {
            path: key for key, path in _paths(held.get(str(held.get("subcommand")), held), "")
        }

    def __call__(self, kind: type, /, *args: Any, **kwargs: Any) -> Any:
        """Return an object of a class.

        Raises:
            InputError: If the class is named and not ours, and raises anything.
        """
        path = next((path for path in self.named if _is_at(kind, path)), None)
        if path is None or path.startswith(_OURS):
            return kind(*args, **kwargs)
        try:
            return build(kind, path, self.named[path], *args, **kwargs)
        except InputError as error:
            self.refusal = error
            raise


def _paths(settings: Any, key: str) -> Iterator[tuple[str, str]]:
    """Yield the keys that hold a class path, and the path."""
    if isinstance(settings, list):
        for one in settings:
            yield from _paths(one, key)
    elif isinstance(settings, dict):
        path = settings.get("class_path")
        if isinstance(path, str):
            yield key, path
        for name, value in settings.items():
            inner = key if path is not None and name == "init_args" else f"{key}.{name}".lstrip(".")
            yield from _paths(value, inner)


def _is_at(kind: type, path: str) -> bool:
    """Tell whether a path is that of a class, by its own module or by a package that has it too."""
    package, _, name = path.rpartition(".")
    return path == path_of(kind) or getattr(sys.modules.get(package), name, None) is kind
