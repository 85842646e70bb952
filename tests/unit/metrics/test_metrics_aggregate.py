import math

import pytest

from etw_lightning import metrics
from etw_lightning.metrics import Metric
from etw_lightning.schema import InputError

PARTS = (
    "extraction_strength",
    "exact_memorisation",
    "paraphrase_probability",
    "truth_probability",
)


def parts(*values):
    return {name: Metric(value, "down", 400) for name, value in zip(PARTS, values, strict=True)}


def aucs(*values):
    pairs = zip(metrics.PRIVACY_ATTACKS, values, strict=True)
    return {name: Metric(value, "retain", 800) for name, value in pairs}


def up(value):
    return Metric(value, "up", 400)


def test_drop_is_in_points_and_negative_where_utility_rises():
    assert metrics.utility_drop(up(0.55), up(0.60)) == Metric(pytest.approx(5.0), "down", 400)
    assert metrics.utility_drop(up(0.61), up(0.60)).value == pytest.approx(-1.0)


def test_agg_degenerates_as_its_page_says():
    nothing_forgotten = Metric(21.41, "down", 400)
    assert metrics.paper_aggregate(nothing_forgotten, Metric(0.0, "down", 617)).value == 0
    assert metrics.paper_aggregate(Metric(0.0, "down", 400), Metric(60.0, "down", 617)).value == 0
    worse = metrics.paper_aggregate(nothing_forgotten, Metric(-1.0, "down", 617))
    assert worse.value < 0
    assert worse.n == 400


@pytest.mark.parametrize(
    ("ends", "expected"),
    [((-20, 1), (0, 20)), ((-20, -3), (3, 20)), ((2, 9), (2, 9)), (None, None)],
)
def test_absolute_privleak_folds_its_interval(ends, expected):
    folded = metrics.abs_privleak(Metric(-9.56, "zero", 800, ends))
    assert (folded.value, folded.direction, folded.interval) == (9.56, "down", expected)


def test_memorisation_is_relative_to_the_target_model():
    target = parts(0.7, 0.97, 0.1, 0.68)
    assert metrics.memorisation_score(target, target).value == 0
    assert metrics.memorisation_score(parts(0, 0, 0, 0), target).value == 1
    half = metrics.memorisation_score(parts(0.35, 0.97 / 2, 0.05, 0.34), target)
    assert half == Metric(pytest.approx(0.5), "up", 400)
    # More of one part than the target has is none forgotten, not less than none.
    assert metrics.memorisation_score(parts(0.9, 0.1, 0.05, 0.3), target).value == 0
    with pytest.raises(InputError, match=r"extraction_strength: the target model has 0.*target"):
        metrics.memorisation_score(target, parts(0, 1, 1, 1))
    with pytest.raises(InputError, match="no truth_probability"):
        metrics.memorisation_score({**target}, dict(list(target.items())[:3]))


@pytest.mark.parametrize("retain", [0.0, 0.3, 0.5, 1.0])
def test_membership_similarity_is_one_at_the_retain_model_and_falls_on_both_sides(retain):
    assert metrics.membership_similarity(retain, retain) == 1
    below = [metrics.membership_similarity(retain * share, retain) for share in (0, 0.5, 0.9)]
    above = [
        metrics.membership_similarity(1 - (1 - retain) * share, retain) for share in (0, 0.5, 0.9)
    ]
    if retain > 0:
        assert below == pytest.approx([0, 0.5, 0.9])
    if retain < 1:
        assert above == pytest.approx([0, 0.5, 0.9])
    for pair in ((1.2, retain), (-0.1, retain), (retain, 1.2), (retain, -0.1)):
        with pytest.raises(InputError, match="from 0 to 1"):
            metrics.membership_similarity(*pair)


def test_privacy_is_the_harmonic_mean_of_four_attacks():
    retain = aucs(0.4, 0.4, 0.4, 0.4)
    assert metrics.privacy_score(retain, retain).value == 1
    expected = 4 / (1 + 1 / 0.5 + 1 / 0.5 + 1 / 0.25)
    assert metrics.privacy_score(aucs(0.4, 0.2, 0.7, 0.1), retain).value == pytest.approx(expected)
    assert metrics.privacy_score(aucs(0.4, 0.4, 0.4, 1.0), retain).value == 0
    with pytest.raises(InputError, match="no min_k_plus_plus"):
        metrics.privacy_score(dict(list(retain.items())[:3]), retain)


def test_utility_is_relative_to_the_target_model_and_cut_at_one():
    target = up(0.6), up(0.9)
    assert metrics.utility_score(*target, *target).value == 1
    assert metrics.utility_score(up(0.3), up(0.9), *target).value == pytest.approx(2 / 3)
    assert metrics.utility_score(up(0.7), up(0.9), *target).value == 1
    assert metrics.utility_score(up(0.6), up(0.0), *target).value == 0
    with pytest.raises(InputError, match=r"model utility: the target model has 0\.0"):
        metrics.utility_score(up(0.3), up(0.9), up(0.0), up(0.9))


#: Table 3 of arXiv:2506.12618: aggregate, memorisation, privacy, utility.
METHODS = {
    "target": (0.00, 0.00, 0.10, 1.00),
    "retain": (0.58, 0.31, 1.00, 0.99),
    "simnpo": (0.53, 0.32, 0.63, 1.00),
    "rmu": (0.52, 0.47, 0.50, 0.61),
    "undial": (0.42, 0.27, 0.48, 0.78),
    "altpo": (0.15, 0.63, 0.06, 0.95),
    "idknll": (0.15, 0.08, 0.17, 0.93),
    "npo": (0.15, 0.52, 0.06, 0.99),
    "idkdpo": (0.14, 0.56, 0.06, 0.95),
}


@pytest.mark.parametrize("method", METHODS)
def test_published_aggregates_follow_from_their_parts(method):
    published, *values = METHODS[method]
    # All were printed with two digits, and the mean rises with each part.
    low, high = (
        metrics.unlearning_score(*(up(min(1, max(0, value + half))) for value in values)).value
        for half in (-0.005, 0.005)
    )
    assert low - 0.005 <= published <= high + 0.005
    assert high - low < 0.05


def test_published_aggregate_of_gradient_difference():
    (value,) = {metrics.unlearning_score(up(0.97), up(3e-3), up(0.79)).value}
    assert round(value, 3) == 0.009


def test_neg_log10_is_the_forget_qualitys():
    quality = metrics.ForgetQualityResult(0.0, 1.0, 600, 600, 600, 0.0, 359.0)
    found = metrics.neg_log10_forget_quality(quality)
    assert (found.value, found.direction, found.n) == (359.0, "down", 600)
    assert math.isfinite(found.value)


def test_a_mean_of_parts_counts_the_rows_of_the_smallest():
    one, two, three = (Metric(0.5, "up", n) for n in (400, 300, 500))
    for order in ((one, two, three), (two, three, one), (three, one, two)):
        assert metrics.unlearning_score(*order).n == 300
    assert metrics.utility_score(one, two, one, two).n == 300
    assert metrics.utility_score(two, one, two, one).n == 300
    sizes = dict(zip(PARTS, (400, 300, 500, 600), strict=True))
    some = {name: Metric(0.5, "down", n) for name, n in sizes.items()}
    assert metrics.memorisation_score(some, parts(1, 1, 1, 1)).n == 300
    attacks = dict(zip(metrics.PRIVACY_ATTACKS, (400, 300, 500, 600), strict=True))
    others = {name: Metric(0.5, "retain", n) for name, n in attacks.items()}
    assert metrics.privacy_score(others, aucs(0.5, 0.5, 0.5, 0.5)).n == 300
