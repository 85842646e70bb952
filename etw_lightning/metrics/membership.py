"""Membership inference: can the forget set be told from text the model never saw?

Every attack gives a row a score that is lower the surer the row was trained on; its AUC says how
well forget rows are told from holdout rows, and the retain model's AUC what that should be.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from etw_lightning.metrics.attacks import Attack, attack_scores
from etw_lightning.metrics.values import TINY, Floats, Metric, check_rows, pairs_in_order
from etw_lightning.schema import Conventions, InputError, Record

__all__ = [
    "attack_auc",
    "auc_of_scores",
    "min_k_auc",
    "privleak",
    "privleak_from_auc",
    "relative_difference",
    "retain_deviation",
]

#: Bootstrap resamples of an interval, and the seed of their generator.
_RESAMPLES, _SEED = 2000, 20240611
#: Most counts held at once while resampling.
_MAX_COUNTS = 4_000_000
_DEFINITIONS = Conventions()

Pair = tuple[Sequence[Record], Sequence[Record]]


def auc_of_scores(forget: Sequence[float] | Floats, holdout: Sequence[float] | Floats) -> float:
    """Area under the ROC curve: how often a forget row scores below a holdout row.

    Formula: share of all pairs in which the forget row is lower; ties count half.
    Unit: share of the pairs.
    Range: 0 to 1; 1 where every forget row is recognised, 0.5 for scores that tell nothing.
    Direction: retain: best at the retain model's.
    Empty input: InputError.
    Source: Hanley and McNeil 1982 (the Mann-Whitney form of the area).
    Differs from widely used code: nothing; scikit-learn's sum of trapezia agrees to 1e-15.

    Args:
        forget: Score of each forget row, ``(B,)``.
        holdout: Score of each holdout row, any number of them.

    Raises:
        InputError: If either is empty, or holds NaN.

    Example:
        >>> auc_of_scores([1.0, 3.0], [2.0, 3.0])
        0.625
    """
    return pairs_in_order(*_checked_scores(forget, holdout))


def attack_auc(
    forget: Sequence[Record],
    holdout: Sequence[Record],
    attack: Attack,
    *,
    k: float = 0.4,
    reference: Pair | None = None,
    conventions: Conventions = _DEFINITIONS,
) -> Metric:
    """AUC of a membership-inference attack that tells forget from holdout rows, with an interval.

    Formula: share of the pairs in which the forget row has the lower ``attack_scores``, ties half.
        Interval: the 2.5 and 97.5 percentile of 2,000 bootstrap AUCs; each draws as many rows of
        each set as it has, with replacement, from a seeded generator.
    Unit: share of the pairs.
    Range: 0 to 1: 1 where the forget set is recognised, near 0.5 for a model never trained on it,
        below where it was pushed away. The interval of an AUC of 0 or 1 has no width.
    Direction: retain: best at the retain model's AUC, see ``privleak_from_auc``; 0 is no goal.
    Empty input: InputError; the interval needs two rows of each set.
    Source: MUSE, arXiv:2407.06460, PrivLeak; arXiv:2402.07841; Efron 1979 (bootstrap).
    Differs from widely used code: there is no interval there; 400 against 400 rows leave about
        +-.04 at an AUC of .39. Scores: see ``attack_scores``. In float32 two rows can tie, each tie
        moves the AUC by half a pair: 3e-6 with 400 rows.

    Args:
        forget: Forget rows scored by the model, ``(B,)``.
        holdout: Rows of the same kind it never saw; any number of them.
        attack: One of ``ATTACKS``.
        k: Share of the tokens for min-k and min-k++.
        reference: Forget and holdout rows scored by the other model, for ``reference``.
        conventions: ``last_label`` matters here.

    Raises:
        InputError: If a set has fewer than two rows, or a row lacks what the attack reads.

    Example:
        >>> known = [Record("forget", f"f/{i}", "a", answer_loss=1.0 + i) for i in range(2)]
        >>> new = [Record("holdout", f"h/{i}", "a", answer_loss=2.0 + i) for i in range(2)]
        >>> attack_auc(known, new, "loss").value
        0.875
    """
    others = (None, None) if reference is None else reference
    scores = []
    for records, other in zip((forget, holdout), others, strict=True):
        check_rows(records)
        if len(records) < 2:
            raise InputError(
                f"set {records[0].dataset!r}: has 1 row, an AUC with an interval needs at least "
                f"2; score more rows, or leave the attack {attack!r} out of --metrics."
            )
        scores.append(attack_scores(records, attack, k=k, reference=other, conventions=conventions))
    value, interval = auc_of_scores(*scores), _bootstrap_interval(*scores)
    return Metric(value, "retain", len(forget) + len(holdout), interval)


def min_k_auc(
    forget: Sequence[Record],
    holdout: Sequence[Record],
    conventions: Conventions = _DEFINITIONS,
) -> float:
    """AUC of Min-K with k = 0.4: how often a forget row scores below a holdout row.

    Formula: share of the pairs in which the forget row has the lower ``min_k_score``; ties half.
    Unit: share of the pairs.
    Range: 0 to 1: 1 where the forget set is recognised, near 0.5 for a model never trained on it.
    Direction: retain: best at the retain model's.
    Empty input: InputError.
    Source: MUSE, arXiv:2407.06460, PrivLeak; ROC-AUC with the Min-K score, k = 0.4.
    Differs from widely used code: that leaves out the last label of a row
        (``conventions.last_label`` gives either). A forget row with -1, -1, -1, -5 against a
        holdout row with -2, -2, -2, -2: scores 5 and 2, AUC 0 here; 1 and 2, AUC 1 there.
        A row with ``min_k`` is taken at its word.

    Args:
        forget: Forget rows scored by the model, ``(B,)``.
        holdout: Rows of the same kind it never saw.
        conventions: ``last_label`` matters here.

    Raises:
        InputError: If a set is empty or a row lacks its log-probabilities.

    Example:
        >>> known = [Record("privleak", "p/0", "a", token_logps=(-1.0, -1.0, -1.0, -5.0))]
        >>> new = [Record("privleak", "p/1", "a", token_logps=(-2.0, -2.0, -2.0, -2.0))]
        >>> min_k_auc(known, new), min_k_auc(known, new, Conventions.peer())
        (0.0, 1.0)
    """
    pair = (attack_scores(rows, "min_k", conventions=conventions) for rows in (forget, holdout))
    return auc_of_scores(*pair)


def privleak_from_auc(auc: Metric, retain_auc: float) -> Metric:
    """PrivLeak of any attack: how far its AUC is from the retain model's, seen from 1.

    Formula: ((1 - AUC) - (1 - AUC_r)) / (1 - AUC_r + 1e-10) * 100. The interval is the AUC's,
        put through the same formula with AUC_r held fixed.
    Unit: percent.
    Range: >= -100; -100 where every forget row is recognised.
    Direction: zero. Negative: the forget set is still recognised; positive: it was pushed below
        unseen text, which gives it away too.
    Empty input: InputError, from the AUC.
    Source: MUSE, arXiv:2407.06460, PrivLeak, there with Min-K, k = 0.4.
    Differs from widely used code: that takes AUC_r = 0.5 where no retain results are given, and an
        AUC_r of 1, which leaves nothing to compare with, gives it 1e10 percent for an AUC of .99;
        both are errors here. The 1e-10 is that code's, not the paper's: -99.9999999836 where the
        AUC is 1 and AUC_r .39, the paper's formula gives -100.

    Args:
        auc: AUC of the run, 0 to 1.
        retain_auc: AUC of the retain model under the same attack, 0 to below 1.

    Raises:
        InputError: If the retain model's AUC is 1 or out of range.

    Example:
        >>> round(privleak_from_auc(Metric(1.0, "retain", 800), 0.39).value, 10)
        -99.9999999836
    """
    if not 0 <= retain_auc < 1:
        raise InputError(
            f"privleak: the AUC of data.retain_results must be from 0 to below 1, got "
            f"{retain_auc}; at 1 that model knows the forget set and is no retain model."
        )

    def leak(value: float) -> float:
        rest, rest_retain = 1 - value, 1 - retain_auc
        return (rest - rest_retain) / (rest_retain + TINY) * 100

    ends = None if auc.interval is None else (leak(auc.interval[1]), leak(auc.interval[0]))
    return Metric(leak(auc.value), "zero", auc.n, ends)


def relative_difference(auc: Metric, retain_auc: float) -> Metric:
    """Relative difference of an attack's AUC to the retain model's.

    Formula: (AUC - AUC_r) / (AUC_r + 1e-10) * 100. The interval is the AUC's, put through the same
        formula with AUC_r held fixed.
    Unit: percent.
    Range: >= -100.
    Direction: zero. Positive: the forget set is still recognised; the sign is the opposite of
        PrivLeak's and the size another: it is relative to AUC_r, not to 1 - AUC_r.
    Empty input: InputError, from the AUC.
    Source: open-unlearning, metric ``rel_diff``; no paper defines it.
    Differs from widely used code: an AUC_r of 0 is an error here; there an AUC of .01 then gives
        1e10 percent. AUC .9 against .4 gives 125 in both, where PrivLeak says -83.3.

    Args:
        auc: AUC of the run, 0 to 1.
        retain_auc: AUC of the retain model under the same attack, above 0, at most 1.

    Raises:
        InputError: If the retain model's AUC is 0 or out of range.

    Example:
        >>> auc = Metric(0.9, "retain", 800)
        >>> [round(f(auc, 0.4).value, 4) for f in (relative_difference, privleak_from_auc)]
        [125.0, -83.3333]
    """
    if not 0 < retain_auc <= 1:
        raise InputError(
            f"relative difference: the AUC of data.retain_results must be above 0 and at most 1, "
            f"got {retain_auc}; use privleak, which is relative to 1 - AUC."
        )
    low, *ends = (
        (value - retain_auc) / (retain_auc + TINY) * 100
        for value in (auc.value, *(auc.interval or ()))
    )
    return Metric(low, "zero", auc.n, (ends[0], ends[1]) if ends else None)


def retain_deviation(auc: Metric, retain_auc: float) -> Metric:
    """RetainDeviation: how far texts that stay are told from unseen ones, beside the retain model.

    Formula: |AUC - AUC_r| / AUC_r * 100, AUC of Min-K++ with k = 0.4 of texts that stay against the
        holdout. The ends of the interval are the smallest and the largest this takes over the
        AUC's, with AUC_r held fixed.
    Unit: percent.
    Range: >= 0.
    Direction: down: 0 where what stays is known as well as by the retain model.
    Empty input: InputError, from the AUC.
    Source: DUSK, arXiv:2505.15209, retain deviation; its ``eval.py``.
    Differs from widely used code: an AUC_r of 0, which that divides by, is an error here. AUC .8
        against .5 gives 60 in both.

    Args:
        auc: AUC of the run, 0 to 1.
        retain_auc: AUC of the retain model under the same attack, above 0, at most 1.

    Raises:
        InputError: If the retain model's AUC is 0 or out of range.

    Example:
        >>> round(retain_deviation(Metric(0.8, "retain", 600), 0.5).value, 10)
        60.0
    """
    if not 0 < retain_auc <= 1:
        raise InputError(
            "retain deviation: the AUC of data.retain_results must be above 0 and at most 1, got "
            f"{retain_auc}; leave retain_deviation out of --metrics."
        )
    value, *ends = (
        abs(one - retain_auc) / retain_auc * 100 for one in (auc.value, *(auc.interval or ()))
    )
    if auc.interval is None:
        return Metric(value, "down", auc.n)
    low, high = auc.interval
    least = 0.0 if low <= retain_auc <= high else min(ends)
    return Metric(value, "down", auc.n, (least, max(ends)))


def privleak(
    forget_records: Sequence[Record],
    holdout_records: Sequence[Record],
    retain_auc: float,
    conventions: Conventions = _DEFINITIONS,
) -> Metric:
    """PrivLeak: distance of the Min-K AUC to the retain model's.

    Formula: ((1 - AUC) - (1 - AUC_r)) / (1 - AUC_r + 1e-10) * 100, AUC of Min-K with k = 0.4.
    Unit: percent.
    Range: >= -100.
    Direction: zero. Negative: the forget set is still recognised; positive: it was pushed below
        unseen text, which gives it away too.
    Empty input: InputError.
    Source: MUSE, arXiv:2407.06460, PrivLeak.
    Differs from widely used code: that takes AUC_r = 0.5 where no retain results are given, so its
        retain models show 23.48 (Llama-3.2-1B, retain90: AUC .38261) where this gives 0. A retain
        AUC of 1 is an error here. The 1e-10 is that code's: 2e-8 percent. Last label: see
        ``min_k_auc``.

    Args:
        forget_records: Forget texts scored by the run, ``(B,)``.
        holdout_records: Unseen texts of the same kind scored by the run, ``(B,)``.
        retain_auc: ``min_k_auc`` of the retain model, 0 to below 1.
        conventions: ``last_label`` matters here.

    Raises:
        InputError: If a set is empty, a row lacks its scores, or the retain AUC is 1.

    Example:
        >>> known, new = (Record("privleak", "p/0", "a", min_k=value) for value in (1.0, 2.0))
        >>> round(privleak([known], [new], retain_auc=0.5).value, 6)
        -100.0
    """
    auc = min_k_auc(forget_records, holdout_records, conventions)
    n = len(forget_records) + len(holdout_records)
    return privleak_from_auc(Metric(auc, "retain", n), retain_auc)


def _checked_scores(
    forget: Sequence[float] | Floats, holdout: Sequence[float] | Floats
) -> tuple[Floats, Floats]:
    pair = (np.asarray(forget, dtype=np.float64), np.asarray(holdout, dtype=np.float64))
    for name, scores in zip(("forget", "holdout"), pair, strict=True):
        if len(scores) == 0:
            raise InputError(f"AUC: no rows to score; the {name} set is empty.")
        if not np.isfinite(scores).all():
            bad = int(np.flatnonzero(~np.isfinite(scores))[0])
            raise InputError(
                f"AUC: {name} row {bad} has the score {scores[bad]}; it must be finite."
            )
    return pair


def _bootstrap_interval(forget: Floats, holdout: Floats) -> tuple[float, float]:
    """Return the 95 % percentile interval of the AUC over stratified resamples.

    Scores are replaced by their ranks once; a resample is then a count of each rank.
    """
    levels, places = np.unique(np.concatenate((forget, holdout)), return_inverse=True)
    sides = places[: len(forget)], places[len(forget) :]
    generator = np.random.default_rng(_SEED)
    at_once = max(1, _MAX_COUNTS // len(levels))
    aucs: list[Floats] = []
    for start in range(0, _RESAMPLES, at_once):
        num = min(at_once, _RESAMPLES - start)
        counts = [_resample(side, len(levels), num, generator) for side in sides]
        below = np.cumsum(counts[0], axis=1) - counts[0] / 2
        aucs.append((below * counts[1]).sum(axis=1) / (len(forget) * len(holdout)))
    low, high = np.percentile(np.concatenate(aucs), (2.5, 97.5))
    return float(low), float(high)


def _resample(places: Any, num_levels: int, num: int, generator: np.random.Generator) -> Any:
    """Return how often each rank is drawn, ``(num, num_levels)``."""
    drawn = places[generator.integers(0, len(places), (num, len(places)))]
    drawn += num_levels * np.arange(num)[:, None]
    return np.bincount(drawn.ravel(), minlength=num * num_levels).reshape(num, num_levels)
