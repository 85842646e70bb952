"""Parts of a method that show their numbers."""

from __future__ import annotations

__all__ = ["Shown"]


class Shown:
    """Shows class and attributes, as a dataclass does.

    A run that goes on from a checkpoint compares its parts with those of the run that wrote it by
    what they show: an address in memory would make each part another one.

    Example:
        >>> class Mine(Shown):
        ...     def __init__(self, beta: float) -> None:
        ...         self.beta = beta
        >>> Mine(0.5)
        Mine(beta=0.5)
    """

    def __repr__(self) -> str:
        numbers = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__name__}({numbers})"
