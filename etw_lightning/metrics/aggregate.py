"""Numbers made of other metrics: the paper's table, and the scores of the 2025 meta-evaluation.

Of the meta-evaluation (arXiv:2506.12618, appendix F.1), [S] marks what it states, [D] what it
leaves open and is derived here from its table of methods.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from etw_lightning.metrics.attacks import Attack
from etw_lightning.metrics.tofu import ForgetQualityResult
from etw_lightning.metrics.values import Metric, harmonic_mean
from etw_lightning.schema import InputError

__all__ = [
    "PRIVACY_ATTACKS",
    "abs_privleak",
    "membership_similarity",
    "memorisation_score",
    "neg_log10_forget_quality",
    "paper_aggregate",
    "privacy_score",
    "unlearning_score",
    "utility_drop",
    "utility_score",
]

#: Attacks of the privacy score.
PRIVACY_ATTACKS: tuple[Attack, ...] = ("loss", "zlib", "min_k", "min_k_plus_plus")
#: Parts of the memorisation score.
_MEMORISATION = (
    "extraction_strength",
    "exact_memorisation",
    "paraphrase_probability",
    "truth_probability",
)


def neg_log10_forget_quality(quality: ForgetQualityResult) -> Metric:
    """-log10 FQ: forget quality on a scale that keeps small p-values apart.

    Formula: -log10(p) of ``forget_quality``; from counted paths where p is below the float range.
    Unit: powers of ten.
    Range: 0 to -log10 of the floor: 238.97 for 400 rows, 118.71 for 200, 22.73 for 40.
    Direction: down.
    Empty input: InputError, from ``forget_quality``.
    Source: arXiv:2604.17785, its main table.
    Differs from widely used code: there the p-value is printed. D*n = 52 of 400, p = 2.294e-3, is
        2.639, the paper's gradient ascent.

    Args:
        quality: Of ``forget_quality``.

    Example:
        >>> row = ForgetQualityResult(0.01, 0.5, 4, 8, 8, 1e-4, 2.0)
        >>> neg_log10_forget_quality(row).value
        2.0
    """
    return Metric(quality.neg_log10, "down", quality.n)


def utility_drop(utility: Metric, start: Metric) -> Metric:
    """dMU: how much model utility is lost.

    Formula: 100 * (start - run), start being the target model's utility or the retain model's.
    Unit: points, percent of the scale.
    Range: -100 to 100; negative where the run has more.
    Direction: down.
    Empty input: InputError, from ``model_utility``.
    Source: arXiv:2604.17785, its main table; which of the two it starts from is not stated, so
        both are reported.
    Differs from widely used code: there is none. From Llama-3.2-1B's target (.59915) a run with
        .56 has lost 3.915 points, from its retain90 model (.59112) 3.112.

    Args:
        utility: Model utility of the run, fraction.
        start: Of the target model, or of the retain model.

    Example:
        >>> run, target = Metric(0.56, "up", 617), Metric(0.59915, "up", 617)
        >>> round(utility_drop(run, target).value, 3)
        3.915
    """
    return Metric(100 * (start.value - utility.value), "down", utility.n)


def paper_aggregate(neg_log10: Metric, drop: Metric) -> Metric:
    """Agg of the paper: forget quality and lost utility as one number.

    Formula: -log10 FQ * dMU.
    Unit: powers of ten times points.
    Range: any number.
    Direction: down. It degenerates: 0 at FQ = 1 whatever was lost, 0 without loss whatever was
        left, negative where utility rises, then the lower the worse FQ. Never select on it alone.
    Empty input: InputError, from its parts.
    Source: arXiv:2604.17785, its main table.
    Differs from widely used code: there is none. 2.6394 * 4.271 = 11.273 is the paper's gradient
        ascent; the untouched target model has 21.41 * 0 = 0, better than every method.

    Args:
        neg_log10: Of ``neg_log10_forget_quality``.
        drop: Of ``utility_drop``.

    Example:
        >>> round(paper_aggregate(Metric(2.6394, "down", 400), Metric(4.271, "down", 617)).value, 3)
        11.273
    """
    return Metric(neg_log10.value * drop.value, "down", min(neg_log10.n, drop.n))


def abs_privleak(privleak: Metric) -> Metric:
    """Absolute PrivLeak: distance to the retain model's AUC without its sign.

    Formula: abs(privleak); of an interval that holds 0 the lower end is 0.
    Unit: percent.
    Range: >= 0.
    Direction: down.
    Empty input: InputError, from ``privleak``.
    Source: arXiv:2604.17785, its main table; PrivLeak is MUSE's, arXiv:2407.06460.
    Differs from widely used code: there the sign stays: -48.59 is 48.59 here.

    Args:
        privleak: Of ``privleak`` or ``privleak_from_auc``.

    Example:
        >>> abs_privleak(Metric(-9.56, "zero", 800, (-20.0, 1.0)))
        Metric(value=9.56, direction='down', n=800, interval=(0.0, 20.0))
    """
    interval = privleak.interval
    if interval is not None:
        low, high = sorted(map(abs, interval))
        interval = (0.0 if interval[0] < 0 < interval[1] else low, high)
    return Metric(abs(privleak.value), "down", privleak.n, interval)


def memorisation_score(parts: Mapping[str, Metric], target_parts: Mapping[str, Metric]) -> Metric:
    """Mem of the meta-evaluation: how much less is memorised than by the target model.

    Formula: harmonic mean of 1 - m / m_target, cut to 0 to 1, for the four m: extraction strength,
        exact memorisation, probability of the paraphrased answer, truth ratio as p / (p + w).
    Unit: fraction.
    Range: 0 to 1; 0 for the target model, 1 where nothing is left (which no model reaches: a
        retain model of Llama-3.2-1B has .35).
    Direction: up.
    Empty input: InputError, from the parts.
    Source: arXiv:2506.12618, appendix F.1. [S] The harmonic mean of 1 - m of these four; all
        metrics scaled with the target model; questions are the paraphrased ones. [D] That m is
        divided by the target's: its table has 0.00 for the target and .31 for the retain model.
        Dividing gives 0 and .35 from the published logs (whose questions are the original ones),
        not dividing .09 and .58.
    Differs from widely used code: it is not part of any we know that divides; that of
        arXiv:2605.24614 does not: parts .5, .8, .1, .6 of a target with 1, 1, .2, .75 give 0.2857
        here and 0.3770 there.

    Args:
        parts: ``extraction_strength``, ``exact_memorisation``, ``paraphrase_probability``,
            ``truth_probability`` of the run.
        target_parts: The same of the target model, each above 0.

    Raises:
        InputError: If a part is missing, or the target model has 0 in one.

    Example:
        >>> names = ("extraction_strength", "exact_memorisation", "paraphrase_probability",
        ...     "truth_probability")
        >>> run, target = ({name: Metric(x, "down", 400) for name, x in zip(names, row)}
        ...     for row in ((0.5, 0.8, 0.1, 0.6), (1.0, 1.0, 0.2, 0.75)))
        >>> round(memorisation_score(run, target).value, 4)
        0.2857
    """
    _check_parts("memorisation score", _MEMORISATION, parts, target_parts)
    shares = [
        _share_of_target(name, parts[name].value, target_parts[name].value)
        for name in _MEMORISATION
    ]
    return Metric(harmonic_mean([1 - share for share in shares]), "up", _rows(parts))


def membership_similarity(auc: float, retain_auc: float) -> float:
    """s_MIA of the meta-evaluation: how near an attack's AUC is to the retain model's.

    Formula: (1 - AUC) / (1 - AUC_r) where AUC >= AUC_r, else AUC / AUC_r; 1 where they are equal.
    Unit: fraction.
    Range: 0 to 1; 0 where every forget row is told apart, on either side.
    Direction: up.
    Empty input: does not apply.
    Source: arXiv:2506.12618, appendix F.1. [S] From 0 to 1, 1 for the retain model. [D] The
        formula, which it promises and does not give: its table has .10 for the target model and
        .003 for one that pushes the forget set far below unseen text, so both ends are near 0.
    Differs from widely used code: none of the authors' is public. That of arXiv:2605.24614 takes
        1 - abs(AUC - AUC_r) / abs(AUC_target - AUC_r), 0 for the target model: an AUC of 0 against
        an AUC_r of .4 and a target of 1 gives 0 here and 0.3333 there.

    Args:
        auc: AUC of the run, 0 to 1.
        retain_auc: AUC of the retain model under the same attack, 0 to 1.

    Raises:
        InputError: If an AUC is not from 0 to 1.

    Example:
        >>> [round(membership_similarity(auc, 0.4), 4) for auc in (0.0, 0.2, 0.4, 0.7, 1.0)]
        [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    if not (0 <= auc <= 1 and 0 <= retain_auc <= 1):
        raise InputError(f"membership score: an AUC must be from 0 to 1, got {auc}, {retain_auc}.")
    if auc == retain_auc:
        return 1.0
    return (1 - auc) / (1 - retain_auc) if auc > retain_auc else auc / retain_auc


def privacy_score(aucs: Mapping[str, Metric], retain_aucs: Mapping[str, Metric]) -> Metric:
    """Priv of the meta-evaluation: how near four attacks' AUCs are to the retain model's.

    Formula: harmonic mean of ``membership_similarity`` of loss, zlib, min-k and min-k++.
    Unit: fraction.
    Range: 0 to 1; 1 for the retain model.
    Direction: up.
    Empty input: InputError, from the AUCs.
    Source: arXiv:2506.12618, appendix F.1. [S] The harmonic mean over these four. [D] The score of
        each, see ``membership_similarity``.
    Differs from widely used code: see ``membership_similarity``. AUCs of .7 against .4 four times
        give 0.5; one of them at 1 gives 0.

    Args:
        aucs: ``attack_auc`` of the run by attack.
        retain_aucs: The same of the retain model.

    Raises:
        InputError: If an attack is missing.

    Example:
        >>> run, retain = ({name: Metric(auc, "retain", 800) for name in PRIVACY_ATTACKS}
        ...     for auc in (0.7, 0.4))
        >>> round(privacy_score(run, retain).value, 4)
        0.5
    """
    _check_parts("privacy score", PRIVACY_ATTACKS, aucs, retain_aucs)
    scores = [
        membership_similarity(aucs[name].value, retain_aucs[name].value) for name in PRIVACY_ATTACKS
    ]
    return Metric(harmonic_mean(scores), "up", _rows(aucs))


def utility_score(
    utility: Metric, fluency: Metric, target_utility: Metric, target_fluency: Metric
) -> Metric:
    """Util of the meta-evaluation: utility and fluency kept of the target model's.

    Formula: harmonic mean of model utility and fluency, each over the target model's, cut to 1.
    Unit: fraction.
    Range: 0 to 1; 1 for the target model.
    Direction: up.
    Empty input: InputError, from the parts.
    Source: arXiv:2506.12618, appendix F.1. [S] The harmonic mean of model utility and of a
        gibberish classifier's score of the forget set's generations, scaled with the target model
        to 0 to 1. [D] That each is divided before the mean, and what is above 1 cut. Its retain
        model has .99; .59112 / .59915 with equal fluency gives .993.
    Differs from widely used code: none of the authors' is public. That of arXiv:2605.24614 divides
        the mean by the target's mean: utility .3 and fluency .9 of .6 and .9 give 0.6667 here and
        0.625 there.

    Args:
        utility: ``model_utility`` of the run.
        fluency: Share of its forget generations that are no gibberish.
        target_utility: Of the target model, above 0.
        target_fluency: Of the target model, above 0.

    Raises:
        InputError: If the target model has 0 in one.

    Example:
        >>> values = (0.3, 0.9, 0.6, 0.9)
        >>> round(utility_score(*(Metric(value, "up", 400) for value in values)).value, 4)
        0.6667
    """
    shares = [
        _share_of_target("model utility", utility.value, target_utility.value),
        _share_of_target("fluency", fluency.value, target_fluency.value),
    ]
    return Metric(harmonic_mean(shares), "up", min(utility.n, fluency.n))


def unlearning_score(memorisation: Metric, privacy: Metric, utility: Metric) -> Metric:
    """Agg of the meta-evaluation: memorisation, privacy and utility as one number.

    Formula: harmonic mean of ``memorisation_score``, ``privacy_score`` and ``utility_score``.
    Unit: fraction.
    Range: 0 to 1; 0 for the target model, about .6 for a retain model.
    Direction: up.
    Empty input: InputError, from the parts.
    Source: arXiv:2506.12618, section 5 and table 3. [S] The harmonic mean; all ten rows of the
        table follow from their three parts.
    Differs from widely used code: none is public. SimNPO's .32, .63 and 1.00 give 0.5252, printed
        there as .53.

    Args:
        memorisation: Mem.
        privacy: Priv.
        utility: Util.

    Example:
        >>> parts = (Metric(value, "up", 400) for value in (0.32, 0.63, 1.0))
        >>> round(unlearning_score(*parts).value, 4)
        0.5252
    """
    parts = (memorisation, privacy, utility)
    return Metric(harmonic_mean([part.value for part in parts]), "up", min(p.n for p in parts))


def _check_parts(score: str, needed: Sequence[str], *given: Mapping[str, Metric]) -> None:
    """Refuse parts of either model that lack one of those needed."""
    missing = [name for name in needed if any(name not in parts for parts in given)]
    if missing:
        raise InputError(f"{score}: needs {', '.join(needed)}; no {missing[0]}.")


def _share_of_target(name: str, value: float, target: float) -> float:
    """Return how much of the target model's value there is, cut to 0 to 1."""
    if not (math.isfinite(value) and math.isfinite(target) and target > 0):
        raise InputError(
            f"{name}: the target model has {target}, the run {value}; there is nothing to scale "
            f"by: give the records of the model the run started from as data.target_results."
        )
    return min(1.0, max(0.0, value / target))


def _rows(parts: Mapping[str, Metric]) -> int:
    return min(part.n for part in parts.values())
