"""Classes of the user's own, named by their paths."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from etw_lightning.schema import InputError

__all__ = [
    "build",
    "check_class",
    "class_at",
    "is_class_path",
    "look_here",
    "path_of",
    "telling",
]


def is_class_path(name: str) -> bool:
    """Tell whether a name can be the path of a class, such as ``my_parts.Diary``."""
    return "." in name and all(part.isidentifier() for part in name.split("."))


def path_of(kind: type) -> str:
    """Return the path of a class."""
    return f"{kind.__module__}.{kind.__qualname__}"


def look_here() -> None:
    """Have modules of the current folder found, as ``python -m`` does and a console script not."""
    here = os.getcwd()
    if not {"", here} & set(sys.path):
        # Last: what is installed is not hidden by a file that happens to have its name.
        sys.path.append(here)


def class_at(path: str, base: type, key: str) -> Any:
    """Return the class at a path; modules in the current folder are found too.

    Args:
        path: ``module.Class``.
        base: What it must be a subclass of.
        key: Configuration key that errors name.

    Raises:
        InputError: If there is no such module or class, or it is of another kind.

    Example:
        >>> class_at("etw_lightning.schema.InputError", ValueError, "some.key").__name__
        'InputError'
    """
    found = _found(path, key)
    if not (isinstance(found, type) and issubclass(found, base)) or found is base:
        raise InputError(_other_kind(path, found, base, key))
    return found


def check_class(path: str, base: type, key: str) -> None:
    """Refuse a path at which there is nothing of a kind; a function may stand for a class.

    Args:
        path: ``module.Class``.
        base: What a class must be a subclass of; ``object`` takes anything.
        key: Configuration key that errors name.

    Raises:
        InputError: If there is no such module or class, the module can't be imported, or what is
            there is of another kind.
    """
    found = _found(path, key)
    is_of_kind = issubclass(found, base) if isinstance(found, type) else callable(found)
    if base is not object and not is_of_kind:
        raise InputError(_other_kind(path, found, base, key))


def _other_kind(path: str, found: Any, base: type, key: str) -> str:
    wanted, own = _shortest_path(base), path.rpartition(".")[2]
    if found is base:
        what = "that class itself, which does nothing"
    elif isinstance(found, type):
        bases = ", ".join(_shortest_path(one) for one in found.__bases__ if one is not object)
        what = f"a class of {bases or 'no other'}"
    else:
        what = "a function" if callable(found) else f"{found!r:.60}"
    return (
        f"{key} {path!r} must be a subclass of {wanted}; got {what}. Write class "
        f"{own if found is not base else 'Mine'}({base.__name__}), with its methods."
    )


def _shortest_path(kind: type) -> str:
    """Return the path of a class by its package, if that has it too."""
    package = kind.__module__.rpartition(".")[0]
    is_there = getattr(sys.modules.get(package), kind.__name__, None) is kind
    return f"{package}.{kind.__name__}" if is_there else path_of(kind)


def _found(path: str, key: str) -> Any:
    """Return what is at a path."""
    module_name, _, name = path.rpartition(".")
    look_here()
    module = _module(module_name, path, key)
    found = getattr(module, name, None)
    if found is None:
        raise InputError(f"{key} {path!r}: module {module_name!r} has no {name!r}.")
    return found


def _module(name: str, path: str, key: str) -> ModuleType:
    """Import a module; whatever is raised in it is told with its place."""
    try:
        return import_module(name)
    except (ImportError, SyntaxError) as error:
        missing = getattr(error, "name", None) or ""
        if not missing or not f"{name}.".startswith(f"{missing}."):
            # The module is there; what it says at its top is wrong, or asks for what is not.
            raise InputError(f"{key} {path!r}: module {name!r} can't be imported: {error}.") from (
                error
            )
        file = f"{missing.replace('.', '/')}.py"
        raise InputError(
            f"{key} {path!r}: there is no module {missing!r}; put {file} into the current folder, "
            "or install it."
        ) from error
    except Exception as error:  # a module of the user's may raise anything
        raise InputError(
            f"{key} {path!r}: module {name!r} can't be imported: {_with_place(error, '')}."
        ) from error


def build(kind: type, path: str, key: str, /, *args: Any, **kwargs: Any) -> Any:
    """Return an object of a class of the user's own.

    Args:
        kind: The class.
        path: Its path as it was typed.
        key: Configuration key that errors name.
        args: Its arguments.
        kwargs: Its arguments by name.

    Raises:
        InputError: If its ``__init__`` raises anything; tells what and where.
    """
    with telling(kind, f"{key} {path!r} can't be made"):
        return kind(*args, **kwargs)


@contextmanager
def telling(kind: type, what: str) -> Iterator[None]:
    """Tell in one line what a class of the user's own raises meanwhile, and where.

    Args:
        kind: The class.
        what: What the line begins with.

    Raises:
        InputError: If anything is raised.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # a class of the user's may raise anything
        file = getattr(sys.modules.get(kind.__module__), "__file__", None) or ""
        raise InputError(f"{what}: {_with_place(error, file)}.") from error


def _with_place(error: Exception, file: str) -> str:
    """Return what was raised and where: in a file if the error has come through it, or behind it.

    The place of a call of ours is none of the user's and left out.
    """
    said = " ".join(f"{type(error).__name__}: {error}".split()).rstrip(".:")
    frames = [one for one in traceback.extract_tb(error.__traceback__) if one.filename != __file__]
    frames = [one for one in frames if one.filename == file] or frames
    return (
        f"{said} ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else said
    )
