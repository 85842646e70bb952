"""Objects as the defaults of arguments."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from jsonargparse import lazy_instance

__all__ = ["default_of"]

_T = TypeVar("_T")


def default_of(kind: type[_T]) -> _T:
    """Return what stands for an object of a class, which is made once it is used.

    The library looks through every module for each caller on the stack, and imports stand on one
    another: that took half a second of each start. The stack of a thread is its own.

    Args:
        kind: The class, all of whose arguments have defaults.
    """
    with ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(lambda: lazy_instance(kind)).result()
