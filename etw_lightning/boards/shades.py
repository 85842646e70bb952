"""The colour of a weight: one scale for terminals, notebooks, pictures and pages."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["LARGEST", "hex_shade", "shade", "shares"]

#: The colour of the largest weight; white is none.
LARGEST = (230, 90, 60)


def shares(values: Sequence[float]) -> list[float]:
    """Return each value over the largest of them, 0 to 1; of values that are all 0, zeros.

    Example:
        >>> shares([0.0, 1.0, 2.0]), shares([0.0])
        ([0.0, 0.5, 1.0], [0.0])
    """
    largest = max(values, default=0.0) or 1.0
    return [min(max(value / largest, 0.0), 1.0) for value in values]


def shade(share: float) -> tuple[int, int, int]:
    """Return red, green and blue, 0 to 255, of a share of the largest weight.

    Example:
        >>> shade(0.0), shade(1.0)
        ((255, 255, 255), (230, 90, 60))
    """
    red, green, blue = (round(255 - share * (255 - part)) for part in LARGEST)
    return red, green, blue


def hex_shade(share: float) -> str:
    """Return the same as ``#rrggbb``.

    Example:
        >>> hex_shade(1.0)
        '#e65a3c'
    """
    return "#" + "".join(f"{part:02x}" for part in shade(share))
