"""A hash of our own code, where what is kept depends on it."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

import etw_lightning

__all__ = ["code_hash"]


@functools.cache
def code_hash(modules: tuple[str, ...]) -> str:
    """Hash the text of some modules.

    Args:
        modules: Names below the package, ``kernels`` or ``metrics.tofu``.

    Returns:
        64 hexadecimal digits.

    Raises:
        FileNotFoundError: If one of them is not there: a module that has moved must not drop out
            in silence.
    """
    package = Path(etw_lightning.__file__).parent
    files = [package.joinpath(*name.split(".")).with_suffix(".py") for name in modules]
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()
