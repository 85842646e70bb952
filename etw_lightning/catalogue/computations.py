"""How each entry of the catalogue goes from records to named numbers; holds no formula.

Those of membership tests are in ``membership_numbers``, of single tokens in ``token_numbers``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from etw_lightning import metrics
from etw_lightning.catalogue import membership_numbers
from etw_lightning.catalogue.entries import Found, Given, Sets
from etw_lightning.metrics import Metric, RougeName, TruthRatioName
from etw_lightning.metrics.still_said import ItemKind, items_of, still_said_of_kind
from etw_lightning.schema import InputError, Record


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
    privacy = membership_numbers.privacy_score(given, (forget, holdout))["privacy_score"]
    return {
        "utility_score": utility,
        "unlearning_score": metrics.unlearning_score(memorisation, privacy, utility),
    }
