"""Accuracy on choice questions, from the log-probabilities of the options."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from etw_lightning.metrics.values import Direction, Floats, Metric, check_rows, finite, present
from etw_lightning.metrics.values import where as named
from etw_lightning.schema import InputError, Record

__all__ = ["Normalise", "choice_accuracy", "choice_hits", "wilson_interval"]

#: What an option's log-probability is divided by before the options are compared.
Normalise = Literal["none", "tokens", "characters"]


def choice_accuracy(
    records: Sequence[Record],
    normalise: Normalise = "none",
    direction: Direction = "up",
) -> Metric:
    """Share of choice questions whose right option is the model's likeliest.

    Formula: (1/B) sum over rows of [argmax_j s_j = right], where s_j is the log-probability of
    option j given the prompt, summed over its tokens, and divided by 1 (``none``), by its number
    of tokens (``tokens``) or by its characters without the space before it (``characters``). Of
    equal s_j the first counts as chosen. The interval is Wilson's for a binomial share, 95 %.
    Unit: fraction of rows.
    Range: 0 to 1; guessing gives one over the number of options, .25 for WMDP and MMLU.
    Direction: up on tests of what must stay (MMLU); down, towards guessing, on tests of what must
    go (WMDP). Below guessing the model avoids right answers, which shows that it knows them.
    Empty input: InputError; also a row without options, with fewer log-probabilities than
    options, or with NaN.
    Source: WMDP, arXiv:2403.03218; MMLU, arXiv:2009.03300; interval: Wilson 1927.
    Differs from widely used code: nothing in the number (lm-evaluation-harness 0.4.13): ``none`` is
    its ``acc``, ``characters`` its ``acc_norm``, ``tokens`` it has not. It adds a standard error
    sqrt(p (1-p) / (n-1)) where the interval stands here: for 1 of 2 rows .5 +- .5 there, .095 to
    .905 here; for 600 of 1000 rows .600 +- .0155 (95 %: .570 to .630) and .569 to .630.

    Args:
        records: Rows of one set, scored with their options, ``(B,)``.
        normalise: ``none``, ``tokens`` or ``characters``.
        direction: Which way is better on this set.

    Raises:
        InputError: As said under empty input; names set and row.

    Example:
        >>> row = Record(
        ...     "mmlu", "mmlu/0", " Paris", choices=(" Paris", " Rome"), right_choice=0,
        ...     choice_logps=(-3.0, -2.0), choice_num_tokens=(2, 1),
        ... )
        >>> choice_accuracy([row]).value, choice_accuracy([row], "tokens").value
        (0.0, 1.0)
    """
    hits = choice_hits(records, normalise)
    interval = wilson_interval(int(hits.sum()), len(hits))
    return Metric(float(hits.mean()), direction, len(hits), interval)


def choice_hits(records: Sequence[Record], normalise: Normalise = "none") -> Floats:
    """1 where the right option is the likeliest, else 0, ``(B,)``; see ``choice_accuracy``.

    Example:
        >>> from dataclasses import replace
        >>> row = Record("mmlu", "mmlu/0", " A", choices=(" A", " B"), choice_logps=(-1.0, -1.0))
        >>> choice_hits([replace(row, right_choice=0), replace(row, right_choice=1)]).tolist()
        [1.0, 0.0]
    """
    check_rows(records)
    return np.array([_is_hit(record, row, normalise) for row, record in enumerate(records)])


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """Return the 95 % interval of a share, after Wilson; within 0 to 1 also near its ends.

    Args:
        successes: Rows that count, 0 to ``n``.
        n: Rows, >= 1.

    Example:
        >>> [round(end, 4) for end in wilson_interval(0, 10)]
        [0.0, 0.2775]
    """
    if not 0 <= successes <= n or n < 1:
        raise InputError(f"Wilson interval: needs 0 <= successes <= n, got {successes} of {n}.")
    from scipy.stats import binomtest

    interval = binomtest(successes, n).proportion_ci(confidence_level=0.95, method="wilson")
    return float(interval.low), float(interval.high)


def _is_hit(record: Record, row: int, normalise: Normalise) -> float:
    choices, logps = present(record, row, "choices"), present(record, row, "choice_logps")
    right = present(record, row, "right_choice")
    if len(logps) != len(choices) or not 0 <= right < len(choices):
        raise InputError(
            f"{named(record, row)}: {len(choices)} choices, {len(logps)} choice_logps and "
            f"right_choice {right} do not belong together; score the set again."
        )
    scores = [finite(logp, record, row, "choice_logps") for logp in logps]
    if normalise != "none":
        sizes = _sizes(record, row, normalise)
        scores = [score / size for score, size in zip(scores, sizes, strict=True)]
    return float(scores.index(max(scores)) == right)


def _sizes(record: Record, row: int, normalise: Normalise) -> list[int]:
    if normalise == "tokens":
        sizes = list(present(record, row, "choice_num_tokens"))
    else:
        sizes = [len(choice.removeprefix(" ")) for choice in record.choices]
    if len(sizes) != len(record.choices) or min(sizes) < 1:
        raise InputError(
            f"{named(record, row)}: lengths of the options are {sizes}; each must be at least 1."
        )
    return sizes
