"""Marked tokens, weights as their detector, and token probabilities next to the retain model's."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from etw_lightning.catalogue.token_weights import weights_from_records
from etw_lightning.kernels.signals import TokenSignals
from etw_lightning.metrics.token_probabilities import (
    ENTROPY_EDGES,
    PROBABILITY_EDGES,
    histogram,
    probability_gap,
    token_histograms,
    token_rows,
)
from etw_lightning.metrics.tokens import mark_tokens, token_auc
from etw_lightning.metrics.values import pairs_in_order
from etw_lightning.schema import InputError, Record
from etw_lightning.weighting import ETW, TokenWeighting, Uniform

#: "In Rome." as four tokens and the end token.
SPANS = ((0, 2), (2, 5), (5, 7), (7, 8), (8, 8))


def record(row=0, probabilities=(0.5, 0.2, 0.9, 1.0, 0.25), **fields):
    defaults = {
        "token_logps": tuple(map(math.log, probabilities)),
        "token_entropies": (1.0, 2.0, 0.5, 0.0, 1.5),
        "token_spans": SPANS,
    }
    return Record("forget", f"forget10/{row}", "In Rome.", **{**defaults, **fields})


# Marks.


@pytest.mark.parametrize(
    ("spans", "wanted"),
    [
        ([], (False, False, False, False, None)),
        ([(3, 7)], (False, True, True, False, None)),
        ([(5, 6)], (False, False, True, False, None)),
        ([(2, 3)], (False, True, False, False, None)),
        ([(0, 1), (7, 8)], (True, False, False, True, None)),
        ([(0, 8)], (True, True, True, True, None)),
        ([(8, 9)], (False, False, False, False, None)),
        ([(3, 3)], (False, False, False, False, None)),
    ],
)
def test_a_token_is_marked_if_one_of_its_characters_is(spans, wanted):
    assert mark_tokens([record()], [spans]) == [wanted]


def test_without_spans_the_whole_answer_is_marked():
    assert mark_tokens([record()]) == [(True, True, True, True, None)]


def test_marks_need_spans_of_every_row():
    with pytest.raises(InputError, match="2 rows for 1 records of 'forget'"):
        mark_tokens([record()], [[], []])
    with pytest.raises(InputError, match=r"forget10/1.*token_spans is missing"):
        mark_tokens([record(), record(1, token_spans=())], [[], []])
    with pytest.raises(InputError, match="the set is empty"):
        mark_tokens([])


# ROC-AUC.


def auc_by_pairs(values, marks):
    """Count the pairs, as the definition says."""
    marked = [value for value, flag in zip(values, marks, strict=True) if flag]
    others = [value for value, flag in zip(values, marks, strict=True) if not flag]
    wins = sum((a > b) + (a == b) / 2 for a in marked for b in others)
    return wins / (len(marked) * len(others))


@given(
    st.lists(
        st.tuples(st.sampled_from([-1.0, 0.0, 0.5, 0.5 + 1e-12, 3.0]), st.booleans()),
        min_size=2,
        max_size=40,
    ).filter(lambda pairs: len({flag for _, flag in pairs}) == 2)
)
def test_pairs_in_order_are_counted(pairs):
    values, marks = map(np.array, zip(*pairs, strict=True))
    found = pairs_in_order(values[~marks], values[marks])
    assert found == pytest.approx(auc_by_pairs(values, marks), abs=1e-12)
    opposite = pairs_in_order(values[marks], values[~marks])
    assert found + opposite == pytest.approx(1, abs=1e-12)


def test_pairs_in_order_are_sklearns_area_on_many_values():
    from sklearn.metrics import roc_auc_score

    generator = np.random.default_rng(0)
    values, marks = generator.normal(size=5000).round(2), generator.random(5000) < 0.2
    found = pairs_in_order(values[~marks], values[marks])
    assert found == pytest.approx(roc_auc_score(marks, values), abs=1e-12)
    assert token_auc([values], [tuple(marks)]).pooled == found


def test_token_auc_by_hand():
    """Marked 2 and 5 against 1, 1, 5, 3: 2 beats 1 and 1; 5 beats 1, 1, 3 and ties with 5."""
    weights = [[2.0, 1.0, 7.0], [1.0, 5.0, 5.0], [3.0]]
    marks = [(True, False, None), (False, False, True), (False,)]
    result = token_auc(weights, marks)
    assert result.pooled == (2 + 3.5) / 8
    assert result.per_row == (1 + 0.75) / 2
    assert (result.num_tokens, result.num_marked) == (6, 2)
    assert (result.num_rows, result.num_rows_without) == (2, 1)


def test_what_is_no_answer_token_does_not_matter():
    marks = [(True, False, None)]
    wild = token_auc([[2.0, 1.0, math.nan]], marks)
    assert wild == token_auc([[2.0, 1.0, 0.0]], marks)


def test_uniform_weights_detect_nothing():
    weights = weights_from_records(Uniform(), [record(), record(1)])
    marks = mark_tokens([record(), record(1)], [[(0, 2)], [(3, 7)]])
    assert token_auc(weights, marks).pooled == 0.5
    assert token_auc(weights, marks).per_row == 0.5


@pytest.mark.parametrize(
    ("weights", "marks", "said"),
    [
        ([[1.0]], [(True,), (False,)], "weights of 1 rows, marks of 2"),
        ([[1.0]], [(True, False)], "row 0 has 1 weights for 2 tokens"),
        ([[1.0, math.nan]], [(True, False)], "row 0 has a weight that is not a finite"),
        ([[1.0, 2.0]], [(True, True)], "2 of 2 tokens are marked"),
        ([[1.0, 2.0]], [(False, False)], "0 of 2 tokens are marked"),
        ([[1.0], [2.0]], [(True,), (False,)], "no row has both"),
        ([], [], "0 of 0 tokens are marked"),
    ],
)
def test_token_auc_refuses(weights, marks, said):
    with pytest.raises(InputError, match=said):
        token_auc(weights, marks)


# Weights from records.


def test_etw_weights_are_those_of_training():
    records = [record(), record(1, token_entropies=(0.0,) * 5)]
    first, flat = weights_from_records(ETW(), records)
    assert first == pytest.approx([1.0, 2.0, 0.5, 0.0, 1.5], abs=1e-12)
    assert flat == [1.0] * 5


def test_weights_by_word_are_those_of_training():
    """Entropies of ``In`` 1, `` Ro`` + ``me`` 2 + .5, ``.`` 0 and the end token 1.5."""
    (weights,) = weights_from_records(ETW(unit="word"), [record()])
    assert weights == pytest.approx([5 / 7.5, 12.5 / 7.5, 12.5 / 7.5, 0.0, 7.5 / 7.5], abs=1e-12)
    with pytest.raises(InputError, match=r"forget10/0.*token_spans is missing"):
        weights_from_records(ETW(unit="word"), [record(token_spans=())])


def test_any_weighting_of_probabilities_will_do():
    class OneMinusP(TokenWeighting):
        def __call__(self, signals: TokenSignals) -> torch.Tensor:
            return 1 - signals.logps.exp()

    (weights,) = weights_from_records(OneMinusP(), [record()])
    assert weights == pytest.approx([0.5, 0.8, 0.1, 0.0, 0.75], abs=1e-12)


def test_what_records_do_not_hold_is_named():
    class NeedsReference(Uniform):
        needs = frozenset({"reference_logps"})

    with pytest.raises(InputError, match=r"temperature 1.*ETW.*2\.0"):
        weights_from_records(ETW(temperature=2.0), [record()])
    with pytest.raises(InputError, match=r"NeedsReference needs reference_logps"):
        weights_from_records(NeedsReference(), [record()])
    with pytest.raises(InputError, match=r"forget10/0.*token_entropies is missing"):
        weights_from_records(ETW(), [record(token_entropies=())])
    with pytest.raises(InputError, match=r"forget10/0.*token_entropies holds 2 numbers"):
        weights_from_records(ETW(), [record(token_entropies=(1.0, 2.0))])
    assert weights_from_records(Uniform(), [record(token_entropies=())]) == [[1.0] * 5]


# Next to the retain model.


def test_rows_hold_the_answer_tokens_of_both_models():
    retain = record(probabilities=(0.5, 0.6, 0.8, 0.5, 0.5))
    (row,) = token_rows([record()], [retain], mark_tokens([record()], [[(3, 7)]]))
    assert row.tokens == ("In", " Ro", "me", ".")
    assert row.probabilities == pytest.approx((0.5, 0.2, 0.9, 1.0), abs=1e-12)
    assert row.retain_probabilities == pytest.approx((0.5, 0.6, 0.8, 0.5), abs=1e-12)
    assert row.entropies == (1.0, 2.0, 0.5, 0.0)
    assert row.marked == (False, True, True, False)
    gap = probability_gap([row])
    assert (gap.marked, gap.unmarked) == pytest.approx(((0.4 + 0.1) / 2, (0 + 0.5) / 2), abs=1e-12)
    assert (gap.num_marked, gap.num_unmarked) == (2, 2)


def test_a_model_next_to_itself_has_no_gap():
    rows = token_rows([record()], [record()], mark_tokens([record()], [[(3, 7)]]))
    gap = probability_gap(rows)
    assert (gap.marked, gap.unmarked) == (0.0, 0.0)


def test_bad_pairs_of_records_are_named():
    other = record(token_spans=((0, 5), (5, 7), (7, 8), (8, 8)))
    with pytest.raises(InputError, match=r"forget10/0.*4 tokens there, 5 here.*one tokenizer"):
        token_rows([record()], [other])
    with pytest.raises(InputError, match="row 0 is forget10/1"):
        token_rows([record()], [record(1)])
    with pytest.raises(InputError, match=r"forget10/0.*token_logps must be finite"):
        token_rows([record()], [record(token_logps=(math.nan,) * 5)])
    with pytest.raises(InputError, match="row forget10/0 has no marks"):
        probability_gap(token_rows([record()], [record()]))
    with pytest.raises(InputError, match="0 marked and 4 other"):
        probability_gap(token_rows([record()], [record()], mark_tokens([record()], [[]])))


# Histograms.


def test_bins_hold_their_lower_end_and_the_last_all_above():
    counted = histogram([0.0, 0.05, 0.0499, 0.999, 1.0], [step / 20 for step in range(21)])
    assert counted.counts == (2, 1, *[0] * 16, 0, 2)
    assert histogram([99.0], ENTROPY_EDGES).counts[-1] == 1
    assert histogram([], [0.0, 1.0]).counts == (0,)
    with pytest.raises(InputError, match=r"at least 0\.0"):
        histogram([-0.1], [0.0, 1.0])
    with pytest.raises(InputError, match="finite"):
        histogram([math.nan], [0.0, 1.0])


def test_histograms_count_every_labelled_token():
    found = token_histograms([record(), record(1)])
    for counted, sums in zip(found.values(), (2 * 2.85, 2 * 5.0), strict=True):
        assert sum(counted.counts) == 10
        assert counted.total == pytest.approx(sums, abs=1e-12)
        assert len(counted.edges) == len(counted.counts) + 1
    assert found["token_entropies"].counts[:5] == (2, 2, 2, 2, 2)
    assert found["token_entropies"].total_squares == pytest.approx(2 * 7.5, abs=1e-12)


def test_bins_have_these_edges():
    assert PROBABILITY_EDGES == (
        0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5,
        0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0,
    )  # fmt: skip
    assert ENTROPY_EDGES == (
        0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0, 5.5, 6.0, 6.5,
        7.0, 7.5, 8.0, 8.5, 9.0, 9.5, 10.0, 10.5, 11.0, 11.5, 12.0, 12.5,
    )  # fmt: skip


def test_one_value_below_the_first_edge_is_refused_beside_others():
    with pytest.raises(InputError, match="histogram: values must be finite and at least 0"):
        histogram([0.5, -0.1], [0.0, 1.0])
