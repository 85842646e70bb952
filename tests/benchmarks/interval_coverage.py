"""How often the intervals of ``sweep report --frontier`` hold the truth, on made-up models.

    python tests/benchmarks/interval_coverage.py --tries 300

Truth ratios of 15 blocks of 20 rows are drawn with an effect of the block; each method has points
that lie so far from the retain model. The truth is the area of 80,000 rows.
"""

from __future__ import annotations

import argparse
import sys

import numpy as np

from etw_lightning.reports.areas import basic_interval, drawn_distances, frontier_area

_BLOCKS, _ROWS, _MANY, _DRAWS = 15, 20, 4000, 400
#: Utility of the points, and how far they are shifted from the retain model, of two methods.
_CASES = {
    "about equally near": ((0.99, 0.95, 0.88), (1.2, 0.6, 0.15), (1.0, 0.75, 0.4)),
    "one much nearer": ((0.95,), (0.1,), (1.2,)),
}


def areas(draw, case, blocks, counts):
    """Return the area of a case's first method and its difference to the second, by draw.

    Args:
        draw: Of the truth ratios.
        case: The points of both methods.
        blocks: Blocks of rows.
        counts: How often each row is in each draw, ``(draws, rows)``.
    """
    n, (kept, *shifts) = blocks * _ROWS, case
    base = 0.8 * (draw.normal(0, 1, n) + np.repeat(draw.normal(0, 0.3, blocks), _ROWS))
    retain, target = (base + draw.normal(0, 0.6, n) + by for by in (0, 2.5))
    rest = 1 - drawn_distances(target, retain, counts)
    found = []
    for some in shifts:
        models = [base + draw.normal(0, 0.6, n) + by for by in some]
        far = np.stack([drawn_distances(one, retain, counts) for one in models], -1)
        found.append(frontier_area(np.broadcast_to(np.array(kept), far.shape), 1 - far, 0.8, rest))
    return found[0], found[0] - found[1]


def main() -> None:
    """Print the share of tries in which each interval holds the truth."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tries", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    rows = np.repeat(np.arange(_BLOCKS), _ROWS)
    for name, case in _CASES.items():
        draw = np.random.default_rng(options.seed)
        every = np.ones((1, _MANY * _ROWS), dtype=np.int64)
        truth = [one[0] for one in areas(draw, case, _MANY, every)]
        held = np.zeros((2, 2))
        for _ in range(options.tries):
            drawn = draw.multinomial(_BLOCKS, np.full(_BLOCKS, 1 / _BLOCKS), size=_DRAWS)
            counts = np.concatenate([np.ones_like(drawn[:1]), drawn])[:, rows]
            found = areas(draw, case, _BLOCKS, counts)
            for place, (one, true) in enumerate(zip(found, truth, strict=True)):
                ends = basic_interval(one[0], one[1:]), np.percentile(one[1:], [2.5, 97.5])
                held[place] += [low <= true <= high for low, high in ends]
        for what, true, (basic, plain) in zip(
            ("area", "difference"), truth, held / options.tries, strict=True
        ):
            sys.stdout.write(
                f"{name}: {what} {true:+.3f}, in the basic interval {basic:.2f}, in the "
                f"percentiles {plain:.2f}\n"
            )


if __name__ == "__main__":
    main()
