"""Arguments of the functions: unknown ones are told with what is near, errors in their words."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial, wraps
from typing import Any, ParamSpec, TypeVar

from lightning.pytorch import Trainer

from etw_lightning.schema import InputError
from etw_lightning.training.datamodule import UnlearningDataModule
from etw_lightning.training.module import UnlearningModule

__all__ = ["check_inner", "check_keywords", "in_own_words", "said_in_words_of"]

P = ParamSpec("P")
R = TypeVar("R")

#: Keys of the command line whose values are given as an argument of another name.
_NAMED = {
    "model.pretrained": "model",
    "data.benchmark": "benchmark",
    "data.forget_split": "forget",
    "data.retain_split": "retain",
    "data.holdout_split": "holdout",
    "data.eval_batch_size": "batch_size",
}


def _names(function: Any) -> list[str]:
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    found = inspect.signature(function).parameters.values()
    return [one.name for one in found if one.kind in kinds and one.name != "self"]


_TAKEN = {"model": _names(UnlearningModule), "data": _names(UnlearningDataModule)}
_INNER = {"data": _TAKEN["data"], "trainer": _names(Trainer)}


def check_keywords(function: Callable[..., Any], given: Iterable[str], part: str) -> None:
    """Refuse keywords that neither a function nor the part it hands them on to takes.

    Args:
        function: What was called.
        given: The keywords that are handed on.
        part: ``model`` or ``data``.

    Raises:
        TypeError: As Python does; names the function and what is near.
    """
    for name in given:
        if name not in _TAKEN[part]:
            hint = _near(name, [*_names(function), *_TAKEN[part]])
            raise TypeError(
                f"{function.__name__}() got an unexpected keyword argument {name!r}.{hint}"
            )


def check_inner(function: Callable[..., Any], **given: Mapping[str, Any] | None) -> None:
    """Refuse keys of ``data`` and ``trainer`` that there are not.

    Raises:
        InputError: Names the function and what is near.
    """
    for argument, settings in given.items():
        for name in settings or ():
            if name not in _INNER[argument]:
                hint = _near(name, _INNER[argument])
                raise InputError(f"{function.__name__}: {argument} takes no {name!r}.{hint}")


def _near(name: str, known: Collection[str]) -> str:
    found = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {found[0]!r}?" if found else ""


def in_own_words(function: Callable[P, R]) -> Callable[P, R]:
    """Have a function's errors name its arguments, not options of the command line."""

    @wraps(function)
    def call(*given: P.args, **named: P.kwargs) -> R:
        try:
            return function(*given, **named)
        except InputError as error:
            error.args = (said_in_words_of(function, str(error)),)
            raise

    return call


def said_in_words_of(function: Callable[..., Any], text: str) -> str:
    """Return a text with the arguments of a function in place of options of the command line.

    Example:
        >>> from etw_lightning import evaluate
        >>> said_in_words_of(evaluate, "needs data.holdout_split or data.retain_model; give it")
        'needs holdout or retain_model; give it'
        >>> said_in_words_of(evaluate, "model.safetensors is missing: --model.pretrained DIR")
        'model.safetensors is missing: model DIR'
    """
    text = text.replace("only evaluate --metrics computes it", "only computed where metrics has it")
    taken = _names(function)
    text = re.sub(r"(?:--)?\b(model|data)\.(\w+)", partial(_argument, taken), text)
    text = re.sub(r"--(?=(?:metrics|data|trainer)\b)", "", text)
    return re.sub(r"\bnull\b", "None", text)


def _argument(taken: Collection[str], found: re.Match[str]) -> str:
    """Return what a key of the command line is for a function."""
    part, name = found[1], found[2]
    named = _NAMED.get(f"{part}.{name}")
    if named in taken:
        return str(named)
    if name not in _TAKEN[part]:
        return found[0]
    # What is handed on in a mapping is named with it.
    return f"data[{name!r}]" if part == "data" and {"data", name} & {*taken} == {"data"} else name
