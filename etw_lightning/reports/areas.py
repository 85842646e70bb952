"""Forgetting against keeping: the frontier of some runs as one number, and draws of its parts.

Each function takes many draws of a bootstrap at once: as counts, how often each row was drawn.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from etw_lightning.metrics.values import Floats
from etw_lightning.schema import InputError

__all__ = ["basic_interval", "drawn_distances", "drawn_utilities", "frontier_area"]


def frontier_area(
    kept: Floats, forgotten: Floats, floor: float, base: float | Floats = 0.0
) -> Floats:
    """Area under the frontier of forgetting against keeping, above a floor of keeping.

    Formula: 1 / (1 - floor) times the integral over u from floor to 1 of F(u), the highest
        forgetting of the points that keep u or more, and of the base: a staircase over the points
        that no other beats in both. What keeps more than 1 counts as 1.
    Unit: that of ``forgotten``.
    Range: base to the highest forgetting there is.
    Direction: up. It is the mean, over all demands on keeping above the floor, of how far the
        method can forget.
    Empty input: the base, of no points.
    Source: the hypervolume of multi-objective optimisation (Zitzler and Thiele 1998) in two
        dimensions, with (floor, 0) as its reference point, in shares of its largest value.
    Differs from widely used code: that leaves out the base, which here is the model before
        training: every method has it, as its lambda 0.

    Args:
        kept: Keeping of each point as a share of the target model's, ``(..., P)``.
        forgotten: Forgetting of each, ``(..., P)``.
        floor: Least keeping that counts, from 0 to below 1.
        base: Forgetting of the target model, which keeps 1, ``(...)``.

    Raises:
        InputError: If the floor is not from 0 to below 1.

    Example:
        >>> points = np.array([1.0, 0.75]), np.array([0.4, 0.8])
        >>> float(frontier_area(*points, floor=0.5).round(12))
        0.6
    """
    if not 0 <= floor < 1:
        raise InputError(f"frontier: the floor must be from 0 to below 1; got {floor}.")
    base = np.broadcast_to(np.asarray(base, dtype=np.float64), kept.shape[:-1])
    order = np.argsort(-kept, axis=-1, kind="stable")
    ends = np.clip(np.take_along_axis(kept, order, -1), floor, 1)
    heights = np.maximum.accumulate(
        np.concatenate([base[..., None], np.take_along_axis(forgotten, order, -1)], -1), -1
    )
    one, last = np.ones_like(ends[..., :1]), np.full_like(ends[..., :1], floor)
    edges = np.concatenate([one, ends, last], -1)
    area: Floats = (heights * (edges[..., :-1] - edges[..., 1:])).sum(-1) / (1 - floor)
    return area


def drawn_distances(values: Floats, others: Floats, counts: NDArray[np.int64]) -> Floats:
    """Return the two-sample KS distance of two models on the same rows, draw by draw.

    Args:
        values: One number of each row by the one model, ``(n,)``.
        others: By the other model, ``(n,)``.
        counts: How often each row is in each draw, ``(draws, n)``, at least one in each.

    Returns:
        Largest distance of the two distribution functions, 0 to 1, ``(draws,)``.

    Example:
        >>> drawn_distances(np.array([1.0, 4.0]), np.array([2.0, 3.0]), np.array([[1, 1], [0, 2]]))
        array([0.5, 1. ])
    """
    both = np.concatenate([values, others])
    order = np.argsort(both, kind="stable")
    # Among equal values the functions are compared behind the last.
    is_last = np.append(np.diff(both[order]) > 0, True)
    signed = np.concatenate([counts, -counts], -1)[:, order]
    gaps = np.abs(np.cumsum(signed, -1)[:, is_last]).max(-1)
    distances: Floats = gaps / counts.sum(-1)
    return distances


def drawn_utilities(
    values: Mapping[str, Floats], counts: Mapping[str, NDArray[np.int64]]
) -> Floats:
    """Return model utility, draw by draw.

    Args:
        values: ``utility_values`` of the three sets, by part.
        counts: How often each row is in each draw, by the set that parts are named after,
            ``(draws, n)``.

    Returns:
        The harmonic mean of the parts, ``(draws,)``; 0 where a part is 0.
    """
    parts = []
    for name, found in values.items():
        rows = np.maximum(0.0, 1 - found) if name.endswith("truth_ratio") else found
        drawn = counts[next(one for one in counts if name.startswith(f"{one}_"))]
        parts.append(drawn @ rows / drawn.sum(-1))
    means = np.stack(parts)
    with np.errstate(divide="ignore"):
        utilities: Floats = len(parts) / (1 / means).sum(0)
    return utilities


def basic_interval(value: float, drawn: Floats) -> tuple[float, float]:
    """Return the basic bootstrap interval of 95 %: the percentiles, reflected about the value.

    Source: Davison and Hinkley 1997, section 5.2.1.

    A KS distance of drawn rows lies above that of the rows themselves, for a row drawn twice makes
    a higher step; percentiles as they are would lie on the wrong side of the number.

    Args:
        value: The number of all rows.
        drawn: The same of each draw.

    Example:
        >>> basic_interval(1.0, np.array([0.5, 0.5, 0.5]))
        (1.5, 1.5)
    """
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(2 * value - high), float(2 * value - low)
