"""The rule of a sweep: which point is chosen by which numbers."""

import math

import pytest
from swept import finish, points_of, runs_of

from etw_lightning.schema import InputError
from etw_lightning.sweeps.choice import average, choose, gather, rule
from etw_lightning.sweeps.grid import load_sweep
from etw_lightning.sweeps.report import report
from etw_lightning.sweeps.rules import Bound, Select


def test_p_values_are_compared_by_the_mean_of_their_logarithms(write):
    runs = runs_of(write())
    # By the plain mean the first point wins: .45 against .2.
    for run, quality in zip(runs, (0.9, 1e-6, 0.2, 0.2), strict=False):
        finish(run, quality, 0.6)
    points = [point for point in gather(runs) if point.method == "etw"]
    point, keeps = choose(points, load_sweep("sweep.yaml").select)
    assert (dict(point.values), keeps) == ({"lambda": "0.2"}, True)
    assert points[0].mean("forget_quality") == pytest.approx(math.sqrt(0.9e-6), rel=1e-12)
    assert points[0].mean("model_utility") == 0.6


def test_a_point_must_keep_to_the_bound_in_the_mean(write):
    # .95 of the target's .6 is .57: (.55 + .60) / 2 passes, (.55 + .58) / 2 does not.
    points = points_of(write, (0.1, 0.55), (0.1, 0.60), (0.9, 0.55), (0.9, 0.58))
    point, keeps = choose(points, load_sweep("sweep.yaml").select)
    assert (dict(point.values), keeps) == ({"lambda": "0.1"}, True)
    assert point.share("model_utility") == pytest.approx(0.575 / 0.6)


def test_where_none_keeps_to_it_the_nearest_is_taken_and_marked(write):
    points = points_of(write, (0.9, 0.40), (0.9, 0.40), (0.1, 0.50), (0.1, 0.50))
    point, keeps = choose(points, load_sweep("sweep.yaml").select)
    assert (dict(point.values), keeps) == ({"lambda": "0.2"}, False)


def test_of_equal_points_the_first_is_taken(write):
    points = points_of(write, *[(0.5, 0.6)] * 4)
    assert choose(points, load_sweep("sweep.yaml").select)[0] is points[0]


def test_a_point_that_lacks_a_run_is_not_chosen(write):
    points = points_of(write, (0.1, 0.6), (0.1, 0.6), (0.9, 0.6))
    assert choose(points, load_sweep("sweep.yaml").select)[0] is points[0]
    assert choose(points[1:], load_sweep("sweep.yaml").select) == (None, False)


@pytest.mark.parametrize(
    ("select", "expected"),
    [
        (Select("model_utility", False, ()), "0.1"),
        (Select("model_utility", True, ()), "0.2"),
        (Select("model_utility", True, (Bound("model_utility", "at_most", 0.55),)), "0.1"),
        (Select("model_utility", False, (Bound("model_utility", "at_least", 0.55),)), "0.2"),
        # The bound that is missed most decides: by 80 % against by 90 %.
        (
            Select(
                "model_utility",
                False,
                (
                    Bound("model_utility", "at_least", 2.5),
                    Bound("forget_quality", "at_least", 2.0),
                ),
            ),
            "0.1",
        ),
    ],
)
def test_directions_and_bounds(write, select, expected):
    points = points_of(write, (0.4, 0.5), (0.4, 0.5), (0.2, 0.6), (0.2, 0.6))
    assert dict(choose(points, select)[0].values) == {"lambda": expected}


_HALF = (Bound("model_utility", "at_most", 0.5),)


def test_a_point_on_its_bound_keeps_to_it(write):
    points = points_of(write, *[(0.4, 0.5)] * 2, *[(0.9, 0.75)] * 2)
    assert choose(points, Select("forget_quality", True, _HALF)) == (points[0], True)


def test_of_equal_numbers_the_one_that_keeps_to_the_bounds_is_taken(write):
    points = points_of(write, *[(0.4, 0.7)] * 2, *[(0.4, 0.3)] * 2)
    assert choose(points, Select("forget_quality", True, _HALF)) == (points[1], True)


def test_a_point_has_a_number_where_all_of_its_runs_do(write):
    runs = runs_of(write())
    finish(runs[0], 0.5, 0.6, rouge=0.3)
    finish(runs[1], 0.5, 0.6)
    point = gather(runs)[0]
    assert (point.numbers("rouge"), point.mean("rouge")) == ([], None)
    assert point.mean("model_utility") == 0.6


def test_a_p_value_of_0_is_the_least_that_a_float_holds():
    # 2.2250738585072014e-308, whose logarithm is -307.65265...
    assert average("forget_quality", [0.0]) == pytest.approx(2.2250738585072014e-308, rel=1e-10)
    assert average("forget_quality", [0.0, 1.0]) == pytest.approx(1.4916681462400413e-154)


def test_a_number_that_a_run_lacks_is_an_error(write):
    points = points_of(write, *[(0.5, 0.6)] * 4)
    with pytest.raises(InputError, match=r"out/etw_lambda0.1_seed0 has no 'verbmem'\.$"):
        choose(points, Select("verbmem", True, ()))
    bound = Bound("forget_quality", "at_least_of_target", 1.0)
    with pytest.raises(InputError, match=r"forget_quality.at_least_of_target must be compared"):
        choose(points, Select("model_utility", True, (bound,)))


def test_the_rule_in_words():
    bounds = (Bound("model_utility", "at_least_of_target", 0.95), Bound("rouge", "at_most", 0.5))
    assert rule(Select("forget_quality", True, bounds)) == (
        "the highest forget_quality (geometric mean over the seeds) among the grid points whose "
        "model_utility is at least 0.95 of the target model's and rouge is at most 0.5"
    )
    assert rule(Select("rouge", False, ())) == "the lowest rouge (mean over the seeds)"


@pytest.mark.parametrize("value", [1.5, -0.1])
def test_a_p_value_out_of_its_range_is_refused(write, value):
    runs = runs_of(write())
    for run in runs:
        finish(run, value if run is runs[3] else 0.5, 0.6)
    with pytest.raises(InputError) as caught:
        report(load_sweep(write()), runs)
    assert str(caught.value) == (
        f"{runs[3].folder}/results.json: forget_quality must be a p-value, from 0 to 1; got "
        f"{value}. Remove the folder to run it again."
    )
