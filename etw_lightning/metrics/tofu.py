"""TOFU's two numbers: forget quality and model utility.

They read the same fields of ``forget`` and ``forget_paraphrased``, of ``retain`` and
``retain_paraphrased``: the latter ask the same questions in other words.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from etw_lightning.metrics.likelihoods import (
    GOLD_IS_RIGHT,
    normalised_probabilities,
    probabilities,
    true_better,
    truth_ratios,
)
from etw_lightning.metrics.text import rouge_values
from etw_lightning.metrics.values import Floats, check_same_rows, harmonic_mean, mean_of
from etw_lightning.metrics.words import WordRule
from etw_lightning.notices import warn_first
from etw_lightning.schema import InputError, Record

__all__ = [
    "ForgetQualityResult",
    "ModelUtilityResult",
    "forget_quality",
    "forget_quality_floor",
    "forget_quality_of",
    "model_utility",
    "model_utility_of",
    "utility_values",
]


@dataclass(frozen=True)
class ForgetQualityResult:
    """Forget quality, and what it was read from.

    Args:
        p_value: Forget quality, 0 to 1; up.
        d_statistic: Largest distance of the two distribution functions, 0 to 1; down.
        d_times_n: The same in rows, so that runs can be compared exactly.
        n: Rows of the run.
        m: Rows of the retain results; equal to ``n``.
        floor: Smallest p-value these ``n`` can give.
        neg_log10: ``-log10(p_value)``, >= 0; down. Finite also where ``p_value`` underflows to 0.
    """

    p_value: float
    d_statistic: float
    d_times_n: int
    n: int
    m: int
    floor: float
    neg_log10: float


@dataclass(frozen=True)
class ModelUtilityResult:
    """Model utility and its nine parts.

    Args:
        value: Harmonic mean of the parts, 0 to 1; up.
        parts: ``{retain,real_authors,world_facts}_{probability,rouge,truth_ratio}``, each 0 to 1;
            ``retain_paraphrased`` for ``retain`` where that set was given.
        n: Rows of the three sets together.
    """

    value: float
    parts: dict[str, float]
    n: int


#: Rows of a sample up to which ``scipy.stats.ks_2samp`` counts orders instead of taking a limit.
EXACT_ROWS = 10_000


def forget_quality_floor(n: int) -> float:
    """Smallest p-value of forget quality with n rows in each sample.

    Formula: 2 / C(2n, n), the two orders of 2n values in which one sample lies below the other.
    Unit: probability.
    Range: above 0, at most 1; 0 where it underflows, above 540 rows.
    Direction: none; a collapsed model's forget quality stands on it.
    Empty input: 2 for n = 0; forget quality itself is an InputError there.
    Source: derived; it agrees with published runs of 400 rows that collapsed, 1.06e-239.
    Differs from widely used code: there is none; 40 rows can't go below 1.86e-23, 400 rows not
        below 1.06e-239, so p-values of different n don't compare.

    Args:
        n: Rows of each sample.

    Example:
        >>> forget_quality_floor(40)
        1.8603403656036264e-23
    """
    return 2 / math.comb(2 * n, n)


def forget_quality(
    records: Sequence[Record], retain_records: Sequence[Record]
) -> ForgetQualityResult:
    """Forget quality: can the run's truth ratios be told from the retain model's?

    Formula: p = P(D >= d), exact, of the two-sided two-sample Kolmogorov-Smirnov test on
        ``truth_ratios``; d is the largest distance of the two distribution functions. Above 10,000
        rows asymptotic, as scipy has it, with a warning.
    Unit: probability.
    Range: ``floor`` = 2 / C(2n, n) to 1. p-values of different n don't compare: above .05 means
        D*n <= 38 of 400, 27 of 200, 12 of 40. Shown with D*n, n and the floor therefore.
    Direction: up.
    Empty input: InputError. Also where the two hold different rows: another number, another id
        (ids ``set/row``, given to logs without ids, match any), another answer (spaces aside).
    Source: TOFU, arXiv:2401.06121, "Forget Quality"; ``scipy.stats.ks_2samp``.
    Differs from widely used code: that compares the two sets unchecked. The number is the same but
        for d <= 1/n, which is exactly 1 here: at n = 7 and d = 1/7 that gives .99996.

    Args:
        records: Forget set scored by the run, ``(B,)``.
        retain_records: The same rows scored by the retain model, ``(B,)``.

    Raises:
        InputError: If the rows differ, or one lacks a loss.

    Example:
        >>> rows = [Record("forget", "f/0", "a", paraphrase_loss=1.0, perturbed_losses=(2.0,))]
        >>> forget_quality(rows, rows).p_value
        1.0
    """
    check_same_rows(records, retain_records)
    return forget_quality_of(truth_ratios(records), truth_ratios(retain_records))


def forget_quality_of(
    ratios: Sequence[float] | Floats, retain_ratios: Sequence[float] | Floats
) -> ForgetQualityResult:
    """Forget quality of truth ratios that are there; see ``forget_quality``.

    Args:
        ratios: ``truth_ratios`` of the run, ``(B,)``.
        retain_ratios: Of the retain model, as many.

    Raises:
        InputError: If there is none, or their numbers differ.

    Example:
        >>> forget_quality_of([1.0, 2.0], [3.0, 4.0]).d_times_n
        2
    """
    from scipy.stats import ks_2samp

    n = len(ratios)
    if n == 0 or n != len(retain_ratios):
        raise InputError(
            f"forget quality: no rows to score, or other ones: {n} truth ratios of the run, "
            f"{len(retain_ratios)} of the retain model."
        )
    with warnings.catch_warnings():
        # Where p is 1, rounding can lift scipy's exact sum above 1; it then warns and approximates.
        warnings.filterwarnings("ignore", "ks_2samp: Exact", RuntimeWarning)
        test = ks_2samp(ratios, retain_ratios)
    if n > EXACT_ROWS:
        warn_first(
            f"forget quality of {n} rows is not exact: above {EXACT_ROWS:,} rows scipy takes the "
            "limit of many rows for the distribution of D."
        )
    distance = float(test.statistic)
    rows = round(distance * n)
    p_value = float(test.pvalue) if rows > 1 else 1.0
    neg_log10 = -math.log10(p_value) if p_value > 0 else _neg_log10_exact(rows, n)
    return ForgetQualityResult(
        p_value, distance, rows, n, n, forget_quality_floor(n), neg_log10 + 0.0
    )


def model_utility(
    records_by_set: Mapping[str, Sequence[Record]],
    retain_set: str = "retain",
    words: WordRule = "published",
) -> ModelUtilityResult:
    """Model utility: what the model should still know, as one number of nine parts.

    Formula: harmonic mean of probability, ROUGE-L recall and ``true_better`` truth ratio, each a
        mean over the rows of ``retain``, ``real_authors`` and ``world_facts``; the probability is
        normalised over the alternatives for the latter two.
    Unit: fraction.
    Range: 0 to 1; 0 where a part is 0.
    Direction: up.
    Empty input: InputError; also a missing set.
    Source: TOFU, arXiv:2401.06121, "Model Utility".
    Differs from widely used code: float64 probabilities, less than 1e-8: 0.599153471 for
        Llama-3.2-1B's target model in both. ``retain_paraphrased`` in place of ``retain`` is what
        that code gives with ``question_key: paraphrased_question``.

    Args:
        records_by_set: The three sets.
        retain_set: ``retain_paraphrased`` for paraphrased questions.
        words: ``published``, or ``unicode`` for texts that are not of a-z; see ``rouge_scores``.

    Raises:
        InputError: If a set or a field is missing, or a loss is not finite.

    Example:
        >>> sure = Record("retain", "r/0", "yes", answer_loss=0.0, paraphrase_loss=0.0,
        ...     perturbed_losses=(99.0,), generation="Yes.")
        >>> sets = ("retain", "real_authors", "world_facts")
        >>> round(model_utility({name: [sure] for name in sets}).value, 6)
        1.0
    """
    values: dict[str, Floats] = {}
    names = (retain_set, *GOLD_IS_RIGHT)
    for name in names:
        if name not in records_by_set:
            raise InputError(
                f"model utility: needs the set {name!r}, got {sorted(records_by_set)}."
            )
        values |= utility_values(records_by_set[name], name, words)
    return model_utility_of(values)


def utility_values(
    records: Sequence[Record], name: str, words: WordRule = "published"
) -> dict[str, Floats]:
    """What ``model_utility`` reads of each row of one set, ``(B,)``, by part.

    Args:
        records: Rows of the set.
        name: Of the set.
        words: ``published``, or ``unicode`` for texts that are not of a-z; see ``rouge_scores``.

    Example:
        >>> sure = Record("retain", "r/0", "yes", answer_loss=0.0, paraphrase_loss=0.0,
        ...     perturbed_losses=(99.0,), generation="No.")
        >>> utility_values([sure], "retain")["retain_rouge"].tolist()
        [0.0]
    """
    score = normalised_probabilities if name in GOLD_IS_RIGHT else probabilities
    return {
        f"{name}_probability": score(records),
        f"{name}_rouge": rouge_values(records, "rougeL_recall", words=words),
        f"{name}_truth_ratio": truth_ratios(records),
    }


def model_utility_of(values: Mapping[str, Sequence[float] | Floats]) -> ModelUtilityResult:
    """Model utility of what ``utility_values`` gives of the three sets; see ``model_utility``.

    Raises:
        InputError: If a part has no rows.

    Example:
        >>> names = (f"{name}_{part}" for name in ("retain", "real_authors", "world_facts")
        ...     for part in ("probability", "rouge", "truth_ratio"))
        >>> model_utility_of({name: [0.5] for name in names}).value
        0.5
    """
    parts = {
        name: true_better(found) if name.endswith("truth_ratio") else mean_of(found)
        for name, found in values.items()
    }
    n = sum(len(found) for name, found in values.items() if name.endswith("probability"))
    return ModelUtilityResult(harmonic_mean(list(parts.values())), parts, n)


def _neg_log10_exact(rows: int, n: int) -> float:
    """Return -log10 P(D >= rows/n) from counted paths, for p-values below the float range."""
    above = sum(
        (-1) ** (step + 1) * math.comb(2 * n, n - step * rows) for step in range(1, n // rows + 1)
    )
    return math.log10(math.comb(2 * n, n)) - math.log10(2 * above)
