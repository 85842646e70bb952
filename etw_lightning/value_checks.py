"""Values that are refused by kind first, then by range: numbers, and choices of a few."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from etw_lightning.schema import InputError

__all__ = ["check_choice", "check_number", "check_whole"]


def check_choice(key: str, value: Any, allowed: Sequence[Any]) -> None:
    """Refuse what is none of a few values.

    Args:
        key: What the message names.
        value: What was given.
        allowed: The values there are.

    Raises:
        InputError: If the value is another.

    Example:
        >>> check_choice("collapse.action", "go", ("stop", "warn"))
        Traceback (most recent call last):
            ...
        etw_lightning.schema.InputError: collapse.action must be stop or warn; got 'go'.
    """
    if value not in allowed:
        *some, last = map(str, allowed)
        listed = f"{', '.join(some)} or {last}" if some else last
        raise InputError(f"{key} must be {listed}; got {value!r}.")


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


def check_whole(key: str, value: Any, most: int | None = None) -> None:
    """Refuse what is no whole number from 0.

    Args:
        key: What the message names.
        value: What was given.
        most: Largest allowed one; None for any.

    Raises:
        InputError: If the value is no whole number, negative, or too large.

    Example:
        >>> check_whole("model.forget.layer", 7)
        >>> check_whole("model.forget.layer", 1.5)
        Traceback (most recent call last):
            ...
        etw_lightning.schema.InputError: model.forget.layer must be a whole number >= 0; got 1.5.
    """
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    if not is_whole or value < 0 or (most is not None and value > most):
        allowed = ">= 0" if most is None else f"from 0 to {most}"
        raise InputError(f"{key} must be a whole number {allowed}; got {value!r}.")
