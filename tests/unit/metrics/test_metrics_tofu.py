import math
import warnings

import numpy as np
import pytest
from scipy import stats

from etw_lightning import metrics
from etw_lightning.metrics.tofu import forget_quality_of
from etw_lightning.schema import InputError, Record


def row(dataset="forget", index=0, **fields):
    return Record(dataset, f"{dataset}10/{index}", fields.pop("answer", "Paris."), **fields)


def ratio_rows(ratios, dataset="forget"):
    """Rows whose truth ratios are ``ratios``, but for the 1e-10 of the formula."""
    return [
        row(dataset, index, paraphrase_loss=1.0, perturbed_losses=(1.0 - math.log(ratio),))
        for index, ratio in enumerate(ratios)
    ]


def test_probability_is_exponential_of_minus_loss():
    values = metrics.probabilities([row(answer_loss=0.5), row(answer_loss=2.0)])
    assert values.tolist() == pytest.approx([math.exp(-0.5), math.exp(-2)], rel=1e-15)


def test_normalised_probability_divides_by_all_alternatives():
    rows = [row("world_facts", answer_loss=1.0, perturbed_losses=(2.0, 3.0, 4.0))]
    weights = [math.exp(-loss) for loss in (1, 2, 3, 4)]
    expected = weights[0] / (sum(weights) + 1e-10)
    assert metrics.normalised_probabilities(rows)[0] == pytest.approx(expected, rel=1e-14)


def test_truth_ratio_is_geometric_over_the_wrong_answers():
    rows = [row(answer_loss=9.0, paraphrase_loss=1.0, perturbed_losses=(2.0, 4.0))]
    expected = math.exp(-3) / (math.exp(-1) + 1e-10)
    assert metrics.truth_ratios(rows)[0] == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("dataset", ["real_authors", "world_facts"])
def test_truth_ratio_uses_gold_where_no_paraphrase_exists(dataset):
    rows = [row(dataset, answer_loss=1.0, perturbed_losses=(3.0,))]
    assert metrics.truth_ratios(rows)[0] == pytest.approx(math.exp(-2), rel=1e-9)


def test_truth_ratio_never_substitutes_gold_elsewhere():
    with pytest.raises(InputError, match=r"set 'forget', row 1 .*forget10/1.*paraphrase_loss"):
        metrics.truth_ratios(
            [*ratio_rows([1.0]), row("forget", 1, answer_loss=1.0, perturbed_losses=(1.0,))]
        )


def test_aggregations():
    assert metrics.closer_to_one([0.25, 4.0]) == pytest.approx(0.25, rel=1e-9)
    assert metrics.closer_to_one([1.0]) == pytest.approx(1.0, rel=1e-9)
    # Ratios of 32 bits are counted with in 64.
    assert metrics.closer_to_one(np.array([3.0], np.float32)) == pytest.approx(1 / 3, rel=1e-9)
    assert metrics.true_better([0.25, 4.0]) == 0.375


def test_forget_quality_by_hand():
    run, retain = ratio_rows([0.1, 0.2, 0.3]), ratio_rows([0.7, 0.8, 0.9])
    result = metrics.forget_quality(run, retain)
    assert (result.d_statistic, result.d_times_n, result.n, result.m) == (1.0, 3, 3, 3)
    assert result.p_value == pytest.approx(2 / 20, rel=1e-12) == result.floor
    assert result.neg_log10 == pytest.approx(1.0)


def test_forget_quality_tells_ratios_below_one_from_their_inverses():
    """min(r, 1/r), which another number of TOFU's uses, would be the same for both."""
    run, retain = ratio_rows([2.0, 4.0, 5.0]), ratio_rows([1 / 2.0, 1 / 4.0, 1 / 5.0])
    result = metrics.forget_quality(run, retain)
    assert (result.d_statistic, result.d_times_n) == (1.0, 3)
    assert result.p_value == pytest.approx(2 / 20, rel=1e-12)
    # 0.5 and 0.25 lie below all others; of three ratios two are to be seen.
    mixed = metrics.forget_quality(ratio_rows([0.5, 2.0, 3.0]), ratio_rows([0.25, 0.3, 0.4]))
    assert mixed.d_times_n == 3
    assert metrics.forget_quality(ratio_rows([0.5, 2.0]), ratio_rows([0.4, 2.0])).d_times_n == 1


def test_forget_quality_of_the_retain_model_itself_is_one():
    result = metrics.forget_quality(ratio_rows([0.1, 2.0]), ratio_rows([0.1, 2.0]))
    assert (result.p_value, result.neg_log10, result.d_times_n) == (1.0, 0.0, 0)
    assert math.copysign(1, result.neg_log10) == 1


def test_forget_quality_keeps_a_finite_logarithm_below_the_float_range():
    n = 600
    result = metrics.forget_quality(ratio_rows([0.1] * n), ratio_rows([0.9] * n))
    assert result.p_value == result.floor == 0.0
    # Stirling: C(2n, n) = 4^n / sqrt(pi n) * (1 - 1/(8n) + ...)
    stirling = n * math.log10(4) - math.log10(math.pi * n) / 2 - math.log10(2)
    assert result.neg_log10 == pytest.approx(stirling, abs=1e-3)


@pytest.mark.parametrize("n", [7, 15, 60])
def test_the_smallest_distance_is_surely_chance_and_makes_no_noise(n, recwarn):
    ratios = [1 + index / n for index in range(n)]
    result = metrics.forget_quality(ratio_rows(ratios), ratio_rows([r + 0.5 / n for r in ratios]))
    assert (result.d_times_n, result.p_value, len(recwarn)) == (1, 1.0, 0)


@pytest.mark.parametrize(("rows", "n"), [(3, 600), (40, 600), (300, 600), (27, 200)])
def test_exact_logarithm_equals_scipy_where_scipy_can(rows, n):
    from scipy.stats import ks_2samp

    p_value = ks_2samp(range(n), [value + rows - 0.5 for value in range(n)]).pvalue
    exact = metrics.tofu._neg_log10_exact(rows, n)
    assert exact == pytest.approx(-math.log10(p_value), rel=1e-9, abs=1e-9)


def test_forget_quality_names_both_sets_when_rows_differ_in_number():
    with pytest.raises(InputError, match=r"data\.retain_results: .*'forget' holds 3 rows.* 2:"):
        metrics.forget_quality(ratio_rows([1.0, 1.0]), ratio_rows([1.0] * 3))


def test_forget_quality_refuses_other_ids_and_other_answers():
    (ours,) = ratio_rows([1.0])
    fields = {"paraphrase_loss": 1.0, "perturbed_losses": (1.0,)}
    with pytest.raises(InputError, match=r"row 0 is forget05/0 .*forget10/0"):
        metrics.forget_quality([ours], [Record("forget", "forget05/0", "Paris.", **fields)])
    with pytest.raises(InputError, match=r"'Rome\.'.*'Paris\.'"):
        metrics.forget_quality([ours], [Record("forget", "forget/0", "Rome.", **fields)])


def test_forget_quality_accepts_logs_without_ids_and_other_spacing():
    (ours,) = ratio_rows([1.0])
    fields = {"paraphrase_loss": 1.0, "perturbed_losses": (1.0,)}
    for answer in ("Paris .", ""):
        theirs = Record("forget", "forget/0", answer, **fields)
        assert metrics.forget_quality([ours], [theirs]).p_value == 1.0


def utility_sets():
    fields = {"answer_loss": 1.0, "perturbed_losses": (2.0, 2.0), "generation": "Paris, France"}
    return {
        "retain": [row("retain", paraphrase_loss=1.0, **fields)],
        "real_authors": [row("real_authors", **fields)],
        "world_facts": [row("world_facts", **fields, answer="Paris Texas")],
    }


def test_model_utility_by_hand():
    result = metrics.model_utility(utility_sets())
    choice = 1 / (1 + 2 * math.exp(-1))
    ratio = 1 - math.exp(-1)
    expected = {
        "retain_probability": math.exp(-1),
        "retain_rouge": 1.0,
        "retain_truth_ratio": ratio,
        "real_authors_probability": choice,
        "real_authors_rouge": 1.0,
        "real_authors_truth_ratio": ratio,
        "world_facts_probability": choice,
        "world_facts_rouge": 0.5,
        "world_facts_truth_ratio": ratio,
    }
    assert result.parts == pytest.approx(expected, rel=1e-9)
    assert result.value == pytest.approx(9 / sum(1 / part for part in expected.values()), rel=1e-9)
    assert result.n == 3


def test_model_utility_is_zero_with_a_zero_part_and_an_error_without_a_set():
    sets = utility_sets()
    sets["world_facts"] = [
        row("world_facts", answer_loss=1.0, perturbed_losses=(1.0,), generation="London")
    ]
    assert metrics.model_utility(sets).value == 0.0
    del sets["world_facts"]
    with pytest.raises(InputError, match="'world_facts'"):
        metrics.model_utility(sets)


def test_truth_probability_is_one_over_one_plus_the_ratio():
    rows = [row(answer_loss=9.0, paraphrase_loss=1.0, perturbed_losses=(2.0, 4.0))]
    expected = math.exp(-1) / (math.exp(-1) + math.exp(-3) + 1e-10)
    assert metrics.truth_probabilities(rows)[0] == pytest.approx(expected, rel=1e-15)
    ratio = metrics.truth_ratios(rows)[0]
    assert metrics.truth_probabilities(rows)[0] == pytest.approx(1 / (1 + ratio), rel=1e-9)


def test_three_ways_to_one_truth_ratio():
    rows = ratio_rows([0.25, 4.0, 0.5])
    expected = {
        "closer_to_one": (0.25 + 0.25 + 0.5) / 3,
        "true_better": (0.75 + 0 + 0.5) / 3,
        "mean_probability": (0.8 + 0.2 + 2 / 3) / 3,
    }
    for name, value in expected.items():
        assert metrics.truth_ratio(rows, name).value == pytest.approx(value, rel=1e-9)
    forget, retain = (
        {name: metrics.truth_ratio(ratio_rows([1.0], one), name).direction for name in expected}
        for one in ("forget_paraphrased", "retain")
    )
    assert forget == {"closer_to_one": "up", "true_better": "down", "mean_probability": "down"}
    assert retain == {"closer_to_one": "down", "true_better": "up", "mean_probability": "up"}


def test_paraphrased_questions_are_rows_like_any_other():
    run, retain = (ratio_rows(r, "forget_paraphrased") for r in ([0.1, 0.2], [0.7, 0.8]))
    assert metrics.forget_quality(run, retain).d_times_n == 2
    sets = utility_sets()
    whole = metrics.model_utility(sets)
    sets["retain_paraphrased"] = sets.pop("retain")
    result = metrics.model_utility(sets, "retain_paraphrased")
    assert result.value == whole.value
    assert result.parts["retain_paraphrased_probability"] == whole.parts["retain_probability"]


def test_paraphrased_answers_have_their_own_loss_and_text():
    fields = {"answer_loss": 1.0, "generation": "In Paris", "answer": "Paris."}
    rows = [row(paraphrase_loss=3.0, paraphrase="It is in Paris.", **fields)]
    assert metrics.paraphrase_probabilities(rows)[0] == pytest.approx(math.exp(-3), rel=1e-15)
    assert metrics.rouge_values(rows, "rougeL_recall", "paraphrase").tolist() == [0.5]
    with pytest.raises(InputError, match=r"set 'forget', row 0 .*paraphrase is missing"):
        metrics.rouge_values([row(**fields)], "rougeL_recall", "paraphrase")


@pytest.mark.parametrize(("n", "is_exact"), [(10_000, True), (10_001, False)])
def test_a_forget_quality_that_is_no_exact_one_says_so(n, is_exact):
    ratios = np.arange(n) / n
    shifted = ratios + 0.05
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = forget_quality_of(ratios, shifted)
    said = [str(one.message) for one in caught]
    assert any("forget quality of 10001 rows is not exact" in one for one in said) == (not is_exact)
    method = "exact" if is_exact else "asymp"
    assert found.p_value == stats.ks_2samp(ratios, shifted, method=method).pvalue


@pytest.mark.parametrize(("one", "other"), [([], []), ([1.0], [1.0, 2.0]), ([], [1.0])])
def test_forget_quality_is_of_as_many_ratios(one, other):
    with pytest.raises(InputError, match="no rows to score, or other ones"):
        forget_quality_of(one, other)


def test_forget_quality_of_more_rows_than_scipy_counts_is_told(monkeypatch):
    said = []
    assert metrics.tofu.EXACT_ROWS == 10_000
    monkeypatch.setattr(metrics.tofu, "EXACT_ROWS", 3)
    monkeypatch.setattr(metrics.tofu, "warn_first", said.append)
    forget_quality_of([1.0, 2.0, 3.0], [1.0, 2.0, 3.0])
    assert said == []
    forget_quality_of([1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0])
    assert len(said) == 1
    assert said[0].startswith("forget quality of 4 rows is not exact: above 3 rows")


def test_ratios_of_32_bits_are_averaged_in_64():
    """1 - r of the float32 nearest to .1, whose mean in float32 would be another."""
    near = 13421773 / 2**27
    assert metrics.true_better(np.float32([0.1])) == 1 - near
    assert metrics.closer_to_one(np.float32([0.1])) == near
