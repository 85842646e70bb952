"""Values that are refused by kind first, then by range: numbers, and choices of a few."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Collection, Mapping
from numbers import Real
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from etw_lightning.schema import InputError

__all__ = ["RANGES", "check_arguments", "check_name", "check_number", "check_whole"]

#: What a restricted number must be.
RANGES = {
    "PositiveFloat": "a number > 0",
    "NonNegativeFloat": "a number >= 0",
    "ClosedUnitInterval": "a number from 0 to 1",
    "TopShare": "a number in (0, 1]",
    "PositiveInt": "a whole number > 0",
    "NonNegativeInt": "a whole number >= 0",
}


def check_name(key: str, name: Any, known: Collection[Any]) -> None:
    """Check that a name is one of the known ones.

    Args:
        key: Configuration key as the user types it.
        name: What the user gave.
        known: What is allowed, in the order the message lists it.

    Raises:
        InputError: If it isn't; the message suggests the nearest name.

    Example:
        >>> check_name("data.forget_split", "forget11", ["forget01", "forget10"])
        Traceback (most recent call last):
        ...
        etw_lightning.schema.InputError: data.forget_split must be forget01 or forget10; \
got 'forget11'. Did you mean 'forget10'?
    """
    if name in known:
        return
    *most, last = map(str, known)
    allowed = f"{', '.join(most)} or {last}" if most else last
    # The last of equally near names: a typo in forgetNN is nearest to the usual forget10.
    near = difflib.get_close_matches(str(name), list(map(str, known))[::-1], n=1)
    hint = f" Did you mean {near[0]!r}?" if near and isinstance(name, str) else ""
    raise InputError(f"{key} must be {allowed}; got {name!r}.{hint}")


def check_number(key: str, value: Any, *, zero: bool = False) -> None:
    """Refuse what is no finite number above 0.

    Args:
        key: What the message names.
        value: What was given.
        zero: Whether 0 is allowed.

    Raises:
        InputError: If the value is no number, negative, infinite, or 0 where that is not allowed.

    Example:
        >>> check_number("model.forget.beta", 0.1)
        >>> check_number("model.forget.beta", 0)
        Traceback (most recent call last):
            ...
        etw_lightning.schema.InputError: model.forget.beta must be a finite number > 0; got 0.
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not (0 < value < math.inf or (zero and value == 0)):
        bound = ">= 0" if zero else "> 0"
        raise InputError(f"{key} must be a finite number {bound}; got {value!r}.")


def check_whole(key: str, value: Any, most: int | None = None, least: int = 0) -> None:
    """Refuse what is no whole number in a range.

    Args:
        key: What the message names.
        value: What was given.
        most: Largest allowed one; None for any.
        least: Smallest allowed one.

    Raises:
        InputError: If the value is no whole number, too small or too large.

    Example:
        >>> check_whole("model.forget.layer", 7)
        >>> check_whole("model.forget.layer", 1.5)
        Traceback (most recent call last):
            ...
        etw_lightning.schema.InputError: model.forget.layer must be a whole number >= 0; got 1.5.
    """
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    if not is_whole or value < least or (most is not None and value > most):
        allowed = f">= {least}" if most is None else f"from {least} to {most}"
        raise InputError(f"{key} must be a whole number {allowed}; got {value!r}.")


def check_arguments(prefix: str, function: Callable[..., Any], given: Mapping[str, Any]) -> None:
    """Refuse values that are none of an argument's closed choices, or no number in its range.

    The command line has checked them; from Python they come as they are.

    Args:
        prefix: What keys begin with in messages.
        function: Annotates its arguments.
        given: Its arguments by name; others are passed over.

    Raises:
        InputError: Names the key, what it was and what is allowed.
    """
    for name, hint in get_type_hints(function).items():
        kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        kind = next((one for one in kinds if one is not NoneType), None)
        is_null = given.get(name) is None and (NoneType in kinds or name not in given)
        if is_null or kind is None or len({*kinds} - {NoneType}) > 1:
            continue
        key, value = f"{prefix}.{name}", given[name]
        nullable = NoneType in kinds
        if get_origin(kind) is Literal:
            check_name(key, value, [*get_args(kind), *["null"] * nullable])
        elif getattr(kind, "__name__", "") in RANGES and not _is_of(kind, value):
            allowed = RANGES[kind.__name__] + " or null" * nullable
            raise InputError(f"{key} must be {allowed}; got {value!r}.")


def _is_of(kind: Any, value: Any) -> bool:
    """Tell whether a value is a number of a restricted kind."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return False
    try:
        kind(value)
    except (ValueError, TypeError):
        return False
    return True
