"""Our metrics from values stored by an independent implementation; no model is run.

What locuslab/open-unlearning at d3d7cf9 reported of small models must come out of the values it
stored of each row; see README.md beside them. ``test_oracle_evals.py`` scores those models itself.
"""

import json
from functools import cache

import numpy as np
import pytest

from etw_lightning import metrics
from etw_lightning.schema import Record
from etw_lightning.scoring.retain_results import load_retain_results

TOFU = ("model_a_pad", "model_a", "model_retain")
MUSE = ("model_a", "model_retain")
RUNS = [*(("tofu", model) for model in TOFU), *(("muse", model) for model in MUSE)]
SETS = {"forget": "forget", "retain": "retain", "ra": "real_authors", "wf": "world_facts"}


@pytest.fixture(scope="module")
def read(data_dir):
    folder = data_dir.parent / "oracle"
    if not folder.is_dir():
        pytest.skip("no stored evaluations: put the folder oracle/ beside the data")

    @cache
    def read_evaluation(benchmark, model):
        path = folder / "evals" / f"{benchmark}_{model}" / f"{benchmark.upper()}_EVAL.json"
        return json.loads(path.read_text(encoding="utf-8")), load_retain_results(path).records

    return read_evaluation


def column(log, field):
    return [row[field] for row in log["value_by_index"].values()]


def sides(log, attack):
    return [column(log[f"mia_{attack}"][side], "score") for side in ("forget", "holdout")]


@pytest.mark.parametrize(("benchmark", "model"), RUNS)
def test_auc_of_every_stored_attack(read, benchmark, model):
    log, _ = read(benchmark, model)
    attacks = [key.removeprefix("mia_") for key in log if key.startswith("mia_")]
    assert len(attacks) == (6 if (benchmark, model) == ("tofu", "model_a") else 4)
    for attack in attacks:
        auc = metrics.auc_of_scores(*sides(log, attack))
        assert auc == pytest.approx(log[f"mia_{attack}"]["auc"], rel=1e-12)


def test_reference_scores_are_losses_less_the_retain_models(read):
    log, retain = read("tofu", "model_a")[0], read("tofu", "model_retain")[0]
    for side, stored in zip(("forget", "holdout"), sides(log, "reference"), strict=True):
        pair = [
            [
                Record(side, f"{side}/{i}", "", answer_loss=loss)
                for i, loss in enumerate(column(one["mia_loss"][side], "score"))
            ]
            for one in (log, retain)
        ]
        ours = metrics.attack_scores(pair[0], "reference", reference=pair[1])
        np.testing.assert_allclose(ours, stored, rtol=0, atol=1e-12)


@pytest.mark.parametrize("model", TOFU)
def test_zlib_scores_from_losses_and_texts(read, model):
    log, records = read("tofu", model)
    # Their template's line breaks before the answer are labelled, and so part of the text.
    rows = [
        Record("forget", f"forget/{i}", f"\n\n{record.answer}", answer_loss=loss)
        for i, (record, loss) in enumerate(
            zip(records["forget"], sides(log, "loss")[0], strict=True)
        )
    ]
    ours = metrics.attack_scores(rows, "zlib")
    np.testing.assert_allclose(ours, sides(log, "zlib")[0], rtol=1e-12)


@pytest.mark.parametrize(
    ("benchmark", "model"), [("tofu", "model_a_pad"), ("tofu", "model_a"), ("muse", "model_a")]
)
def test_privleak_against_the_retain_model(read, benchmark, model):
    log, retain = read(benchmark, model)[0], read(benchmark, "model_retain")[0]
    auc, retain_auc = (metrics.auc_of_scores(*sides(one, "min_k")) for one in (log, retain))
    n = sum(map(len, sides(log, "min_k")))
    leak = metrics.privleak_from_auc(metrics.Metric(auc, "retain", n), retain_auc)
    assert leak.value == pytest.approx(log["privleak"]["agg_value"], rel=1e-12)
    assert metrics.abs_privleak(leak).value == -leak.value


@pytest.mark.parametrize("model", TOFU)
def test_utility_and_its_parts(read, model):
    log, records = read("tofu", model)
    result = metrics.model_utility(records)
    # Probabilities were stored in float32; the other six parts are equal to the last digits.
    assert result.value == pytest.approx(log["model_utility"]["agg_value"], rel=3e-8)
    parts = dict(result.parts)
    for key in ("retain", "ra", "wf"):
        name = SETS[key]
        probability = f"{key}_Q_A_Prob" + ("" if key == "retain" else "_normalised")
        for part, metric, tolerance in (
            ("probability", probability, 6e-8),
            ("rouge", f"{key}_Q_A_ROUGE", 1e-12),
            ("truth_ratio", f"{key}_Truth_Ratio", 1e-12),
        ):
            stored = log[metric]["agg_value"]
            assert parts[f"{name}_{part}"] == pytest.approx(stored, rel=tolerance)
            if part == "probability":
                parts[f"{name}_{part}"] = stored
    utility = metrics.harmonic_mean(list(parts.values()))
    assert utility == pytest.approx(log["model_utility"]["agg_value"], rel=1e-12)


@pytest.mark.parametrize("model", TOFU)
def test_truth_ratios_and_forget_quality(read, model):
    log, records = read("tofu", model)
    for key, name in SETS.items():
        stored = log["forget_truth_ratio" if key == "forget" else f"{key}_Truth_Ratio"]
        ratios = metrics.truth_ratios(records[name])
        np.testing.assert_allclose(ratios, column(stored, "score"), rtol=1e-12)
        how = "closer_to_one" if key == "forget" else "true_better"
        ours = metrics.truth_ratio(records[name], how)
        assert ours.value == pytest.approx(stored["agg_value"], rel=1e-12)
    if model != "model_retain":
        retain = read("tofu", "model_retain")[1]
        quality = metrics.forget_quality(records["forget"], retain["forget"])
        assert quality.p_value == pytest.approx(log["forget_quality"]["agg_value"], rel=1e-12)


@pytest.mark.parametrize("model", TOFU)
def test_probabilities_of_paraphrased_answers(read, model):
    log, records = read("tofu", model)
    for key in ("forget", "retain"):
        stored = log[f"{key}_Q_A_PARA_Prob"]
        ours = metrics.paraphrase_probabilities(records[SETS[key]])
        np.testing.assert_allclose(ours, column(stored, "prob"), rtol=2.4e-7)  # float32 there
        assert ours.mean() == pytest.approx(stored["agg_value"], rel=6e-8)


@pytest.mark.parametrize(("benchmark", "model"), RUNS)
def test_memorisation_means_carry_the_floor(read, benchmark, model):
    log, _ = read(benchmark, model)
    for metric in ("extraction_strength", "exact_memorization"):
        mean = metrics.Metric.mean(column(log[metric], "score"), "down").value
        assert mean == pytest.approx(log[metric]["agg_value"], rel=1e-12)
    assert min(column(log["extraction_strength"], "score")) > 0


@pytest.mark.parametrize(("benchmark", "model"), RUNS)
def test_every_stored_rouge_value(read, benchmark, model):
    log, _ = read(benchmark, model)
    for metric in (key for key in log if key.endswith("_ROUGE")):
        for row in log[metric]["value_by_index"].values():
            ours = metrics.rouge_scores(row["generation"], row["ground_truth"])
            for name in ("rouge1_recall", "rougeL_recall", "rougeL_f1"):
                assert ours[name] == pytest.approx(row[name], abs=1e-12)
