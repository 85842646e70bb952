"""Areas under frontiers, and draws, held against numbers written in another way."""

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from scipy.stats import ks_2samp

from etw_lightning.metrics.tofu import model_utility_of
from etw_lightning.reports.areas import (
    basic_interval,
    drawn_distances,
    drawn_utilities,
    frontier_area,
)
from etw_lightning.schema import InputError

DRAW = np.random.default_rng(3)


def exact_area(points, floor, base):
    """Sum rectangles between neighbouring utilities, in fractions."""
    points = [(min(Fraction(u), Fraction(1)), Fraction(f)) for u, f in points]
    floor, base = Fraction(floor), Fraction(base)
    cuts = sorted({floor, Fraction(1), *(u for u, _ in points if u > floor)})
    total = Fraction(0)
    for low, high in pairwise(cuts):
        best = max([base, *(f for u, f in points if u >= high)])
        total += (high - low) * best
    return float(total / (1 - floor))


@pytest.mark.parametrize(
    ("points", "floor", "base", "area"),
    [
        # One point: .4 up to a utility of .9, the base .1 beyond.
        ([(0.9, 0.4)], 0.8, 0.1, 0.25),
        # Two that trade off, one between that both beat, one below the floor.
        ([(0.95, 0.5), (0.85, 0.9), (0.84, 0.7), (0.5, 1.0)], 0.8, 0.2, 0.525),
        # What keeps more than the target keeps all there is.
        ([(1.2, 0.6)], 0.5, 0.0, 0.6),
        # What forgets less than the target model counts for nothing.
        ([(0.9, 0.1)], 0.0, 0.3, 0.3),
        # The same utility twice: the better counts.
        ([(0.9, 0.4), (0.9, 0.6)], 0.8, 0.0, 0.3),
        ([(0.7, 0.9)], 0.8, 0.25, 0.25),
    ],
)
def test_areas_of_hand_made_points(points, floor, base, area):
    kept, forgotten = np.array(points, dtype=np.float64).T
    assert frontier_area(kept, forgotten, floor, base) == pytest.approx(area, abs=1e-12)
    assert exact_area(points, floor, base) == pytest.approx(area, abs=1e-12)


def test_areas_of_random_points_are_those_of_brute_force():
    kept, forgotten = DRAW.uniform(0.6, 1.1, (50, 6)), DRAW.uniform(0, 1, (50, 6))
    base = DRAW.uniform(0, 0.3, 50)
    areas = frontier_area(kept, forgotten, 0.7, base)
    n = 20_000
    demands = 0.7 + 0.3 * (np.arange(n) + 0.5) / n
    for row in range(50):
        points = list(zip(kept[row], forgotten[row], strict=True))
        assert areas[row] == pytest.approx(exact_area(points, 0.7, base[row]), abs=1e-12)
        reached = [
            max([base[row], *(f for u, f in points if min(u, 1.0) >= demand)])
            for demand in demands[::40]
        ]
        assert areas[row] == pytest.approx(np.mean(reached), abs=0.01)


def test_a_floor_of_one_is_refused():
    with pytest.raises(InputError, match="the floor must be from 0 to below 1; got 1"):
        frontier_area(np.array([0.9]), np.array([0.5]), 1)


def test_distances_of_draws_are_those_of_repeated_rows():
    # Few values, so that both models have many in common.
    mine, theirs = DRAW.integers(0, 9, 30) / 4, DRAW.integers(0, 9, 30) / 4
    counts = DRAW.multinomial(30, np.full(30, 1 / 30), size=40)
    for distance, row in zip(drawn_distances(mine, theirs, counts), counts, strict=True):
        expected = ks_2samp(np.repeat(mine, row), np.repeat(theirs, row)).statistic
        assert distance == pytest.approx(expected, abs=1e-12)


def test_utilities_of_draws_are_those_of_repeated_rows():
    sets = {"retain": 20, "real_authors": 7, "world_facts": 5}
    values = {
        f"{name}_{part}": DRAW.uniform(0.1, 1.6 if part == "truth_ratio" else 1, n)
        for name, n in sets.items()
        for part in ("probability", "rouge", "truth_ratio")
    }
    counts = {n: DRAW.multinomial(size, np.full(size, 1 / size), 10) for n, size in sets.items()}
    for draw, utility in enumerate(drawn_utilities(values, counts)):
        repeated = {
            name: np.repeat(found, counts[name.rsplit("_", 1)[0].removesuffix("_truth")][draw])
            for name, found in values.items()
        }
        assert utility == pytest.approx(model_utility_of(repeated).value, abs=1e-12)
    values["retain_rouge"] = np.zeros(20)
    assert drawn_utilities(values, counts).tolist() == [0.0] * 10


def test_an_interval_is_reflected_about_the_value():
    drawn = np.arange(101) / 100 + 0.2
    assert basic_interval(0.6, drawn) == pytest.approx((1.2 - 1.175, 1.2 - 0.225))
