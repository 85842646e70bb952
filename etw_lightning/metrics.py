"""Pure functions from records to numbers; no model, no tokenizer, no file.

Losses and log-probabilities are in nats, shapes use ``B`` for rows. Probabilities, ROUGE, truth
ratios and model utility are fractions; MUSE's three numbers are percent. Everything is computed in
float64, also where a published log was made in float32: that moves a probability by 1e-7 of itself
and model utility by less than 1e-8.

Empty input, a missing field, NaN and infinity are an ``InputError`` that names set and row: nothing
is skipped and nothing is replaced. The widely used code (open-unlearning) leaves such rows out of
the mean without a word; no log we hold has one, so no published number differs for it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from etw_lightning.schema import InputError, Record

__all__ = [
    "Direction",
    "ForgetQualityResult",
    "Metric",
    "ModelUtilityResult",
    "closer_to_one",
    "forget_quality",
    "forget_quality_floor",
    "harmonic_mean",
    "knowmem",
    "min_k_auc",
    "min_k_score",
    "model_utility",
    "normalised_probabilities",
    "privleak",
    "probabilities",
    "rouge_scores",
    "rouge_values",
    "true_better",
    "truth_ratios",
    "verbmem",
]

#: Which way is better: up, down, or as near to zero as possible.
Direction = Literal["up", "down", "zero"]
RougeName = Literal["rouge1_recall", "rougeL_recall", "rougeL_f1"]
Floats = NDArray[np.float64]

#: Added to denominators by the widely used code; kept, or its numbers would not come out.
_TINY = 1e-10
#: TOFU sets without paraphrases: the gold answer stands for the right one.
_GOLD_IS_RIGHT = ("real_authors", "world_facts")


@dataclass(frozen=True)
class Metric:
    """One number, and how to read it.

    Args:
        value: The number, in the unit of the function that made it.
        direction: Which way is better.
        n: Rows it was computed from.

    Example:
        >>> Metric.mean([1.0, 0.0], "up")
        Metric(value=0.5, direction='up', n=2)
    """

    value: float
    direction: Direction
    n: int

    @classmethod
    def mean(cls, values: Sequence[float] | Floats, direction: Direction) -> Metric:
        """Return the mean of a value per row, in its unit."""
        return cls(_mean(values), direction, len(values))


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
        parts: ``{retain,real_authors,world_facts}_{probability,rouge,truth_ratio}``, each 0 to 1.
        n: Rows of the three sets together.
    """

    value: float
    parts: dict[str, float]
    n: int


def probabilities(records: Sequence[Record]) -> Floats:
    """Length-normalised probability of each gold answer, exp(-answer_loss), ``(B,)``.

    Range 0 to 1; down on forget, up elsewhere. Empty input: InputError.
    Source: TOFU, arXiv:2401.06121, "Probability" (there P(a|q)^(1/|a|)).
    Differs from widely used code: float64, so up to 1e-7 of the value.

    Example:
        >>> probabilities([Record("forget", "forget10/0", "Paris.", answer_loss=0.0)]).tolist()
        [1.0]
    """
    return np.exp(-_column(records, "answer_loss"))


def normalised_probabilities(records: Sequence[Record]) -> Floats:
    """Probability of each gold answer among its alternatives, p / (p + sum of wrong p), ``(B,)``.

    For TOFU's real authors and world facts, which are multiple choice. Each p is the exponential
    of minus a mean loss. Range 0 to 1; up. Empty input: InputError.
    Source: TOFU, arXiv:2401.06121, "Probability".
    Differs from widely used code: float64. As there, 1e-10 is added to the denominator, which the
    paper does not have; single rows shrink by up to 7e-5 of themselves.

    Example:
        >>> row = Record("world_facts", "w/0", "Paris", answer_loss=1.0, perturbed_losses=(1.0,))
        >>> [round(value, 6) for value in normalised_probabilities([row]).tolist()]
        [0.5]
    """
    right = probabilities(records)
    wrong = np.array([np.exp(-np.array(losses)).sum() for losses in _perturbed(records)])
    return right / (right + wrong + _TINY)


def truth_ratios(records: Sequence[Record]) -> Floats:
    """Likelihood of the wrong answers over that of the right one, per token, ``(B,)``.

    exp(-mean of the perturbed losses) / (exp(-right loss) + 1e-10). The right answer is the
    paraphrased one, and the gold one in ``real_authors`` and ``world_facts``, which have no
    paraphrase. Range >= 0; near 1 or above where the right answer isn't known. Empty: InputError.
    Source: TOFU, arXiv:2401.06121, "Truth Ratio".
    Differs from widely used code: nothing. The paper has the mean of the probabilities above; all
    published numbers have the exponential of the mean loss, a geometric mean, as here.

    Example:
        >>> row = Record("forget", "f/0", "a", paraphrase_loss=1.0, perturbed_losses=(0.5, 1.5))
        >>> [round(value, 6) for value in truth_ratios([row]).tolist()]
        [1.0]
    """
    wrong = np.exp([-np.mean(losses) for losses in _perturbed(records)])
    right = [
        _number(record, row, "answer_loss" if _is_gold_right(record) else "paraphrase_loss")
        for row, record in enumerate(records)
    ]
    return wrong / (np.exp(-np.array(right)) + _TINY)


def closer_to_one(ratios: Sequence[float] | Floats) -> float:
    """Mean of min(r, 1/(r + 1e-10)): how undecided a model is between right and wrong answers.

    For truth ratios of the forget set. Range 0 to 1; up. Empty input: InputError.
    Source: TOFU, arXiv:2401.06121, truth ratio on the forget set.
    Differs from widely used code: nothing.

    Example:
        >>> closer_to_one([0.5, 2.0, 1.0])
        0.666666666625
    """
    values = np.asarray(ratios, dtype=np.float64)
    return _mean(np.minimum(values, 1 / (values + _TINY)))


def true_better(ratios: Sequence[float] | Floats) -> float:
    """Mean of max(0, 1 - r): how far a model prefers right answers to wrong ones.

    For truth ratios of every set but forget. Range 0 to 1; up. Empty input: InputError.
    Source: TOFU, arXiv:2401.06121, truth ratio on the retain sets.
    Differs from widely used code: nothing.

    Example:
        >>> true_better([0.5, 2.0])
        0.25
    """
    return _mean(np.maximum(0.0, 1 - np.asarray(ratios, dtype=np.float64)))


def rouge_scores(prediction: str, reference: str) -> dict[RougeName, float]:
    """ROUGE of one text: unigram recall, and recall and F1 of the longest common subsequence.

    Words are lower-cased runs of letters and digits, Porter-stemmed. Range 0 to 1; a text without
    words gives 0. TOFU reports ``rougeL_recall``, MUSE ``rougeL_f1``.
    Source: Lin 2004; the package ``rouge_score`` with ``use_stemmer=True``.
    Differs from widely used code: nothing (open-unlearning). MUSE's authors don't stem, which
    changes a number in 86 of the 600 logged MUSE rows.

    Example:
        >>> rouge_scores("He loves inspired books", "inspired book")["rougeL_recall"]
        1.0
    """
    scores = _rouge_scorer().score(reference, prediction)
    return {
        "rouge1_recall": float(scores["rouge1"].recall),
        "rougeL_recall": float(scores["rougeL"].recall),
        "rougeL_f1": float(scores["rougeL"].fmeasure),
    }


def rouge_values(records: Sequence[Record], name: RougeName) -> Floats:
    """One of ``rouge_scores`` for each generation against its gold answer, ``(B,)``.

    Range 0 to 1; down on forget, up elsewhere. Empty input: InputError; an empty generation: 0.
    Source and differences: see ``rouge_scores``.

    Example:
        >>> row = Record("forget", "f/0", "In Paris.", generation="Paris, I think")
        >>> rouge_values([row], "rougeL_recall").tolist()
        [0.5]
    """
    _check_rows(records)
    return np.array(
        [
            rouge_scores(_present(record, row, "generation"), record.answer)[name]
            for row, record in enumerate(records)
        ]
    )


def forget_quality_floor(n: int) -> float:
    """Smallest p-value of forget quality with ``n`` rows in each sample, 2 / C(2n, n).

    It is what a collapsed model shows: 1.06e-239 for 400 rows. Correctly rounded; 0 where that
    underflows, above 540 rows.

    Example:
        >>> forget_quality_floor(40)
        1.8603403656036264e-23
    """
    return 2 / math.comb(2 * n, n)


def forget_quality(
    records: Sequence[Record], retain_records: Sequence[Record]
) -> ForgetQualityResult:
    """Exact p-value of the two-sided Kolmogorov-Smirnov test on truth ratios, run against retain.

    p = P(D >= d) if both samples came from one distribution, d the largest distance of their
    distribution functions. Range ``floor`` to 1; up. p-values of different ``n`` don't compare.
    Empty input: InputError. Also where the two hold different rows: another number, another id
    (ids ``set/row``, given to logs without ids, match any), another answer (spaces aside).
    Source: TOFU, arXiv:2401.06121, "Forget Quality"; ``scipy.stats.ks_2samp``.
    Differs from widely used code: that compares the two sets unchecked. The number is the same but
    for d <= 1/n, which is exactly 1 here (there .99996 at n = 7).

    Args:
        records: Forget set scored by the run, ``(B,)``.
        retain_records: The same rows scored by the retain model, ``(B,)``.

    Example:
        >>> rows = [Record("forget", "f/0", "a", paraphrase_loss=1.0, perturbed_losses=(2.0,))]
        >>> forget_quality(rows, rows).p_value
        1.0
    """
    from scipy.stats import ks_2samp

    _check_same_rows(records, retain_records)
    n = len(records)
    samples = truth_ratios(records), truth_ratios(retain_records)
    with warnings.catch_warnings():
        # Where p is 1, rounding can lift scipy's exact sum above 1; it then warns and approximates.
        warnings.filterwarnings("ignore", "ks_2samp: Exact", RuntimeWarning)
        test = ks_2samp(*samples)
    distance = float(test.statistic)
    rows = round(distance * n)
    p_value = float(test.pvalue) if rows > 1 else 1.0
    neg_log10 = -math.log10(p_value) if p_value > 0 else _neg_log10_exact(rows, n)
    return ForgetQualityResult(
        p_value, distance, rows, n, len(retain_records), forget_quality_floor(n), neg_log10 + 0.0
    )


def harmonic_mean(values: Sequence[float]) -> float:
    """Count over the sum of reciprocals; 0 if a value is 0. Values >= 0; empty: InputError.

    Example:
        >>> harmonic_mean([1.0, 0.5])
        0.6666666666666666
    """
    if not values or min(values) < 0:
        raise InputError(f"harmonic mean: needs values >= 0, got {list(values)}.")
    return 0.0 if min(values) == 0 else len(values) / sum(1 / value for value in values)


def model_utility(records_by_set: Mapping[str, Sequence[Record]]) -> ModelUtilityResult:
    """Harmonic mean of nine scores of what the model should still know.

    Of ``retain``, ``real_authors`` and ``world_facts`` each: mean probability (normalised for the
    latter two), mean ROUGE-L recall, ``true_better`` of the truth ratios. Range 0 to 1; up.
    Empty or missing set: InputError.
    Source: TOFU, arXiv:2401.06121, "Model Utility".
    Differs from widely used code: float64 probabilities, below 1e-8.

    Example:
        >>> sure = Record("retain", "r/0", "yes", answer_loss=0.0, paraphrase_loss=0.0,
        ...     perturbed_losses=(99.0,), generation="Yes.")
        >>> sets = ("retain", "real_authors", "world_facts")
        >>> round(model_utility({name: [sure] for name in sets}).value, 6)
        1.0
    """
    parts: dict[str, float] = {}
    for name in ("retain", *_GOLD_IS_RIGHT):
        if name not in records_by_set:
            raise InputError(
                f"model utility: needs the set {name!r}, got {sorted(records_by_set)}."
            )
        records = records_by_set[name]
        score = normalised_probabilities if name in _GOLD_IS_RIGHT else probabilities
        parts[f"{name}_probability"] = _mean(score(records))
        parts[f"{name}_rouge"] = _mean(rouge_values(records, "rougeL_recall"))
        parts[f"{name}_truth_ratio"] = true_better(truth_ratios(records))
    n = sum(len(records_by_set[name]) for name in ("retain", *_GOLD_IS_RIGHT))
    return ModelUtilityResult(harmonic_mean(list(parts.values())), parts, n)


def verbmem(records: Sequence[Record]) -> Metric:
    """Verbatim memorisation: mean ROUGE-L F1 of continued forget passages, percent.

    Range 0 to 100; down. Empty input: InputError.
    Source: MUSE, arXiv:2407.06460, VerbMem.
    Differs from widely used code: percent where that has fractions. MUSE's authors don't stem.

    Example:
        >>> verbmem([Record("verbmem", "verbmem/0", "the end", generation="the end")])
        Metric(value=100.0, direction='down', n=1)
    """
    return Metric.mean(100 * rouge_values(records, "rougeL_f1"), "down")


def knowmem(records: Sequence[Record], direction: Literal["up", "down"]) -> Metric:
    """Knowledge memorisation: mean ROUGE-L F1 of generated answers, percent.

    Range 0 to 100; ``direction`` is down for forget and up for retain questions. Empty: InputError.
    Source: MUSE, arXiv:2407.06460, KnowMem.
    Differs from widely used code: percent where that has fractions. MUSE's authors don't stem.

    Example:
        >>> knowmem([Record("knowmem_retain", "k/0", "1956", generation="1957")], "up").value
        0.0
    """
    return Metric.mean(100 * rouge_values(records, "rougeL_f1"), direction)


def min_k_score(token_logps: Sequence[float], k: float = 0.4) -> float:
    """Minus the mean log-probability of the int(k * n) least likely tokens, at least one; nats.

    Range >= 0; higher means less likely to have been trained on. Empty input: InputError.
    Source: Shi et al. 2023, arXiv:2310.16789, Min-K% Prob; MUSE uses k = 0.4.
    Differs from widely used code: that gives 0, the surest member, to an empty row.

    Args:
        token_logps: Log-probability of each token, nats, ``(N,)``, in any order.
        k: Share of the tokens, above 0, at most 1.

    Example:
        >>> min_k_score([-1.0, -4.0, -2.0, -3.0, -0.5])
        3.5
    """
    if not 0 < k <= 1:
        raise InputError(f"min-k: k must be above 0 and at most 1, got {k}.")
    return -_mean(sorted(token_logps)[: max(1, int(len(token_logps) * k))])


def min_k_auc(forget: Sequence[Record], holdout: Sequence[Record]) -> float:
    """Probability that a forget row has a lower Min-K score than a holdout row; ties count half.

    Range 0 to 1: 1 where the forget set is recognised, near 0.5 for a model never trained on it,
    below where it was pushed away. Best at the retain model's. Empty input: InputError.
    Source: MUSE, arXiv:2407.06460, PrivLeak; ROC-AUC with the Min-K score, k = 0.4.
    Differs from widely used code: nothing. A row with ``min_k`` is taken at its word.

    Example:
        >>> known, new = (Record("privleak", "p/0", "a", min_k=value) for value in (1.0, 2.0))
        >>> min_k_auc([known], [new])
        1.0
    """
    from sklearn.metrics import roc_auc_score

    _check_rows(forget)
    _check_rows(holdout)
    scores = [_min_k(record, row) for rows in (forget, holdout) for row, record in enumerate(rows)]
    return float(roc_auc_score([0] * len(forget) + [1] * len(holdout), scores))


def privleak(
    forget_records: Sequence[Record], holdout_records: Sequence[Record], retain_auc: float
) -> Metric:
    """Distance to the retain model's AUC: ((1-AUC) - (1-AUC_r)) / (1-AUC_r + 1e-10), percent.

    Range >= -100; best at 0. Negative: the forget set is still recognised; positive: it was pushed
    below unseen text, which gives it away too. Empty input: InputError.
    Source: MUSE, arXiv:2407.06460, PrivLeak.
    Differs from widely used code: a retain AUC of 1, which leaves nothing to compare with, is an
    error here. The 1e-10 is that code's, not the paper's: 2e-8 percent.

    Args:
        forget_records: Forget texts scored by the run, ``(B,)``.
        holdout_records: Unseen texts of the same kind scored by the run, ``(B,)``.
        retain_auc: ``min_k_auc`` of the retain model, 0 to below 1.

    Example:
        >>> known, new = (Record("privleak", "p/0", "a", min_k=value) for value in (1.0, 2.0))
        >>> round(privleak([known], [new], retain_auc=0.5).value, 6)
        -100.0
    """
    if not 0 <= retain_auc < 1:
        raise InputError(
            f"privleak: the AUC of data.retain_results must be from 0 to below 1, got "
            f"{retain_auc}; at 1 that model knows the forget set and is no retain model."
        )
    rest, rest_retain = 1 - min_k_auc(forget_records, holdout_records), 1 - retain_auc
    value = (rest - rest_retain) / (rest_retain + _TINY) * 100
    return Metric(value, "zero", len(forget_records) + len(holdout_records))


def _mean(values: Sequence[float] | Floats) -> float:
    if len(values) == 0:
        raise InputError("metrics: no rows to average; the set is empty.")
    mean = float(np.mean(values))
    if not math.isfinite(mean):
        raise InputError(f"metrics: the mean of {len(values)} values is {mean}; check the records.")
    return mean


def _check_rows(records: Sequence[Record]) -> None:
    if len(records) == 0:
        raise InputError("metrics: no rows to score; the set is empty.")


def _where(record: Record, row: int) -> str:
    return f"set {record.dataset!r}, row {row} ({record.id})"


def _present(record: Record, row: int, name: str) -> Any:
    value = getattr(record, name)
    if value is None or value == ():
        raise InputError(f"{_where(record, row)}: {name} is missing; score the set with it.")
    return value


def _finite(value: float | None, record: Record, row: int, name: str) -> float:
    if value is None or not math.isfinite(value):
        raise InputError(f"{_where(record, row)}: {name} must be finite, got {value}.")
    return value


def _number(record: Record, row: int, name: str) -> float:
    return _finite(_present(record, row, name), record, row, name)


def _column(records: Sequence[Record], name: str) -> Floats:
    _check_rows(records)
    return np.array([_number(record, row, name) for row, record in enumerate(records)])


def _perturbed(records: Sequence[Record]) -> list[list[float]]:
    _check_rows(records)
    name = "perturbed_losses"
    return [
        [_finite(loss, record, row, name) for loss in _present(record, row, name)]
        for row, record in enumerate(records)
    ]


def _is_gold_right(record: Record) -> bool:
    return record.dataset in _GOLD_IS_RIGHT


def _min_k(record: Record, row: int) -> float:
    if record.min_k is not None:
        return _number(record, row, "min_k")
    logps = _present(record, row, "token_logps")
    return min_k_score([_finite(logp, record, row, "token_logps") for logp in logps])


def _check_same_rows(records: Sequence[Record], retain_records: Sequence[Record]) -> None:
    _check_rows(records)
    _check_rows(retain_records)
    if len(records) != len(retain_records):
        raise InputError(
            f"data.retain_results: its set {retain_records[0].dataset!r} holds "
            f"{len(retain_records)} rows, this run's {records[0].dataset!r} {len(records)}: it was "
            f"made for another forget split; give the one made for this split."
        )
    for row, (ours, theirs) in enumerate(zip(records, retain_records, strict=True)):
        has_ids = all(record.id != f"{record.dataset}/{row}" for record in (ours, theirs))
        texts = ["".join(record.answer.split()) for record in (ours, theirs)]
        if (has_ids and ours.id != theirs.id) or (all(texts) and texts[0] != texts[1]):
            raise InputError(
                f"data.retain_results: row {row} is {theirs.id} ({theirs.answer!r:.60}), this "
                f"run's is {ours.id} ({ours.answer!r:.60}); both must score the same rows."
            )


def _neg_log10_exact(rows: int, n: int) -> float:
    """Return -log10 P(D >= rows/n) from counted paths, for p-values below the float range."""
    above = sum(
        (-1) ** (step + 1) * math.comb(2 * n, n - step * rows) for step in range(1, n // rows + 1)
    )
    return math.log10(math.comb(2 * n, n)) - math.log10(2 * above)


@cache
def _rouge_scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rouge1", "rougeL"], use_stemmer=True)
