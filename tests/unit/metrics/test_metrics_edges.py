"""Metrics at the ends of what they take, by numbers worked out by hand."""

import math

import numpy as np
import pytest

from etw_lightning import metrics
from etw_lightning.metrics import Metric
from etw_lightning.metrics.fluency import checked_probabilities, repetition_values
from etw_lightning.metrics.membership import _checked_scores
from etw_lightning.metrics.text import gold_continuations
from etw_lightning.metrics.token_probabilities import (
    ENTROPY_EDGES,
    PROBABILITY_EDGES,
    histogram,
)
from etw_lightning.metrics.tokens import mark_tokens
from etw_lightning.metrics.values import scored_tokens
from etw_lightning.schema import Conventions, InputError, Record


def wilson(successes, n):
    """The interval by its own formula; 1.959963984540054 is the normal's 97.5 % point."""
    z = 1.959963984540054
    share = successes / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return middle - half, middle + half


@pytest.mark.parametrize(("successes", "n"), [(0, 1), (1, 1), (1, 2), (3, 10), (10, 10), (0, 10)])
def test_wilsons_interval_is_its_formula(successes, n):
    found = metrics.wilson_interval(successes, n)
    assert found == pytest.approx(wilson(successes, n), abs=1e-12)


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (-1, 3), (4, 3)])
def test_wilsons_interval_refuses_what_is_no_share(successes, n):
    with pytest.raises(InputError, match="Wilson interval"):
        metrics.wilson_interval(successes, n)


def test_what_a_continuation_is_compared_with():
    rows = [
        Record("verbmem", "v/0", " is red. A rose is a rose.", question="A rose"),
        Record("verbmem", "v/1", "No question."),
    ]
    assert gold_continuations(rows) == rows
    assert gold_continuations(rows, Conventions(gold_text="whole")) == rows
    found = gold_continuations(rows, Conventions(gold_text="without_prompt"))
    assert [row.answer for row in found] == [" is red.  is a rose.", "No question."]


def test_privleak_is_seen_from_one():
    """((1 - .6) - (1 - .4)) / (1 - .4): two thirds of what is left over remain."""
    found = metrics.privleak_from_auc(Metric(0.6, "retain", 20, (0.5, 0.7)), 0.4)
    assert (found.direction, found.n) == ("zero", 20)
    assert found.value == pytest.approx(-100 / 3, rel=1e-8)
    assert found.interval == pytest.approx((-50, -50 / 3), rel=1e-8)


def test_four_words_are_repeated_where_nothing_else_is_asked():
    """Of abcd, bcda, cdab, dabc and abcd one is a repetition; no five words are."""
    row = Record("forget", "f/0", "a", generation="a b c d a b c d")
    assert repetition_values([row])[0] == pytest.approx(0.2)
    assert repetition_values([row], n=4)[0] == pytest.approx(0.2)


def test_without_marks_the_whole_answer_is_marked():
    row = Record("forget", "f/0", "I am", token_spans=((0, 1), (1, 4), (4, 4)))
    assert mark_tokens([row], None) == [(True, True, None)]
    assert mark_tokens([row], [[(0, 1)]]) == [(True, False, None)]


def test_one_match_that_is_none_is_refused():
    rows = [Record("forget", "f/0", "a b", token_matches=(1, 2))]
    with pytest.raises(InputError, match="token_matches must be 0 or 1"):
        metrics.exact_memorisation(rows)


def test_the_first_score_that_is_no_number_is_named():
    with pytest.raises(InputError, match="AUC: forget row 1 has the score nan"):
        _checked_scores([1.0, math.nan], [2.0])
    with pytest.raises(InputError, match="AUC: holdout row 0 has the score inf"):
        _checked_scores([1.0], [math.inf, 1.0])
    with pytest.raises(InputError, match="the holdout set is empty"):
        _checked_scores([1.0], [])


def test_edges_of_histograms():
    assert (PROBABILITY_EDGES[0], PROBABILITY_EDGES[1], PROBABILITY_EDGES[-1]) == (0, 0.05, 1)
    assert (ENTROPY_EDGES[0], ENTROPY_EDGES[1], ENTROPY_EDGES[-1]) == (0, 0.5, 12.5)


def test_numbers_of_other_kinds_are_worked_in_float64():
    """The float32 nearest to .1 is f = .100000001490116...; f * f in float32 is off by 3e-10."""
    single = np.array([0.1], dtype=np.float32)
    wide = 13421773 / 2**27
    found = histogram(single, [0.0, 1.0])
    assert (found.total, found.total_squares) == (wide, wide * wide)
    assert checked_probabilities(single).dtype == np.float64
    whole = Record("forget", "f/0", "a", token_matches=(1, 0))
    assert scored_tokens(whole, 0, "token_matches").dtype == np.float64


@pytest.mark.parametrize("values", [[], [-0.5], [1.0, -0.5], [-0.5, 1.0]])
def test_a_harmonic_mean_takes_no_negative_number(values):
    with pytest.raises(InputError, match="harmonic mean"):
        metrics.harmonic_mean(values)
    assert metrics.harmonic_mean([1.0, 0.0, 2.0]) == 0.0


def test_a_p_value_below_the_float_range_with_one_row_that_fits():
    """599 of 600 ratios lie below all others: 2 C(1200, 1) of C(1200, 600) paths go as far."""
    found = metrics.tofu.forget_quality_of([0.1] * 599 + [2.0], [1.0] * 600)
    assert (found.p_value, found.d_times_n, found.n, found.m) == (0.0, 599, 600, 600)
    expected = math.log10(math.comb(1200, 600)) - math.log10(2400)
    assert found.neg_log10 == pytest.approx(expected, abs=1e-9)


def test_min_k_reads_four_tenths_of_the_tokens():
    """Means of the 4 lowest of 10: 4 and 2.8 against 3; of 8 they are 2.5 and 1.4, of 2 4 and 5.6.

    A row that is surely known has the lower score: one of the two is told from both others.
    """
    known = [(-4.0,) * 4 + (-1.0,) * 6, (-5.6,) * 2 + (0.0,) * 8]
    forget = [Record("f", f"f/{n}", "a", token_logps=logps) for n, logps in enumerate(known)]
    holdout = [Record("h", f"h/{n}", "a", token_logps=(-3.0,) * 10) for n in range(2)]
    assert metrics.attack_auc(forget, holdout, "min_k").value == 0.5
    assert metrics.min_k_auc(forget, holdout) == 0.5
    assert metrics.attack_scores(forget, "min_k").tolist() == pytest.approx([4.0, 2.8])
    assert metrics.attack_auc(forget, holdout, "min_k", k=0.8).value == 1.0
