import math
import time
import zlib

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from etw_lightning import metrics
from etw_lightning.metrics import membership
from etw_lightning.schema import Conventions, InputError, Record


def row(dataset="forget", index=0, **fields):
    return Record(dataset, f"{dataset}10/{index}", fields.pop("answer", "Paris."), **fields)


def test_min_k_rounds_down_and_takes_at_least_one():
    logps = [-1.0, -5.0, -3.0, -2.0]
    assert metrics.min_k_score(logps) == 5.0
    assert metrics.min_k_score(logps, k=0.5) == 4.0
    assert metrics.min_k_score(logps, k=1.0) == 2.75
    assert metrics.min_k_score([-1.5]) == 1.5
    assert metrics.min_k_score([-float(nats) for nats in range(1, 10)]) == (9 + 8 + 7) / 3


@pytest.mark.parametrize("k", [0, -0.1, 1.1, math.nan])
def test_min_k_refuses_other_shares(k):
    with pytest.raises(InputError, match="k must be"):
        metrics.min_k_score([-1.0], k=k)


def test_auc_counts_pairs_and_reads_either_form_of_score():
    forget = [row(token_logps=(-1.0, -2.0)), row(min_k=4.0)]
    holdout = [row("holdout", min_k=3.0), row("holdout", min_k=4.0)]
    assert metrics.min_k_auc(forget, holdout) == (1 + 1 + 0 + 0.5) / 4
    with pytest.raises(InputError, match="token_logps is missing"):
        metrics.min_k_auc([row()], holdout)


def test_privleak_signs():
    known, new = [row(min_k=1.0)], [row("holdout", min_k=2.0)]
    assert metrics.privleak(known, new, 0.5).value == pytest.approx(-100, rel=1e-9)
    assert metrics.privleak(new, known, 0.5).value == pytest.approx(100, rel=1e-9)
    assert metrics.privleak(new, known, 0.0) == metrics.Metric(0.0, "zero", 2)
    with pytest.raises(InputError, match=r"data\.retain_results"):
        metrics.privleak(known, new, 1.0)


def test_min_k_leaves_out_the_last_label_where_asked():
    rows = [row(token_logps=(-1.0, -2.0, -3.0, -9.0))]
    assert metrics.attack_scores(rows, "min_k", k=0.5).tolist() == [6.0]
    left = Conventions(last_label="left_out")
    assert metrics.attack_scores(rows, "min_k", k=0.5, conventions=left).tolist() == [3.0]
    assert metrics.attack_scores(rows, "min_k", k=0.2, conventions=left).tolist() == [3.0]


def test_another_k_is_not_read_from_a_published_score():
    both = row(min_k=7.0, token_logps=(-1.0, -2.0, -3.0, -4.0, -5.0))
    assert metrics.attack_scores([both], "min_k").tolist() == [7.0]
    assert metrics.attack_scores([both], "min_k", k=0.2).tolist() == [5.0]
    with pytest.raises(InputError, match="token_logps is missing"):
        metrics.attack_scores([row(min_k=7.0)], "min_k", k=0.2)


def plus_plus_fields(logits, labels):
    """Fields of a row, from the whole distributions: sums over the vocabulary."""
    logps = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    weights = np.exp(logps)
    mean = (weights * logps).sum(-1)
    return {
        "token_logps": tuple(logps[np.arange(len(labels)), labels]),
        "token_entropies": tuple(-mean),
        "token_variances": tuple((weights * (logps - mean[:, None]) ** 2).sum(-1)),
    }


def test_min_k_plus_plus_standardises_by_the_whole_distribution():
    generator = np.random.default_rng(5)
    logits, labels = generator.normal(0, 2, (12, 9)), generator.integers(0, 9, 12)
    logps = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    mean = (np.exp(logps) * logps).sum(-1)
    deviation = np.sqrt((np.exp(logps) * logps**2).sum(-1) - mean**2)
    z = np.sort((logps[np.arange(12), labels] - mean) / deviation)
    rows = [row(**plus_plus_fields(logits, labels))]
    for k, num in ((0.4, 4), (0.2, 2), (0.05, 1)):
        ours = metrics.attack_scores(rows, "min_k_plus_plus", k=k)[0]
        assert ours == pytest.approx(-z[:num].mean(), rel=1e-10)


def test_min_k_plus_plus_bounds_the_variance_of_a_sure_prediction():
    fields = {"token_logps": (-1e-3,), "token_entropies": (0.0,), "token_variances": (0.0,)}
    assert metrics.attack_scores([row(**fields)], "min_k_plus_plus")[0] == pytest.approx(1.0)


def test_zlib_divides_by_the_bytes_of_the_compressed_answer():
    texts = ["Paris." * 20, "Zażółć gęślą jaźń"]
    rows = [row(index=i, answer=text, answer_loss=2.0) for i, text in enumerate(texts)]
    expected = [2 / len(zlib.compress(text.encode("utf-8"))) for text in texts]
    assert metrics.attack_scores(rows, "zlib").tolist() == expected
    cut = row(answer="Paris." * 20, scored_text="Paris.", answer_loss=2.8)
    assert metrics.attack_scores([cut], "zlib")[0] == pytest.approx(0.2)


def test_reference_subtracts_row_by_row_and_refuses_other_rows():
    ours, theirs = [row(answer_loss=1.5)], [row(answer_loss=2.0)]
    assert metrics.attack_scores(ours, "reference", reference=theirs).tolist() == [-0.5]
    with pytest.raises(InputError, match="another model"):
        metrics.attack_scores(ours, "reference")
    with pytest.raises(InputError, match="same rows"):
        metrics.attack_scores(ours, "reference", reference=[row(index=1, answer_loss=2.0)])
    with pytest.raises(InputError, match=r"attack must be one of loss, zlib.*'lira'"):
        metrics.attack_scores(ours, "lira")


def scored(values, dataset="forget"):
    return [row(dataset, i, answer_loss=float(value)) for i, value in enumerate(values)]


def test_auc_with_interval_is_the_trapezia_of_scikit_learn():
    generator = np.random.default_rng(3)
    forget, holdout = generator.integers(0, 9, 60), generator.integers(2, 12, 45)
    expected = roc_auc_score([0] * 60 + [1] * 45, [*forget, *holdout])
    found = metrics.attack_auc(scored(forget), scored(holdout, "holdout"), "loss")
    assert found.value == pytest.approx(expected, rel=1e-14)
    assert (found.direction, found.n) == ("retain", 105)
    low, high = found.interval
    assert low < expected < high
    again = metrics.attack_auc(scored(forget), scored(holdout, "holdout"), "loss")
    assert again == found


def test_interval_is_that_of_resampled_rows():
    generator = np.random.default_rng(11)
    forget, holdout = generator.normal(0, 1, 50), generator.normal(0.5, 1, 70)
    low, high = metrics.attack_auc(scored(forget), scored(holdout), "loss").interval
    plain = [
        metrics.auc_of_scores(generator.choice(forget, 50), generator.choice(holdout, 70))
        for _ in range(4000)
    ]
    # A percentile of a few thousand resamples of 120 rows is known to about .005.
    assert (low, high) == pytest.approx(np.percentile(plain, (2.5, 97.5)), abs=0.01)


@pytest.mark.parametrize(("most", "at_once"), [(1, 1), (63, 3), (4_000_000, 2000)])
def test_interval_is_exactly_that_of_the_draws_in_chunks_of_the_memory_there_is(
    monkeypatch, most, at_once
):
    """Of 21 scores 1, 3 or all resamples are drawn at once, the forget rows first."""
    assert membership._MAX_COUNTS == 4_000_000
    monkeypatch.setattr(membership, "_MAX_COUNTS", most)
    forget = np.array([5.0, 1.0, 2.0, 9.0, 14.0, 11.0, 3.0, 16.0, 8.0, 20.0, 6.0, 12.0])
    holdout = np.array([4.0, 7.0, 21.0, 10.0, 15.0, 13.0, 19.0, 18.0, 17.0])
    drawn, original = [], membership._resample
    monkeypatch.setattr(
        membership, "_resample", lambda *given: drawn.append(given[2]) or original(*given)
    )
    generator, aucs, nums = np.random.default_rng(20240611), [], []
    for start in range(0, 2000, at_once):
        num = min(at_once, 2000 - start)
        nums += [num, num]
        mine = forget[generator.integers(0, 12, (num, 12))]
        other = holdout[generator.integers(0, 9, (num, 9))]
        aucs += (mine[:, :, None] < other[:, None]).mean((1, 2)).tolist()
    expected = np.percentile(aucs, (2.5, 97.5))
    assert membership._bootstrap_interval(forget, holdout) == pytest.approx(expected, abs=1e-12)
    assert drawn == nums


def test_interval_holds_the_true_auc_about_95_times_in_100():
    generator = np.random.default_rng(1)
    true = 0.5 * (1 + math.erf(0.5 / 2))  # P(X < Y), Y - X normal with mean .5, variance 2
    hits = 0
    for _ in range(100):
        pair = generator.normal(0, 1, 60), generator.normal(0.5, 1, 60)
        low, high = metrics.attack_auc(scored(pair[0]), scored(pair[1]), "loss").interval
        hits += low <= true <= high
    assert 88 <= hits <= 100


def test_interval_of_full_separation_has_no_width():
    found = metrics.attack_auc(scored([1, 2]), scored([3, 4]), "loss")
    assert (found.value, found.interval) == (1.0, (1.0, 1.0))


def test_interval_counts_ties_half_as_the_auc_does():
    found = metrics.attack_auc(scored([2, 2, 2]), scored([2, 2]), "loss")
    assert (found.value, found.interval) == (0.5, (0.5, 0.5))


def test_two_thousand_resamples_of_two_times_400_rows_take_under_a_second():
    generator = np.random.default_rng(0)
    pair = scored(generator.normal(size=400)), scored(generator.normal(size=400))
    start = time.process_time()
    metrics.attack_auc(*pair, "loss")
    assert time.process_time() - start < 1


def test_an_interval_needs_two_rows_of_each_set():
    with pytest.raises(InputError, match=r"set 'holdout': has 1 row, .* at least 2;.*'loss'"):
        metrics.attack_auc(scored([1, 2]), scored([1], "holdout"), "loss")
    with pytest.raises(InputError, match="no rows"):
        metrics.attack_auc([], scored([1, 2]), "loss")


def test_interval_goes_through_privleak_and_turns_round():
    auc = metrics.Metric(0.7, "retain", 800, (0.6, 0.8))
    leak, difference = metrics.privleak_from_auc(auc, 0.4), metrics.relative_difference(auc, 0.4)
    assert leak.value == pytest.approx(-50, rel=1e-9)
    assert leak.interval == pytest.approx((-100 * 0.4 / 0.6, -100 * 0.2 / 0.6), rel=1e-9)
    assert difference.value == pytest.approx(75, rel=1e-9)
    assert difference.interval == pytest.approx((50, 100), rel=1e-9)
    with pytest.raises(InputError, match=r"data\.retain_results must be above 0"):
        metrics.relative_difference(auc, 0.0)


@pytest.mark.parametrize("field", ["token_logps", "token_entropies", "token_variances"])
def test_token_fields_name_set_row_and_token(field):
    fields = plus_plus_fields(np.eye(4), np.arange(4))
    bad = {**fields, field: (*fields[field][:2], math.nan, fields[field][3])}
    rows = [row(**fields), row(index=7, **bad)]
    match = rf"set 'forget', row 1 \(forget10/7\): {field} must be finite, got nan at token 2"
    with pytest.raises(InputError, match=match):
        metrics.attack_scores(rows, "min_k_plus_plus")
    short = {**fields, field: fields[field][:2]}
    with pytest.raises(InputError, match=rf"row 0 .*2 {field}"):
        metrics.attack_scores([row(**short)], "min_k_plus_plus")


@pytest.mark.parametrize("attack", metrics.ATTACKS)
def test_every_attack_names_the_row_that_lacks_its_field(attack):
    with pytest.raises(InputError, match=r"set 'forget', row 0 \(forget10/0\): \w+ is missing"):
        metrics.attack_scores([row()], attack, reference=[row(answer_loss=1.0)])


def test_an_attack_heeds_its_conventions():
    """Min-K of -1, -1, -1, -5 against -2, -2, -2, -2: 5 and 2; without the last label 1 and 2."""
    known = [row("f", n, token_logps=(-1.0, -1.0, -1.0, -5.0)) for n in range(2)]
    new = [row("h", n, token_logps=(-2.0, -2.0, -2.0, -2.0)) for n in range(2)]
    assert metrics.attack_auc(known, new, "min_k").value == 0
    peer = Conventions(last_label="left_out")
    assert metrics.attack_auc(known, new, "min_k", conventions=peer).value == 1
    assert metrics.min_k_auc(known, new) == 0
    assert metrics.min_k_auc(known, new, peer) == 1


def test_a_relative_difference_is_of_an_auc_above_nought():
    auc = metrics.Metric(0.9, "retain", 8, (0.8, 0.95))
    found = metrics.relative_difference(auc, 0.4)
    exact = [100 * (value - 0.4) / (0.4 + 1e-10) for value in (0.9, 0.8, 0.95)]
    assert [found.value, *found.interval] == pytest.approx(exact, rel=1e-14)
    assert (found.direction, found.n) == ("zero", 8)
    assert metrics.relative_difference(auc, 1.0).value == pytest.approx(-10.0, abs=1e-7)
    for wrong in (0.0, -0.1, 1.1, math.nan):
        with pytest.raises(InputError, match="above 0 and at most 1"):
            metrics.relative_difference(auc, wrong)


def test_privleak_is_of_an_auc_below_one():
    auc = metrics.Metric(0.9, "retain", 8, (0.8, 0.95))
    found = metrics.privleak_from_auc(auc, 0.4)
    exact = [100 * (0.4 - value) / (0.6 + 1e-10) for value in (0.9, 0.95, 0.8)]
    assert [found.value, *found.interval] == pytest.approx(exact, rel=1e-14)
    assert metrics.privleak_from_auc(auc, 0.0).value == pytest.approx(-90.0, abs=1e-7)
    for wrong in (1.0, -0.1, 1.1, math.nan):
        with pytest.raises(InputError, match="from 0 to below 1"):
            metrics.privleak_from_auc(auc, wrong)


def test_other_rows_of_a_reference_are_named_as_such():
    with pytest.raises(InputError, match=r"its set 'other' holds 1 rows, this run's 'forget' 2"):
        metrics.attack_scores(
            [row(index=n, answer_loss=1.0) for n in range(2)],
            "reference",
            reference=[row("other", answer_loss=1.0)],
        )


def test_scores_of_32_bits_are_compared_in_64():
    pair = membership._checked_scores(np.float32([0.1]), np.float32([0.2]))
    assert [one.dtype for one in pair] == [np.float64] * 2
