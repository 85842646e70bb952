"""How membership tests go from records to named numbers; holds no formula."""

from __future__ import annotations

from etw_lightning import metrics
from etw_lightning.catalogue.entries import Compute, Found, Given, Sets
from etw_lightning.metrics import Attack, Metric

__all__ = [
    "auc_of",
    "membership",
    "privacy_score",
    "privleak",
    "privleak_min_k_plus_plus",
    "relative_difference",
    "retain_deviation",
]


def auc_of(given: Given, records: Sets, sets: tuple[str, ...], attack: Attack) -> Metric:
    """Return the AUC of one attack on these records."""
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
        return {f"mia_{attack}": auc_of(given, given.records, sets, attack)}

    return compute


def privleak(given: Given, sets: tuple[str, ...]) -> Found:
    """PrivLeak with Min-K, and its size."""
    forget, holdout = sets
    assert given.retain is not None
    pair = given.retain[forget], given.retain[holdout]
    retain_auc = metrics.min_k_auc(*pair, given.conventions)
    auc = auc_of(given, given.records, sets, "min_k")
    leak = metrics.privleak_from_auc(auc, retain_auc)
    return {"privleak": leak, "abs_privleak": metrics.abs_privleak(leak)}


def privleak_min_k_plus_plus(given: Given, sets: tuple[str, ...]) -> Found:
    """PrivLeak with Min-K++."""
    assert given.retain is not None
    auc = auc_of(given, given.records, sets, "min_k_plus_plus")
    retain = auc_of(given, given.retain, sets, "min_k_plus_plus")
    return {"privleak_min_k_plus_plus": metrics.privleak_from_auc(auc, retain.value)}


def retain_deviation(given: Given, sets: tuple[str, ...]) -> Found:
    """DUSK's deviation of texts that stay."""
    assert given.retain is not None
    auc = auc_of(given, given.records, sets, "min_k_plus_plus")
    retain = auc_of(given, given.retain, sets, "min_k_plus_plus")
    return {"retain_deviation": metrics.retain_deviation(auc, retain.value)}


def relative_difference(given: Given, sets: tuple[str, ...]) -> Found:
    """Each attack's AUC relative to the retain model's."""
    assert given.retain is not None
    return {
        f"mia_{attack}_relative_difference": metrics.relative_difference(
            auc_of(given, given.records, sets, attack),
            auc_of(given, given.retain, sets, attack).value,
        )
        for attack in metrics.PRIVACY_ATTACKS
    }


def privacy_score(given: Given, sets: tuple[str, ...]) -> Found:
    """Priv of the meta-evaluation."""
    assert given.retain is not None
    aucs, retain = (
        {str(attack): auc_of(given, records, sets, attack) for attack in metrics.PRIVACY_ATTACKS}
        for records in (given.records, given.retain)
    )
    return {"privacy_score": metrics.privacy_score(aucs, retain)}
