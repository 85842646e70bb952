"""How numbers of single tokens are named: detection, gaps, histograms, depth; holds no formula."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from etw_lightning.catalogue.entries import Found, Given
from etw_lightning.catalogue.token_weights import weights_from_records
from etw_lightning.metrics import Metric
from etw_lightning.metrics.depth import unlearning_depth as depth_of
from etw_lightning.metrics.token_probabilities import probability_gap, token_histograms, token_rows
from etw_lightning.metrics.tokens import mark_tokens, token_auc
from etw_lightning.weighting import ETW, TNPO, WGA, Annotated, SatImp, TokenWeighting

__all__ = [
    "DETECTORS",
    "SPACY_DETECTORS",
    "token_detection",
    "token_detection_by_ratio",
    "token_detection_by_spacy",
    "token_gap",
    "token_gap_rows",
    "token_histogram_details",
    "token_means",
    "unlearning_depth",
]

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
