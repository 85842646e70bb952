"""Parts of a method that show their numbers."""

# No postponed annotations: the parser would look their names up in the modules of subclasses.

from dataclasses import fields, is_dataclass
from typing import ClassVar

__all__ = ["Shown"]


class Shown:
    """Shows class and attributes, as a dataclass does.

    A run that goes on from a checkpoint compares its parts with those of the run that wrote it by
    what they show: an address in memory would make each part another one. An argument that came
    later is shown where it is not its default, so that runs of before it can go on.

    Example:
        >>> class Mine(Shown):
        ...     def __init__(self, beta: float) -> None:
        ...         self.beta = beta
        >>> Mine(0.5)
        Mine(beta=0.5)
    """

    #: Arguments that came after the class; their defaults are what it did before.
    came_later: ClassVar[tuple[str, ...]] = ()

    def __repr__(self) -> str:
        # What else a dataclass's instance holds, as one that is made late does, is no number of it.
        names = [one.name for one in fields(self)] if is_dataclass(self) else list(vars(self))
        shown = {
            name: value
            for name in names
            if (value := getattr(self, name)) != getattr(type(self), name, None)
            or name not in self.came_later
        }
        numbers = ", ".join(f"{name}={value!r}" for name, value in shown.items())
        return f"{type(self).__name__}({numbers})"
