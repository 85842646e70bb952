"""In what the weights that are stored and those of a model differ, and the error that says so."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from etw_lightning.schema import InputError

__all__ = ["Misfit", "Shape", "refuse_misfit", "shapes_of"]

#: Weights that an error names; the others are counted.
_NAMED = 3

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Misfit:
    """In what stored weights and a model differ; false if in nothing.

    Args:
        missing: Weights of the model that are not stored.
        unexpected: Stored weights that the model has no place for.
        reshaped: Weights of another shape: name, shape as stored, shape in the model.
    """

    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    reshaped: tuple[tuple[str, Shape, Shape], ...] = ()

    @classmethod
    def of_report(cls, report: Mapping[str, Any]) -> Misfit:
        """Return what ``from_pretrained`` reports with ``output_loading_info``."""
        reshaped = ((name, tuple(a), tuple(b)) for name, a, b in report["mismatched_keys"])
        return cls(
            tuple(sorted(report["missing_keys"])),
            tuple(sorted(report["unexpected_keys"])),
            tuple(sorted(reshaped)),
        )

    @classmethod
    def between(cls, stored: Mapping[str, Shape], wanted: Mapping[str, Shape]) -> Misfit:
        """Compare by names and shapes alone.

        Example:
            >>> Misfit.between({"a": (2,), "b": (3,)}, {"b": (4,), "c": (1,)})
            Misfit(missing=('c',), unexpected=('a',), reshaped=(('b', (3,), (4,)),))
        """
        shared = sorted(stored.keys() & wanted.keys())
        return cls(
            tuple(sorted(wanted.keys() - stored.keys())),
            tuple(sorted(stored.keys() - wanted.keys())),
            tuple((n, stored[n], wanted[n]) for n in shared if stored[n] != wanted[n]),
        )

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.reshaped)

    def __str__(self) -> str:
        shapes = [f"{name} {stored} for {wanted}" for name, stored, wanted in self.reshaped]
        parts = (
            ("missing", self.missing),
            ("unknown to the model", self.unexpected),
            ("of another shape", shapes),
        )
        return "; ".join(f"{_counted(names)} {what}" for what, names in parts if names)


def _counted(names: Iterable[str]) -> str:
    """Return a count and the first few names.

    Example:
        >>> _counted(["a"]), _counted("abcde")
        ('1 weight (a) is', '5 weights (a, b, c, ...) are')
    """
    names = list(names)
    shown = ", ".join([*names[:_NAMED], *["..."] * (len(names) > _NAMED)])
    return f"{len(names)} weight{'s' * (len(names) > 1)} ({shown}) {'are' if names[1:] else 'is'}"


def refuse_misfit(misfit: Misfit, given: str, key: str, way_out: str = "") -> None:
    """Refuse weights that are not the model's.

    Args:
        misfit: What differs.
        given: The model, as the user gave it.
        key: Configuration key it was given under.
        way_out: What may be done about it.

    Raises:
        InputError: If anything differs; names the weights.
    """
    if misfit:
        way_out = way_out or "give a folder whose config.json and weights were saved together"
        raise InputError(
            f"{key} {given!r} does not hold the weights of the model that its configuration "
            f"describes: {misfit}. Nothing is made up or left out: {way_out}."
        )


def shapes_of(weights: Mapping[str, Any]) -> dict[str, Shape]:
    """Return the shape of each tensor by its name."""
    return {name: tuple(weight.shape) for name, weight in weights.items()}
