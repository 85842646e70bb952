"""Classes of the user's own, named by their paths."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Any

from etw_lightning.schema import InputError

__all__ = ["class_at", "is_class_path", "look_here", "path_of"]


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
    module_name, _, name = path.rpartition(".")
    look_here()
    try:
        module = import_module(module_name)
    except (ImportError, SyntaxError) as error:
        missing = getattr(error, "name", None) or ""
        if not missing or not f"{module_name}.".startswith(f"{missing}."):
            # The module is there; what it says at its top is wrong, or asks for what is not.
            raise InputError(
                f"{key} {path!r}: module {module_name!r} can't be imported: {error}."
            ) from error
        raise InputError(
            f"{key} {path!r}: there is no module {missing!r}; put {missing}.py into the "
            "current folder, or install it."
        ) from error
    found = getattr(module, name, None)
    wanted = path_of(base)
    if found is None:
        raise InputError(f"{key} {path!r}: module {module_name!r} has no {name!r}.")
    if not (isinstance(found, type) and issubclass(found, base)) or found is base:
        raise InputError(f"{key} {path!r} must be a subclass of {wanted}; got {found!r:.80}.")
    return found
