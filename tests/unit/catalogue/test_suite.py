"""The catalogue offers what readers can read, and every number has a page."""

import inspect
import re
from dataclasses import replace

import pytest

from etw_lightning.benchmarks.dusk import DUSK
from etw_lightning.benchmarks.muse import MUSE
from etw_lightning.benchmarks.r_tofu import RTOFU
from etw_lightning.benchmarks.tofu import TOFU
from etw_lightning.callbacks.evaluation import ForgetQuality, ModelUtility, SetScores, Suite
from etw_lightning.catalogue.attacked import OF_ATTACKS
from etw_lightning.catalogue.listing import CATALOGUE, FAMILIES, KEYS, Given
from etw_lightning.catalogue.suite import explain, is_known_number, select
from etw_lightning.metrics import forget_quality
from etw_lightning.schema import InputError, Record

LABELS = ("Formula", "Unit", "Range", "Direction", "Empty input", "Source",
          "Differs from widely used code")  # fmt: skip
ANSWERS, BOTH = frozenset({"answers"}), frozenset({"answers", "generation"})


@pytest.mark.parametrize("name", CATALOGUE)
def test_every_metric_has_a_whole_page(name):
    for function in CATALOGUE[name].pages:
        page = inspect.getdoc(function)
        found = re.findall(rf"^({'|'.join(LABELS)}): \S", page, re.MULTILINE)
        assert tuple(found) == LABELS
        worked = page.split("Differs from widely used code: ")[1].split("\n\n")[0]
        assert re.search(r"\d", worked) or "membership_similarity" in worked, "a worked example"
        assert ">>>" in page
        assert page.splitlines()[0] in explain(name)


@pytest.mark.parametrize("name", CATALOGUE)
def test_every_set_is_one_that_a_reader_offers(name):
    offered = {"tofu": set(TOFU.EVAL_SETS), "muse": set(MUSE.EVAL_SETS), "choice": {"*"},
               "own": {"forget", "retain", "holdout"}, "dusk": set(DUSK.EVAL_SETS),
               "reasoning": set(RTOFU.EVAL_SETS)}  # fmt: skip
    for family, sets in CATALOGUE[name].sets.items():
        assert set(sets) <= offered[family]


def test_only_what_the_metrics_read_is_scored():
    plan = select(["forget_quality"], "tofu", ["retain"])
    assert plan.parts == plan.retain_parts == {"forget": ANSWERS}
    assert plan.target_parts == {}
    plan = select(["model_utility", "forget_quality"], "tofu", ["retain"])
    assert list(plan.entries) == ["forget_quality", "model_utility"]
    assert plan.parts == {"forget": ANSWERS} | dict.fromkeys(
        ("retain", "real_authors", "world_facts"), BOTH
    )
    assert plan.retain_parts == {"forget": ANSWERS}


def test_the_whole_suite_says_what_it_leaves_out_and_why():
    plan = select(None, "tofu", ["retain"], sets=["forget", "retain"], retain_sets=["forget"])
    assert "forget_quality" in plan.entries
    assert plan.left_out["memorisation_score"] == f"needs {KEYS['target']}"
    assert plan.left_out["mia_loss"].startswith("needs rows of holdout")
    assert set(plan.entries).isdisjoint(plan.left_out)
    assert set(plan.entries) | set(plan.left_out) == {
        name for name, entry in CATALOGUE.items() if "tofu" in entry.sets
    }
    full = select(None, "tofu", ["retain"], sets=TOFU.EVAL_SETS, retain_sets=["forget"])
    assert full.left_out["privleak"] == "needs rows of holdout in data.retain_results"


@pytest.mark.parametrize("family", sorted(set(FAMILIES.values())))
def test_with_everything_at_hand_only_the_slow_ones_are_left_out(family):
    benchmark = next(name for name, one in FAMILIES.items() if one == family)
    left = select(None, benchmark, list(KEYS), sets=["s"] if family == "choice" else None).left_out
    assert set(left.values()) <= {"slow: only evaluate --metrics computes it"}


def test_all_sets_of_a_choice_benchmark_are_scored():
    assert select(None, "choice", sets=["bio", "mmlu"]).parts == {"bio": ANSWERS, "mmlu": ANSWERS}


@pytest.mark.parametrize(
    ("names", "benchmark", "said"),
    [
        (["forget_qualty"], "tofu", "got 'forget_qualty'. Did you mean 'forget_quality'?"),
        (["verbmem"], "tofu", "metrics: verbmem is not defined for data.benchmark tofu, which has"),
        (["privleak"], "muse_news", "privleak needs data.retain_results or data.retain_model;"),
        ([], "tofu", "metrics must name at least one of forget_quality, "),
    ],
)
def test_what_cannot_be_computed_is_one_line(names, benchmark, said):
    with pytest.raises(InputError) as caught:
        select(names, benchmark)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_explain_prints_formula_source_and_where_the_code_is():
    page = explain("forget_quality")
    assert "arXiv:2401.06121" in page
    assert "Code: etw_lightning.metrics.tofu.forget_quality" in page
    assert "Needs: data.retain_results or data.retain_model." in page
    with pytest.raises(InputError, match="Did you mean 'privleak'"):
        explain("privleek")


def test_the_plan_computes_what_the_function_says():
    rows = [
        Record("forget", f"f/{i}", "a", paraphrase_loss=1.0, perturbed_losses=(0.3 * i,))
        for i in range(5)
    ]
    retain = [
        Record("forget", f"f/{i}", "a", paraphrase_loss=1.0, perturbed_losses=(0.9 * i,))
        for i in range(5)
    ]
    plan = select(["forget_quality"], "tofu", ["retain"])
    found = plan.compute(Given({"forget": rows}, retain={"forget": retain}))
    quality = forget_quality(rows, retain)
    assert found["forget_quality"].value == quality.p_value
    assert found["forget_d_times_n"].value == quality.d_times_n
    assert found["forget_quality_floor"].value == quality.floor
    assert list(found) == ["forget_quality", "neg_log10_forget_quality", "forget_d_times_n",
                           "forget_quality_floor"]  # fmt: skip


TOFU_SETS = ("forget", "retain", "real_authors", "world_facts", "holdout", "forget_paraphrased",
             "retain_paraphrased")  # fmt: skip
MUSE_SETS = ("verbmem", "knowmem_forget", "knowmem_retain", "privleak_forget", "privleak_holdout")


def scored(name, loss, matches=(1, 1)):
    """Two rows with everything that can be scored; the holdout set is less likely."""
    loss += 0.4 * name.endswith("holdout")
    return [
        Record(name, f"{name}/{i}", "a B 7 c@d.ef", question="q", answer_loss=loss + 0.1 * i,
               paraphrase_loss=loss + 0.3, perturbed_losses=(loss + 0.5 + i, loss),
               token_logps=(-loss, -loss - 0.5 * i), token_entropies=(1.0, 2.0),
               token_variances=(1.0, 1.0), token_matches=matches, token_spans=((0, 1), (1, 3)),
               gradient_norm=loss + i, generation="a b", paraphrase="a b", choices=("x", "y"),
               choice_logps=(-1.0, -2.0), choice_num_tokens=(1, 1), right_choice=i)
        for i in range(2)
    ]  # fmt: skip


def given_all(sets, target_matches=(1, 1)):
    run, retain = ({name: scored(name, loss, (0, 1)) for name in sets} for loss in (1.2, 1.0))
    # No attack tells all rows apart: of one the label is far from what is expected.
    for rows in (run, retain):
        for name in ("forget", "privleak_forget", "privleak_retain"):
            if name in rows:
                rows[name][1] = replace(rows[name][1], token_logps=(-9.0, -9.5))
    clean = {name: [0.5, 0.9] for name in sets}
    return Given(
        run,
        retain=retain,
        target={name: scored(name, 0.5, target_matches) for name in sets},
        spans={name: [[(0, 1)]] * 2 for name in sets},
        clean={"run": clean, "target": clean},
        generations={name: scored(name, 1.0) for name in sets},
        depth=([[1.0], []], [[0.5], []]),
        spacy_spans={k: {n: [[(0, 1)]] * 2 for n in sets} for k in ("nouns", "entities")},
    )


@pytest.fixture(scope="module")
def emitted():
    """Every number of every family, by family and metric."""
    found = {}
    for benchmark, sets in (("tofu", TOFU_SETS), ("muse_news", MUSE_SETS), ("choice", ("bio",)),
                            ("dusk", DUSK.EVAL_SETS), ("r_tofu", RTOFU.EVAL_SETS),
                            ("jsonl", ("forget", "retain", "holdout"))):  # fmt: skip
        family = FAMILIES[benchmark]
        table = [name for name, entry in CATALOGUE.items() if family in entry.sets]
        given = given_all(sets)
        if family == "reasoning":
            given = replace(given, records={
                name: [replace(one, answer=f"Hm.</think>{one.answer}") for one in rows]
                for name, rows in given.records.items()
            })  # fmt: skip
        plans = {name: select([name], benchmark, list(KEYS), sets, sets) for name in table}
        found[family] = {name: plan.compute(given) for name, plan in plans.items()}
    return found


def test_every_number_in_the_results_has_its_metric_s_pages(emitted):
    for family, by_metric in emitted.items():
        for metric, numbers in by_metric.items():
            (first, *_), entry = CATALOGUE[metric].pages, CATALOGUE[metric]
            for name in numbers:
                said = explain(name)
                assert said.startswith(f"{name}\n"), (family, name)
                assert name == metric or f"\nA number of {metric}.\n" in said
                assert f"Code: {first.__module__}.{first.__qualname__}" in said
            made = {name for found in emitted.values() for name in found.get(metric, ())}
            for form in entry.emits:
                before, _, after = form.partition("{set}")
                assert any(x.startswith(before) and x.endswith(after) for x in made), form


def test_no_two_metrics_make_a_number_of_one_name(emitted):
    for by_metric in emitted.values():
        names = [name for numbers in by_metric.values() for name in numbers]
        assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("abs_privleak", "Formula: abs(privleak)"),
        ("neg_log10_forget_quality", "Formula: -log10(p)"),
        ("forget_quality_floor", "Formula: 2 / C(2n, n)"),
        ("forget_probability_of_paraphrase", "Formula: exp(-paraphrase_loss)"),
        ("retain_rougeL_f1_against_paraphrase", "Formula: recall = matches"),
        ("mia_loss", "``loss``: mean negative log-likelihood"),
        ("mia_min_k", "Formula: -mean of the int(k n) smallest"),
        ("paper_aggregate_retain", "Formula: -log10 FQ * dMU"),
        ("utility_drop_target", "Formula: 100 * (start - run)"),
        ("holdout_probability", "Formula: exp(-answer_loss)"),
        ("forget_rouge", "Formula: mean over rows of ``rouge_scores``"),
        ("my_bio_accuracy_norm", "A number of choice_accuracy."),
        ("lm_eval_mmlu_acc", "lm-evaluation-harness"),
    ],
)
def test_explain_finds_the_formula_of_a_number(name, said):
    assert said in explain(name)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("leak_at_k", "1 - C(n - c, k) / C(n, k)"),
        ("forget_leak_at_16", "A number of leak_at_k."),
        ("forget_rouge_at_4", "A number of leak_at_k."),
        ("refusal_stability", "Made by: attack sample, best_wording."),
        ("retain_refusal_stability", "1 - flip rate of arXiv:2512.12066"),
        ("forget_refusal_agreement", "max(p, 1 - p)"),
        ("recovered_by_retain", "(after - before) / (target - before)"),
        ("robustness", "2 R Q / (R + Q)"),
    ],
)
def test_explain_has_pages_of_what_attacks_make(name, said):
    assert said in explain(name)
    for other in OF_ATTACKS.values():
        assert not any(is_known_number(form.format(set="forget", k=1)) for form in other.emits)


def test_explain_hints_at_numbers_of_attacks():
    with pytest.raises(InputError, match=r"of attacks leak_at_k, .*Did you mean 'refusal_stab"):
        explain("refusal_stabilty")


def test_explain_hints_at_numbers_too():
    with pytest.raises(InputError, match="Did you mean 'forget_rougeL_recall'"):
        explain("forget_rougeL_recal")


def test_directions_say_where_the_best_value_is(emitted):
    numbers = {k: v for found in emitted["tofu"].values() for k, v in found.items()}
    by_direction = {}
    for name, metric in numbers.items():
        by_direction.setdefault(metric.direction, set()).add(name)
    changes = {f"mia_{name}_relative_difference" for name in
               ("loss", "zlib", "min_k", "min_k_plus_plus")}  # fmt: skip
    assert by_direction["zero"] == {"privleak", *changes}
    assert by_direction["retain"] == {
        "mean_token_probabilities", "mean_token_entropies",
        *(f"mia_{name}" for name in ("loss", "zlib", "min_k", "min_k_plus_plus", "reference",
                                     "gradient_norm")),
    }  # fmt: skip
    assert by_direction["none"] == {
        "forget_quality_floor", "forget_quality_floor_paraphrased", "forget_rows_without_depth",
        *(f"{name}_refusals" for name in ("forget", "retain")),
    }  # fmt: skip


def test_what_cannot_be_computed_does_not_lose_the_whole_suite():
    given = given_all(TOFU_SETS, target_matches=(0, 0))
    cut = [replace(row, token_spans=((0, 1), (1, 2))) for row in given.retain["forget"]]
    given = replace(given, spans={"forget": [[]] * 2}, generations={},
                    retain={**given.retain, "forget": cut})  # fmt: skip
    callback = Suite()
    callback.plan = plan = select(None, "tofu", list(KEYS), TOFU_SETS, TOFU_SETS)
    found = callback.compute(given)
    assert {"forget_quality", "mia_loss", "privacy_score"} <= found.keys()
    assert set(callback.details) == {"token_probabilities", "token_entropies"}
    lost = {"memorisation_score", "unlearning_score", "token_auc", "token_auc_tnpo",
            "token_auc_spacy", "token_gap", "generation_perplexity"}  # fmt: skip
    assert plan.failed.keys() == lost
    assert plan.failed["memorisation_score"].startswith("extraction_strength: the target model has")
    assert callback.left_out == {**plan.left_out, **plan.failed}
    assert "unlearning_depth" in callback.left_out
    # The next evaluation may go well.
    plan.compute(given_all(TOFU_SETS))
    assert plan.failed == {}
    for name in lost:
        with pytest.raises(InputError):
            select([name], "tofu", list(KEYS), TOFU_SETS, TOFU_SETS).compute(given)


def test_another_model_s_number_that_cannot_be_had_is_left_out():
    given = given_all(TOFU_SETS)
    parts = dict.fromkeys(TOFU_SETS, BOTH)
    plan = select(["mia_loss", "probability"], "tofu", list(KEYS), TOFU_SETS, TOFU_SETS)
    broken = {**given.retain, "holdout": given.retain["holdout"][:1]}
    found = plan.compute_of_other(given, broken, parts)
    assert "mia_loss" not in found
    assert "forget_probability" in found
    with pytest.raises(InputError, match="has 1 row"):
        plan.compute(replace(given, records=broken))


def test_a_suite_of_which_nothing_can_be_computed_is_an_error():
    plan = select(None, "choice", sets=["bio"])
    with pytest.raises(InputError, match=r"none can be computed; choice_accuracy: .*choice"):
        plan.compute(Given({"bio": [Record("bio", "bio/0", "x")]}))


def test_callbacks_name_and_count_as_the_suite_does(emitted):
    given = given_all(TOFU_SETS)
    given = replace(given, records={**given.records, "world_facts": scored("world_facts", 1)[:1]})
    names = ["forget_quality", "model_utility", "probability", "rouge", "truth_ratio"]
    suite = select(names, "tofu", list(KEYS), TOFU_SETS, TOFU_SETS).compute(given)
    few = replace(given, records={name: given.records[name] for name in ("forget", "retain")})
    found = ForgetQuality().compute(given)
    scores = SetScores().compute(few)
    utility = ModelUtility().compute(given)
    for numbers in (found, scores, utility):
        assert numbers == {name: suite[name] for name in numbers}
    assert list(found) == ["forget_quality", "neg_log10_forget_quality", "forget_d_times_n",
                           "forget_quality_floor", "forget_probability", "forget_rougeL_recall",
                           "forget_truth_ratio_closer_to_one"]  # fmt: skip
    assert set(scores) == {*list(found)[4:], "retain_probability", "retain_rougeL_recall",
                           "retain_truth_ratio_true_better"}  # fmt: skip
    assert utility["model_utility_world_facts_rouge"].n == 1
