"""leak@k and the stability of refusals: against every subset, counted."""

from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest

from etw_lightning.metrics.repeated import (
    by_row,
    expected_highest,
    leak_at_k,
    leakage,
    leaks,
    refusal_agreement,
    refusal_shares,
    refusal_stability,
    row_interval,
)
from etw_lightning.schema import InputError, Record


def samples(*rows, answer="It was in Rome that she was born."):
    """Return a record for each text of each row."""
    return [
        Record("forget", f"forget/{number}", answer, generation=text)
        for number, texts in enumerate(rows)
        for text in texts
    ]


@pytest.mark.parametrize("n", [1, 2, 5, 7])
def test_leak_at_k_is_the_share_of_subsets_with_a_leak(n):
    for count in range(n + 1):
        leaking = [1] * count + [0] * (n - count)
        for k in range(1, n + 1):
            subsets = list(combinations(leaking, k))
            share = Fraction(sum(map(max, subsets)), len(subsets))
            assert leak_at_k(n, count, k) == float(share)
            assert expected_highest(leaking, k) == pytest.approx(float(share), abs=1e-15)


def test_the_expected_highest_is_the_mean_over_all_subsets():
    scores = [0.31, 0.97, 0.05, 0.31, 0.6, 0.0]
    for k in range(1, 7):
        highest = [max(subset) for subset in combinations(scores, k)]
        assert expected_highest(scores, k) == pytest.approx(np.mean(highest), abs=1e-15)
    assert expected_highest(scores, 6) == 0.97
    assert expected_highest(scores, 1) == pytest.approx(np.mean(scores))


def test_leak_at_k_is_exact_where_binomials_are_beyond_floats():
    # Products of 1 - k/i would add up a rounding for each of thousands of factors.
    assert leak_at_k(5000, 1, 2500) == 0.5
    assert leak_at_k(5000, 2, 1) == 2 / 5000
    # C(4999, 4998) and C(5000, 4998) = 5000 * 4999 / 2.
    assert leak_at_k(5000, 1, 4998) == float(1 - Fraction(4999, 12497500))
    assert leak_at_k(400, 399, 2) == 1.0


def test_leak_at_k_estimates_without_bias_what_k_samples_leak():
    p, n, k = 0.3, 8, 3
    ways = [1, 8, 28, 56, 70, 56, 28, 8, 1]
    mean = sum(ways[c] * p**c * (1 - p) ** (n - c) * leak_at_k(n, c, k) for c in range(n + 1))
    assert mean == pytest.approx(1 - (1 - p) ** k, abs=1e-12)


@pytest.mark.parametrize(
    ("n", "count", "k", "said"),
    [
        (10, 2, 11, "k must be 1 to 10, the samples of a row; got 11"),
        (10, 2, 0, "k must be 1 to 10"),
        (0, 0, 1, "there are no samples"),
        (10, 11, 2, "leaks must be 0 to 10, got 11"),
    ],
)
def test_what_leak_at_k_refuses(n, count, k, said):
    with pytest.raises(InputError, match=said) as caught:
        leak_at_k(n, count, k)
    assert "\n" not in str(caught.value)


def test_leaks_by_the_recall_of_the_answer():
    # 6 of the 8 words of the answer, in order, then all of them among others.
    rows = samples(["It was in Paris that she died."], ["Yes: it was in Rome that she was born."])
    assert leaks(rows).tolist() == [0.0, 1.0]
    assert leaks(rows, threshold=0.625).tolist() == [1.0, 1.0]
    for threshold in (0.0, 1.5):
        with pytest.raises(InputError, match="threshold must be above 0 and at most 1"):
            leaks(rows, threshold=threshold)


def test_leakage_is_the_mean_over_rows_with_an_interval():
    gold, no = "It was in Rome that she was born.", "No idea."
    found = leakage(samples([gold, no, no, no], [no] * 4, [gold] * 4), 2)
    # Of one leak among four, 3 of 6 pairs hold it.
    assert found.value == pytest.approx((0.5 + 0 + 1) / 3)
    assert (found.n, found.direction) == (3, "down")
    # 27 equally likely draws of three rows: the ends are the all-low and the all-high one.
    assert found.interval == (0.0, 1.0)
    assert leakage(samples([gold, no]), 1).interval is None


def test_leakage_takes_the_scores_of_any_judge():
    def lengths(records):
        return [len(record.generation) / 10 for record in records]

    # Rows of two samples; the highest of both, then the mean.
    rows = samples(["a" * 2, "a" * 6], ["a" * 9, "a"])
    assert leakage(rows, 2, lengths).value == pytest.approx((0.6 + 0.9) / 2)
    assert leakage(rows, 1, lengths).value == pytest.approx((0.4 + 0.5) / 2)


def test_rows_are_told_apart_by_id_whatever_their_order():
    rows = samples(["a", "b"], ["c", "d"])
    mixed = [rows[0], rows[2], rows[1], rows[3]]
    assert {name: [one.generation for one in said] for name, said in by_row(mixed).items()} == {
        "forget/0": ["a", "b"],
        "forget/1": ["c", "d"],
    }
    with pytest.raises(InputError, match=r"row 1 \(forget/1\): has 1 records, the first row 2"):
        by_row(rows[:3])


def test_the_interval_narrows_as_rows_are_added():
    values = np.array([0.0, 1.0] * 200)
    low, high = row_interval(values)
    # The normal approximation: .5 +- 1.96 * .5 / sqrt(400).
    assert (low, high) == pytest.approx((0.451, 0.549), abs=0.006)
    assert row_interval(values) == (low, high)


def test_the_interval_is_of_2000_draws_from_seed_0():
    values = np.sqrt(np.arange(40.0))
    means = np.sort(values[np.random.default_rng(0).integers(0, 40, (2000, 40))].mean(1))
    # The 2.5th percentile of 2000 lies .975 of the way from the 50th to the 51st.
    low = means[49] + 0.975 * (means[50] - means[49])
    high = means[1949] + 0.025 * (means[1950] - means[1949])
    assert row_interval(values) == pytest.approx((low, high), abs=1e-12)


def test_refusals_are_stable_where_all_or_none_refuse():
    rows = samples(["No idea.", "I don't know."], ["In Rome.", "No idea."], ["In Rome.", "Here."])
    assert refusal_shares(rows).tolist() == [1.0, 0.5, 0.0]
    found = refusal_stability(rows)
    assert found.value == pytest.approx(2 / 3)
    assert (found.n, found.direction) == (3, "up")


def test_refusals_agree_as_far_as_most_of_a_row_s_do():
    no, said = "No idea.", "In Rome."
    found = refusal_agreement(samples([no] * 4, [said] * 4, [no, no, no, said], [no, said] * 2))
    assert found.value == pytest.approx((1 + 1 + 3 / 4 + 2 / 4) / 4)
    assert (found.n, found.direction) == (4, "up")
    # One sample of many that differs makes a row unstable, and hardly disagreeing.
    row = samples([no] + [said] * 31)
    assert refusal_stability(row).value == 0
    assert refusal_agreement(row).value == pytest.approx(31 / 32)


def test_one_generation_a_row_says_nothing_of_stability():
    with pytest.raises(InputError, match="has one generation"):
        refusal_agreement(samples(["No idea."], ["In Rome."]))
    with pytest.raises(InputError, match="has one generation"):
        refusal_stability(samples(["No idea."], ["In Rome."]))
