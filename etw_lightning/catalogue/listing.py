"""The catalogue of metrics: which functions' docstrings are the pages of a number, what it reads.

Formulas live in ``metrics``; how numbers are named, in ``computations`` and beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, get_args

from etw_lightning import metrics
from etw_lightning.catalogue import computations as of
from etw_lightning.catalogue import membership_numbers, token_numbers
from etw_lightning.catalogue.entries import FAMILIES, KEYS, Entry, Extra, Family, Given, Part
from etw_lightning.metrics.depth import unlearning_depth
from etw_lightning.metrics.still_said import ItemKind
from etw_lightning.metrics.token_probabilities import probability_gap, token_histograms
from etw_lightning.metrics.tokens import token_auc

__all__ = ["CATALOGUE", "FAMILIES", "KEYS", "Entry", "Extra", "Family", "Given", "Part"]


def _parts(*parts: Part) -> frozenset[Part]:
    return frozenset(parts)


def _needs(*extras: Extra) -> frozenset[Extra]:
    return frozenset(extras)


_BOTH = _parts("answers", "generation")
_TEXT = _parts("generation")
_UTILITY = ("retain", "real_authors", "world_facts")
_PARAPHRASED = ("forget_paraphrased", "retain_paraphrased")
_SCORED: Mapping[Family, tuple[str, ...]] = {
    "tofu": ("forget", *_UTILITY),
    "own": ("forget", "retain"),
}
_QUESTIONS = ("knowmem_forget", "knowmem_shared", "knowmem_retain")
_PROBABLE: Mapping[Family, tuple[str, ...]] = {
    **_SCORED,
    "reasoning": ("forget", "forget_trace", "forget_answer", "retain", "retain_answer"),
}
_TOLD: Mapping[Family, tuple[str, ...]] = {**_SCORED, "reasoning": ("forget", "retain")}
_ANSWERED: Mapping[Family, tuple[str, ...]] = {"tofu": _PARAPHRASED}
_MEMORISED: Mapping[Family, tuple[str, ...]] = {
    "tofu": ("forget",),
    "muse": ("verbmem",),
    "dusk": ("verbmem",),
    "reasoning": ("forget",),
    "own": ("forget",),
}
_GENERATED: Mapping[Family, tuple[str, ...]] = {
    "tofu": ("forget", "retain"),
    "muse": ("verbmem", "knowmem_forget", "knowmem_retain"),
    "dusk": ("verbmem", *_QUESTIONS),
    "reasoning": ("forget", "retain"),
    "own": ("forget", "retain"),
}
_MEMBERS: Mapping[Family, tuple[str, ...]] = {
    "tofu": ("forget", "holdout"),
    "muse": ("privleak_forget", "privleak_holdout"),
    "dusk": ("privleak_forget", "privleak_holdout"),
    "own": ("forget", "holdout"),
}
_MARKED: Mapping[Family, tuple[str, ...]] = {"tofu": ("forget",), "own": ("forget",)}
_RATED: Mapping[Family, tuple[str, ...]] = {"tofu": ("forget",), "own": ("forget",)}


def _of_sets(*names: str) -> tuple[str, ...]:
    return tuple(f"{{set}}_{name}" for name in names)


_ROUGE = tuple(
    f"{name}{tail}" for tail in ("", "_against_paraphrase") for name in get_args(metrics.RougeName)
)
_RATIOS = tuple(f"truth_ratio_{name}" for name in get_args(metrics.TruthRatioName))
_QUALITY = (
    "forget_quality",
    "neg_log10_forget_quality",
    "forget_d_times_n",
    "forget_quality_floor",
)
_QUALITY_PAGES = (
    metrics.forget_quality,
    metrics.neg_log10_forget_quality,
    metrics.forget_quality_floor,
)
_UTILITY_PAGES = (metrics.model_utility, metrics.normalised_probabilities, metrics.true_better)
_UTILITY_PARTS = ("probability", "rouge", "truth_ratio")
_PROBABILITY_PAGES = (
    metrics.probabilities,
    metrics.paraphrase_probabilities,
    metrics.normalised_probabilities,
)
_ROUGE_PAGES = (metrics.rouge, metrics.rouge_scores)
_ATTACK_PAGES = (metrics.attack_auc, metrics.attack_scores)


def _detectors(*names: str) -> tuple[str, ...]:
    """Return the numbers that are made of each detector of marked tokens."""
    return tuple(f"token_auc_{name}{tail}" for name in names for tail in ("", "_per_row"))


def _attack(attack: metrics.Attack, *pages: Callable[..., Any], **further: Any) -> Entry:
    return Entry(
        (*_ATTACK_PAGES, *pages),
        _MEMBERS,
        membership_numbers.membership(attack),
        (f"mia_{attack}",),
        **further,
    )


#: Every metric there is, in the order of reports.
CATALOGUE: Mapping[str, Entry] = {
    "forget_quality": Entry(
        _QUALITY_PAGES,
        _RATED,
        of.forget_quality,
        _QUALITY,
        needs=_needs("retain"),
        is_rated=True,
    ),
    "forget_quality_paraphrased": Entry(
        _QUALITY_PAGES,
        {"tofu": ("forget_paraphrased",)},
        of.forget_quality,
        tuple(f"{name}_paraphrased" for name in _QUALITY),
        needs=_needs("retain"),
    ),
    "model_utility": Entry(
        _UTILITY_PAGES,
        {"tofu": _UTILITY},
        of.model_utility,
        ("model_utility", *(f"model_utility_{{set}}_{part}" for part in _UTILITY_PARTS)),
        _BOTH,
    ),
    "model_utility_paraphrased": Entry(
        _UTILITY_PAGES,
        {"tofu": ("retain_paraphrased", *_UTILITY[1:])},
        of.model_utility,
        (
            "model_utility_paraphrased",
            *(f"model_utility_retain_paraphrased_{part}" for part in _UTILITY_PARTS),
        ),
        _BOTH,
    ),
    "probability": Entry(
        _PROBABILITY_PAGES,
        _PROBABLE,
        of.probability,
        _of_sets("probability", "probability_of_paraphrase", "probability_normalised"),
    ),
    "probability_paraphrased": Entry(
        _PROBABILITY_PAGES,
        _ANSWERED,
        of.probability,
        _of_sets("probability", "probability_of_paraphrase"),
    ),
    "rouge": Entry(_ROUGE_PAGES, _TOLD, of.rouge, _of_sets(*_ROUGE), _TEXT),
    "rouge_paraphrased": Entry(_ROUGE_PAGES, _ANSWERED, of.rouge, _of_sets(*_ROUGE), _TEXT),
    "truth_ratio": Entry(
        (metrics.truth_ratio,), _SCORED, of.truth_ratio, _of_sets(*_RATIOS), is_rated=True
    ),
    "truth_ratio_paraphrased": Entry(
        (metrics.truth_ratio,), _ANSWERED, of.truth_ratio, _of_sets(*_RATIOS)
    ),
    "verbmem": Entry(
        (metrics.verbmem, metrics.rouge_scores),
        {"muse": ("verbmem",), "dusk": ("verbmem",)},
        of.verbmem,
        ("verbmem",),
        _TEXT,
    ),
    "knowmem": Entry(
        (metrics.knowmem, metrics.rouge_scores),
        {"muse": ("knowmem_forget", "knowmem_retain"), "dusk": _QUESTIONS},
        of.knowmem,
        _QUESTIONS,
        _TEXT,
    ),
    "traces": Entry(
        (metrics.trace_rouge, metrics.trace_step_rouge),
        {"reasoning": ("forget", "retain")},
        of.traces,
        _of_sets("trace_rougeL_recall", "trace_step_rougeL_recall"),
        _TEXT,
    ),
    "answers_after_traces": Entry(
        (metrics.answer_rouge, metrics.unfinished_traces),
        {"reasoning": ("forget", *_UTILITY)},
        of.answers_after_traces,
        _of_sets("answer_rougeL_recall", "unfinished_traces"),
        _TEXT,
    ),
    "choice_accuracy": Entry(
        (metrics.choice_accuracy,),
        {"choice": ("*",)},
        of.choice_accuracy,
        _of_sets("accuracy", "accuracy_per_token", "accuracy_norm"),
    ),
    "extraction_strength": Entry(
        (metrics.extraction_strength,),
        _MEMORISED,
        of.extraction_strength,
        ("extraction_strength",),
    ),
    "exact_memorisation": Entry(
        (metrics.exact_memorisation,), _MEMORISED, of.exact_memorisation, ("exact_memorisation",)
    ),
    "mia_loss": _attack("loss"),
    "mia_zlib": _attack("zlib"),
    "mia_min_k": _attack("min_k", metrics.min_k_score),
    "mia_min_k_plus_plus": _attack("min_k_plus_plus", metrics.min_k_plus_plus_score),
    "mia_reference": _attack("reference", needs=_needs("retain_tokens")),
    "mia_gradient_norm": _attack("gradient_norm", parts=_parts("gradient_norm"), by_default=False),
    "privleak": Entry(
        (metrics.privleak, metrics.abs_privleak, metrics.min_k_score),
        _MEMBERS,
        membership_numbers.privleak,
        ("privleak", "abs_privleak"),
        needs=_needs("retain"),
    ),
    "privleak_min_k_plus_plus": Entry(
        (metrics.privleak_from_auc, metrics.min_k_plus_plus_score),
        {"dusk": _MEMBERS["dusk"]},
        membership_numbers.privleak_min_k_plus_plus,
        ("privleak_min_k_plus_plus",),
        needs=_needs("retain_tokens"),
    ),
    "retain_deviation": Entry(
        (metrics.retain_deviation, metrics.min_k_plus_plus_score),
        {"dusk": ("privleak_retain", "privleak_holdout")},
        membership_numbers.retain_deviation,
        ("retain_deviation",),
        needs=_needs("retain_tokens"),
    ),
    "mia_relative_difference": Entry(
        (metrics.relative_difference, *_ATTACK_PAGES),
        _MEMBERS,
        membership_numbers.relative_difference,
        tuple(f"mia_{attack}_relative_difference" for attack in metrics.PRIVACY_ATTACKS),
        needs=_needs("retain_tokens"),
    ),
    "repetition": Entry(
        (metrics.repetition, metrics.empty_generations),
        _GENERATED,
        of.repetition,
        _of_sets(*(f"repetition_{n}" for n in range(1, 5)), "empty_generations"),
        _TEXT,
    ),
    "sanity": Entry(
        (metrics.refusals, metrics.stuttering_generations, metrics.looped_generations),
        _GENERATED,
        of.sanity,
        _of_sets("refusals", "stutter", "looped"),
        _TEXT,
    ),
    "still_said": Entry(
        (metrics.still_said,),
        _MEMORISED,
        of.still_said,
        _of_sets("still_said", *(f"still_said_{kind}" for kind in get_args(ItemKind))),
        _TEXT,
    ),
    "distinct_n": Entry(
        (metrics.distinct_n,),
        _GENERATED,
        of.distinct_n,
        _of_sets(*(f"distinct_{n}" for n in range(1, 5))),
        _TEXT,
    ),
    "generation_perplexity": Entry(
        (metrics.generation_perplexity,),
        _GENERATED,
        of.generation_perplexity,
        _of_sets("generation_perplexity"),
        _TEXT,
        _needs("generations"),
    ),
    "gibberish": Entry(
        (metrics.gibberish,),
        _GENERATED,
        of.gibberish,
        _of_sets("clean"),
        _TEXT,
        _needs("classifier"),
    ),
    "utility_drop_target": Entry(
        (metrics.utility_drop, metrics.paper_aggregate),
        {"tofu": ("forget", *_UTILITY)},
        partial(of.utility_drop, start="target"),
        ("utility_drop_target", "paper_aggregate_target"),
        _BOTH,
        _needs("retain", "target"),
    ),
    "utility_drop_retain": Entry(
        (metrics.utility_drop, metrics.paper_aggregate),
        {"tofu": ("forget", *_UTILITY)},
        partial(of.utility_drop, start="retain"),
        ("utility_drop_retain", "paper_aggregate_retain"),
        _BOTH,
        _needs("retain"),
    ),
    "memorisation_score": Entry(
        (metrics.memorisation_score,),
        {"tofu": ("forget_paraphrased",)},
        of.memorisation_score,
        ("memorisation_score",),
        needs=_needs("target"),
    ),
    "privacy_score": Entry(
        (metrics.privacy_score, metrics.membership_similarity),
        {"tofu": _MEMBERS["tofu"], "own": _MEMBERS["own"]},
        membership_numbers.privacy_score,
        ("privacy_score",),
        needs=_needs("retain_tokens"),
    ),
    "unlearning_score": Entry(
        (metrics.unlearning_score, metrics.utility_score),
        {"tofu": ("forget", "forget_paraphrased", "holdout", *_UTILITY)},
        of.unlearning_score,
        ("utility_score", "unlearning_score"),
        _BOTH,
        _needs("retain_tokens", "target", "classifier"),
    ),
    "token_auc": Entry(
        (token_auc,),
        _MARKED,
        token_numbers.token_detection,
        _detectors(*token_numbers.DETECTORS, "entropy"),
        needs=_needs("annotations"),
    ),
    "token_auc_tnpo": Entry(
        (token_auc,),
        _MARKED,
        token_numbers.token_detection_by_ratio,
        _detectors("tnpo"),
        needs=_needs("annotations", "target"),
    ),
    "token_auc_spacy": Entry(
        (token_auc,),
        _MARKED,
        token_numbers.token_detection_by_spacy,
        _detectors(*token_numbers.SPACY_DETECTORS),
        needs=_needs("annotations", "spacy"),
    ),
    "token_gap": Entry(
        (probability_gap,),
        _MARKED,
        token_numbers.token_gap,
        ("token_gap_marked", "token_gap_unmarked"),
        needs=_needs("annotations", "retain_tokens"),
        detail=token_numbers.token_gap_rows,
    ),
    "token_histograms": Entry(
        (token_histograms,),
        _MEMORISED,
        token_numbers.token_means,
        ("mean_token_probabilities", "mean_token_entropies"),
        detail=token_numbers.token_histogram_details,
    ),
    "unlearning_depth": Entry(
        (unlearning_depth,),
        _MARKED,
        token_numbers.unlearning_depth,
        ("unlearning_depth", "{set}_rows_without_depth"),
        needs=_needs("depth"),
        by_default=False,
    ),
}
