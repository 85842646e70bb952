"""How each entry of the catalogue goes from records to named numbers; holds no formula."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal, get_args

from etw_lightning import metrics
from etw_lightning.catalogue.entries import Compute, Given, Sets
from etw_lightning.catalogue.token_weights import weights_from_records
from etw_lightning.metrics import Attack, Metric, RougeName, TruthRatioName
from etw_lightning.metrics.depth import unlearning_depth as depth_of
from etw_lightning.metrics.still_said import ItemKind, items_of, still_said_of_kind
from etw_lightning.metrics.token_probabilities import (
    probability_gap,
    token_histograms,
    token_rows,
)
from etw_lightning.metrics.tokens import mark_tokens, token_auc
from etw_lightning.schema import InputError, Record
from etw_lightning.weighting import ETW, TNPO, WGA, Annotated, SatImp, TokenWeighting

Found = dict[str, Metric]


def _direction(name: str) -> Literal["up", "down"]:
    return "down" if name.startswith(("forget", "verbmem", "knowmem_forget")) else "up"


def _has(records: Sequence[Record], name: str) -> bool:
    """Whether a set has a field; one that some rows lack is left to the metric."""
    return any(getattr(record, name) not in (None, ()) for record in records)


def forget_quality(given: Given, sets: tuple[str, ...]) -> Found:
    """Forget quality with D*n and floor; ``_paraphrased`` behind the names for other questions."""
    (name,) = sets
    assert given.retain is not None
    quality = metrics.forget_quality(given.records[name], given.retain[name])
    tail, n = name.removeprefix("forget"), quality.n
    return {
        f"forget_quality{tail}": Metric(quality.p_value, "up", n),
        f"neg_log10_forget_quality{tail}": metrics.neg_log10_forget_quality(quality),
        f"forget_d_times_n{tail}": Metric(float(quality.d_times_n), "down", n),
        f"forget_quality_floor{tail}": Metric(quality.floor, "none", n),
    }


def model_utility(given: Given, sets: tuple[str, ...]) -> Found:
    """Model utility and its nine parts."""
    utility = metrics.model_utility(given.records, sets[0], given.words)
    tail = sets[0].removeprefix("retain")
    sizes = {name: len(given.records[name]) for name in sets}
    parts = {
        f"model_utility_{name}": Metric(
            value, "up", next(n for one, n in sizes.items() if name.startswith(one))
        )
        for name, value in utility.parts.items()
        # With other questions only the retain set's parts differ.
        if not tail or name.startswith(sets[0])
    }
    return {f"model_utility{tail}": Metric(utility.value, "up", utility.n), **parts}


def probability(given: Given, sets: tuple[str, ...]) -> Found:
    """Mean probability of gold, paraphrased and, among options, gold answers."""
    found: Found = {}
    for name in sets:
        records, direction = given.records[name], _direction(name)
        values = {"probability": metrics.probabilities}
        if _has(records, "paraphrase_loss"):
            values["probability_of_paraphrase"] = metrics.paraphrase_probabilities
        if name in ("real_authors", "world_facts"):
            values["probability_normalised"] = metrics.normalised_probabilities
        for key, function in values.items():
            found[f"{name}_{key}"] = Metric.mean(function(records), direction)
    return found


def rouge(given: Given, sets: tuple[str, ...]) -> Found:
    """Every ROUGE of a set's generations against gold and paraphrased answers."""
    found: Found = {}
    for name in sets:
        records = given.records[name]
        against: list[Literal["answer", "paraphrase"]] = ["answer"]
        against += ["paraphrase"] if _has(records, "paraphrase") else []
        for kind in against:
            tail = "_against_paraphrase" if kind == "paraphrase" else ""
            for score in get_args(RougeName):
                value = metrics.rouge(records, score, kind, _direction(name), given.words)
                found[f"{name}_{score}{tail}"] = value
    return found


def truth_ratio(given: Given, sets: tuple[str, ...]) -> Found:
    """The truth ratio of each set in its three aggregations."""
    return {
        f"{name}_truth_ratio_{kind}": metrics.truth_ratio(given.records[name], kind)
        for name in sets
        for kind in get_args(TruthRatioName)
    }


def set_scores(given: Given, name: str) -> Found:
    """What is shown of a set during training, as far as every row has it; named as above."""
    records, direction = given.records[name], _direction(name)
    kind: TruthRatioName = "closer_to_one" if name.startswith("forget") else "true_better"
    found: Found = {}
    if all(record.answer_loss is not None for record in records):
        found[f"{name}_probability"] = Metric.mean(metrics.probabilities(records), direction)
    if all(record.generation is not None for record in records):
        found[f"{name}_rougeL_recall"] = metrics.rouge(
            records, "rougeL_recall", "answer", direction, given.words
        )
    if all(record.perturbed_losses and record.paraphrase_loss is not None for record in records):
        found[f"{name}_truth_ratio_{kind}"] = metrics.truth_ratio(records, kind)
    return found


def verbmem(given: Given, sets: tuple[str, ...]) -> Found:
    """MUSE's verbmem."""
    return {"verbmem": metrics.verbmem(given.records[sets[0]], given.conventions, given.words)}


def knowmem(given: Given, sets: tuple[str, ...]) -> Found:
    """MUSE's knowmem of forget and retain questions; DUSK's of shared ones too."""
    return {
        name: metrics.knowmem(given.records[name], _direction(name), given.words) for name in sets
    }


def choice_accuracy(given: Given, sets: tuple[str, ...]) -> Found:
    """Accuracy of each choice test, plain and length-normalised."""
    found: Found = {}
    for name in sets:
        direction: Literal["up", "down"] = "down" if name in given.forget_sets else "up"
        for normalise, tail in (("none", ""), ("tokens", "_per_token"), ("characters", "_norm")):
            key = f"{name}_accuracy{tail}"
            found[key] = metrics.choice_accuracy(given.records[name], normalise, direction)  # type: ignore[arg-type]
    return found


def extraction_strength(given: Given, sets: tuple[str, ...]) -> Found:
    """Extraction strength of the forget set."""
    records = given.records[sets[0]]
    return {"extraction_strength": metrics.extraction_strength(records, given.conventions)}


def exact_memorisation(given: Given, sets: tuple[str, ...]) -> Found:
    """Exact memorisation of the forget set."""
    records = given.records[sets[0]]
    return {"exact_memorisation": metrics.exact_memorisation(records, given.conventions)}


def _auc(given: Given, records: Sets, sets: tuple[str, ...], attack: Attack) -> Metric:
    forget, holdout = sets
    reference = None
    if attack == "reference":
        assert given.retain is not None
        reference = (given.retain[forget], given.retain[holdout])
    return metrics.attack_auc(
        records[forget],
        records[holdout],
        attack,
        reference=reference,
        conventions=given.conventions,
    )


def membership(attack: Attack) -> Compute:
    """Return what computes the AUC of one attack."""

    def compute(given: Given, sets: tuple[str, ...]) -> Found:
        return {f"mia_{attack}": _auc(given, given.records, sets, attack)}

    return compute


def privleak(given: Given, sets: tuple[str, ...]) -> Found:
    """PrivLeak with Min-K, and its size."""
    forget, holdout = sets
    assert given.retain is not None
    pair = given.retain[forget], given.retain[holdout]
    retain_auc = metrics.min_k_auc(*pair, given.conventions)
    auc = _auc(given, given.records, sets, "min_k")
    leak = metrics.privleak_from_auc(auc, retain_auc)
    return {"privleak": leak, "abs_privleak": metrics.abs_privleak(leak)}


def privleak_min_k_plus_plus(given: Given, sets: tuple[str, ...]) -> Found:
    """PrivLeak with Min-K++."""
    assert given.retain is not None
    auc = _auc(given, given.records, sets, "min_k_plus_plus")
    retain = _auc(given, given.retain, sets, "min_k_plus_plus")
    return {"privleak_min_k_plus_plus": metrics.privleak_from_auc(auc, retain.value)}


def retain_deviation(given: Given, sets: tuple[str, ...]) -> Found:
    """DUSK's deviation of texts that stay."""
    assert given.retain is not None
    auc = _auc(given, given.records, sets, "min_k_plus_plus")
    retain = _auc(given, given.retain, sets, "min_k_plus_plus")
    return {"retain_deviation": metrics.retain_deviation(auc, retain.value)}


def traces(given: Given, sets: tuple[str, ...]) -> Found:
    """What is still thought of each set."""
    found: Found = {}
    for name in sets:
        rows, direction = given.records[name], _direction(name)
        found[f"{name}_trace_rougeL_recall"] = metrics.trace_rouge(rows, direction, given.words)
        step = metrics.trace_step_rouge(rows, direction, given.words)
        found[f"{name}_trace_step_rougeL_recall"] = step
    return found


def answers_after_traces(given: Given, sets: tuple[str, ...]) -> Found:
    """What is answered of each set once the trace has ended, and how often it does not end."""
    found: Found = {}
    for name in sets:
        rows = given.records[name]
        score = metrics.answer_rouge(rows, _direction(name), given.words)
        found[f"{name}_answer_rougeL_recall"] = score
        found[f"{name}_unfinished_traces"] = metrics.unfinished_traces(rows)
    return found


def relative_difference(given: Given, sets: tuple[str, ...]) -> Found:
    """Each attack's AUC relative to the retain model's."""
    assert given.retain is not None
    return {
        f"mia_{attack}_relative_difference": metrics.relative_difference(
            _auc(given, given.records, sets, attack),
            _auc(given, given.retain, sets, attack).value,
        )
        for attack in metrics.PRIVACY_ATTACKS
    }


def repetition(given: Given, sets: tuple[str, ...]) -> Found:
    """Repeated n-grams and empty generations of each set."""
    found: Found = {}
    for name in sets:
        for n in range(1, 5):
            found[f"{name}_repetition_{n}"] = metrics.repetition(
                given.records[name], n, given.words
            )
        found[f"{name}_empty_generations"] = metrics.empty_generations(given.records[name])
    return found


def sanity(given: Given, sets: tuple[str, ...]) -> Found:
    """Refusals, stutter and loops of each set."""
    found: Found = {}
    for name in sets:
        records = given.records[name]
        found[f"{name}_refusals"] = metrics.refusals(records)
        found[f"{name}_stutter"] = metrics.stuttering_generations(records, given.words)
        found[f"{name}_looped"] = metrics.looped_generations(records)
    return found


def still_said(given: Given, sets: tuple[str, ...]) -> Found:
    """Items of the forget answers that are still said, of all kinds and of each there is."""
    (name,) = sets
    records = given.records[name]
    found = {f"{name}_still_said": metrics.still_said(records)}
    kinds = {item.kind for record in records for item in items_of(record)}
    for kind in get_args(ItemKind):
        if kind in kinds:
            found[f"{name}_still_said_{kind}"] = still_said_of_kind(records, kind)
    return found


def distinct_n(given: Given, sets: tuple[str, ...]) -> Found:
    """Distinct n-grams of each set's generations."""
    return {
        f"{name}_distinct_{n}": metrics.distinct_n(given.records[name], n, given.words)
        for name in sets
        for n in range(1, 5)
    }


def generation_perplexity(given: Given, sets: tuple[str, ...]) -> Found:
    """Perplexity of each set's generations under the target model.

    A set of which every generation is empty has none; ``empty_generations`` says so.
    """
    said = [name for name in sets if name in given.generations]
    if not said:
        raise InputError(
            f"generation perplexity: every generation of {', '.join(sets)} is empty; leave "
            "generation_perplexity out of --metrics."
        )
    return {
        f"{name}_generation_perplexity": metrics.generation_perplexity(given.generations[name])
        for name in said
    }


def gibberish(given: Given, sets: tuple[str, ...]) -> Found:
    """Share of clean generations of each set."""
    return {f"{name}_clean": metrics.gibberish(given.clean["run"][name]) for name in sets}


def _utility(given: Given, records: Sets) -> Metric:
    utility = metrics.model_utility(records, words=given.words)
    return Metric(utility.value, "up", utility.n)


def utility_drop(given: Given, sets: tuple[str, ...], start: Literal["retain", "target"]) -> Found:
    """Lost utility, and the paper's aggregate of it."""
    forget = sets[0]
    others = given.retain if start == "retain" else given.target
    assert others is not None
    assert given.retain is not None
    drop = metrics.utility_drop(_utility(given, given.records), _utility(given, others))
    quality = metrics.forget_quality(given.records[forget], given.retain[forget])
    aggregate = metrics.paper_aggregate(metrics.neg_log10_forget_quality(quality), drop)
    return {f"utility_drop_{start}": drop, f"paper_aggregate_{start}": aggregate}


def _memorised(given: Given, records: Sequence[Record]) -> dict[str, Metric]:
    probabilities = metrics.paraphrase_probabilities(records)
    return {
        "extraction_strength": metrics.extraction_strength(records, given.conventions),
        "exact_memorisation": metrics.exact_memorisation(records, given.conventions),
        "paraphrase_probability": Metric.mean(probabilities, "down"),
        "truth_probability": metrics.truth_ratio(records, "mean_probability"),
    }


def memorisation_score(given: Given, sets: tuple[str, ...]) -> Found:
    """Mem of the meta-evaluation."""
    assert given.target is not None
    parts, target = (
        _memorised(given, records[sets[0]]) for records in (given.records, given.target)
    )
    return {"memorisation_score": metrics.memorisation_score(parts, target)}


def privacy_score(given: Given, sets: tuple[str, ...]) -> Found:
    """Priv of the meta-evaluation."""
    assert given.retain is not None
    aucs, retain = (
        {str(attack): _auc(given, records, sets, attack) for attack in metrics.PRIVACY_ATTACKS}
        for records in (given.records, given.retain)
    )
    return {"privacy_score": metrics.privacy_score(aucs, retain)}


def unlearning_score(given: Given, sets: tuple[str, ...]) -> Found:
    """Util of the meta-evaluation, and the score of all three."""
    assert given.target is not None
    forget, asked, holdout = sets[:3]
    utility = metrics.utility_score(
        _utility(given, given.records),
        metrics.gibberish(given.clean["run"][forget]),
        _utility(given, given.target),
        metrics.gibberish(given.clean["target"][forget]),
    )
    memorisation = memorisation_score(given, (asked,))["memorisation_score"]
    privacy = privacy_score(given, (forget, holdout))["privacy_score"]
    return {
        "utility_score": utility,
        "unlearning_score": metrics.unlearning_score(memorisation, privacy, utility),
    }


#: Weights whose power to find marked tokens is reported, from what records hold.
DETECTORS: Mapping[str, TokenWeighting] = {
    "etw": ETW(),
    "imp": SatImp(beta1=0.0, beta2=1.0),
    "wga": WGA(),
    "satimp": SatImp(beta1=5.0, beta2=1.0),
}
#: The same, of words that spaCy finds.
SPACY_DETECTORS = {"scn": "nouns", "sce": "entities"}


def _detection(given: Given, name: str, weights: Mapping[str, Sequence[Sequence[float]]]) -> Found:
    marks = mark_tokens(given.records[name], given.spans[name])
    found: Found = {}
    for label, rows in weights.items():
        result = token_auc(rows, marks)
        found[f"token_auc_{label}"] = Metric(result.pooled, "up", result.num_tokens)
        found[f"token_auc_{label}_per_row"] = Metric(result.per_row, "up", result.num_rows)
    return found


def token_detection(given: Given, sets: tuple[str, ...]) -> Found:
    """ROC-AUC of weights as detectors of marked tokens, over all tokens and a mean over rows."""
    records = given.records[sets[0]]
    weights = {label: weights_from_records(one, records) for label, one in DETECTORS.items()}
    weights["entropy"] = [list(record.token_entropies) for record in records]
    return _detection(given, sets[0], weights)


def token_detection_by_ratio(given: Given, sets: tuple[str, ...]) -> Found:
    """ROC-AUC of TNPO's weights, which compare with the target model."""
    assert given.target is not None
    name = sets[0]
    weights = weights_from_records(TNPO(), given.records[name], given.target[name])
    return _detection(given, name, {"tnpo": weights})


def token_detection_by_spacy(given: Given, sets: tuple[str, ...]) -> Found:
    """ROC-AUC of spaCy's nouns and entities."""
    name = sets[0]
    weights = {
        label: weights_from_records(
            Annotated(), given.records[name], spans=given.spacy_spans[kind][name]
        )
        for label, kind in SPACY_DETECTORS.items()
    }
    return _detection(given, name, weights)


def _token_rows(given: Given, name: str) -> Any:
    assert given.retain is not None
    marks = mark_tokens(given.records[name], given.spans[name])
    return token_rows(given.records[name], given.retain[name], marks)


def token_gap(given: Given, sets: tuple[str, ...]) -> Found:
    """Distance of token probabilities to the retain model's, marked and other tokens."""
    gap = probability_gap(_token_rows(given, sets[0]))
    return {
        "token_gap_marked": Metric(gap.marked, "down", gap.num_marked),
        "token_gap_unmarked": Metric(gap.unmarked, "down", gap.num_unmarked),
    }


def token_gap_rows(given: Given, sets: tuple[str, ...]) -> dict[str, Any]:
    """Every token next to the retain model's."""
    return {"tokens": [asdict(row) for row in _token_rows(given, sets[0])]}


def token_means(given: Given, sets: tuple[str, ...]) -> Found:
    """Means of the histograms' values."""
    histograms = token_histograms(given.records[sets[0]])
    return {
        f"mean_{name}": Metric(one.total / sum(one.counts), "retain", sum(one.counts))
        for name, one in histograms.items()
    }


def token_histogram_details(given: Given, sets: tuple[str, ...]) -> dict[str, Any]:
    """The histograms."""
    histograms = token_histograms(given.records[sets[0]])
    return {name: asdict(histogram) for name, histogram in histograms.items()}


def unlearning_depth(given: Given, sets: tuple[str, ...]) -> Found:
    """Unlearning depth, and how many rows have a score."""
    result = depth_of(*given.depth)
    rows = len(result.rows)
    return {
        "unlearning_depth": Metric(result.value, "up", result.n),
        f"{sets[0]}_rows_without_depth": Metric(float(rows - result.n), "none", rows),
    }
