import inspect
import math

import pytest

from etw_lightning import metrics
from etw_lightning.schema import InputError, Record


def row(dataset="forget", index=0, **fields):
    return Record(dataset, f"{dataset}10/{index}", fields.pop("answer", "Paris."), **fields)


EMPTY = {
    "probabilities": lambda: metrics.probabilities([]),
    "normalised": lambda: metrics.normalised_probabilities([]),
    "truth_ratios": lambda: metrics.truth_ratios([]),
    "closer_to_one": lambda: metrics.closer_to_one([]),
    "true_better": lambda: metrics.true_better([]),
    "rouge_values": lambda: metrics.rouge_values([], "rougeL_f1"),
    "forget_quality": lambda: metrics.forget_quality([], []),
    "harmonic_mean": lambda: metrics.harmonic_mean([]),
    "verbmem": lambda: metrics.verbmem([]),
    "min_k_score": lambda: metrics.min_k_score([]),
    "min_k_auc, forget": lambda: metrics.min_k_auc([], [row(min_k=1.0)]),
    "min_k_auc, holdout": lambda: metrics.min_k_auc([row(min_k=1.0)], []),
    "mean": lambda: metrics.Metric.mean([], "up"),
}


@pytest.mark.parametrize("name", EMPTY)
def test_empty_input_is_an_error(name):
    with pytest.raises(InputError, match=r"no rows|harmonic"):
        EMPTY[name]()


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("field", ["answer_loss", "paraphrase_loss", "perturbed_losses", "min_k"])
def test_non_finite_fields_name_set_and_row(field, value):
    fields = {"answer_loss": 1.0, "paraphrase_loss": 1.0, "perturbed_losses": (1.0,), "min_k": 1.0}
    bad = row(index=7, **{**fields, field: (1.0, value) if field == "perturbed_losses" else value})
    rows = [row(**fields), bad]
    score = {
        "answer_loss": metrics.probabilities,
        "min_k": lambda both: metrics.min_k_auc(both, both),
    }.get(field, metrics.truth_ratios)
    with pytest.raises(InputError, match=rf"set 'forget', row 1 \(forget10/7\): {field} must be"):
        score(rows)


def test_importing_metrics_imports_no_heavy_package():
    import subprocess
    import sys

    code = (
        "import sys, etw_lightning.metrics, etw_lightning.scoring.retain_results;"
        "import etw_lightning.runs.results;"
        "print([n for n in ('torch','scipy','sklearn','rouge_score','rich') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


#: Labelled paragraphs of a metric's page, in order.
LABELS = (
    "Formula",
    "Unit",
    "Range",
    "Direction",
    "Empty input",
    "Source",
    "Differs from widely used code",
)
MODULES = (
    "likelihoods",
    "tofu",
    "text",
    "attacks",
    "membership",
    "memorisation",
    "aggregate",
)
#: Steps of a metric that others read too; its page is the metric's.
STEPS = ("forget_quality_of", "gold_continuations", "model_utility_of", "utility_values")
PAGES = [
    (module, name)
    for module in MODULES
    for name in getattr(metrics, module).__all__
    if inspect.isfunction(getattr(getattr(metrics, module), name)) and name not in STEPS
]


@pytest.mark.parametrize(("module", "name"), PAGES)
def test_every_metric_has_a_page_and_is_offered_by_the_package(module, name):
    function = getattr(getattr(metrics, module), name)
    assert getattr(metrics, name) is function
    page = inspect.getdoc(function)
    places = [page.find(f"\n{label}: ") for label in LABELS]
    assert all(place > 0 for place in places), dict(zip(LABELS, places, strict=True))
    assert places == sorted(places)
    assert "Example:" in page
    differs = page[places[-1] :].split("\n\n")[0]
    assert any(letter.isdigit() for letter in differs) or "membership_similarity" in differs
