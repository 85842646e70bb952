"""Metrics at the ends of what they take, by numbers worked out by hand."""

import math

import pytest

from etw_lightning import metrics
from etw_lightning.metrics import Metric
from etw_lightning.metrics.fluency import repetition_values
from etw_lightning.metrics.membership import _checked_scores
from etw_lightning.metrics.text import gold_continuations
from etw_lightning.metrics.token_probabilities import ENTROPY_EDGES, PROBABILITY_EDGES
from etw_lightning.metrics.tokens import mark_tokens
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
