"""What models say of each token: probabilities next to the retain model's, and histograms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from etw_lightning.metrics.tokens import Marks, mark_tokens, token_values
from etw_lightning.metrics.values import Floats, check_rows, check_same_rows, present, where
from etw_lightning.schema import InputError, Record

__all__ = [
    "ENTROPY_EDGES",
    "PROBABILITY_EDGES",
    "Histogram",
    "ProbabilityGapResult",
    "TokenRow",
    "histogram",
    "probability_gap",
    "probability_gap_of",
    "token_gaps",
    "token_histograms",
    "token_numbers",
    "token_rows",
]

#: Bins of probabilities.
PROBABILITY_EDGES = tuple(step / 20 for step in range(21))
#: Bins of entropies, nats; the logarithm of the largest vocabulary in use (262,144) is 12.5.
ENTROPY_EDGES = tuple(step / 2 for step in range(26))


@dataclass(frozen=True)
class TokenRow:
    """The answer tokens of one row, next to the retain model's.

    Args:
        id: Id of the example.
        tokens: Characters of each token.
        probabilities: Of each under the model, 0 to 1.
        retain_probabilities: Of each under the retain model, 0 to 1.
        entropies: Of the model's prediction of each, nats; empty where they were not scored.
        marked: Whether each is marked; empty without annotations.
    """

    id: str
    tokens: tuple[str, ...]
    probabilities: tuple[float, ...]
    retain_probabilities: tuple[float, ...]
    entropies: tuple[float, ...] = ()
    marked: tuple[bool, ...] = ()


@dataclass(frozen=True)
class ProbabilityGapResult:
    """Distance of token probabilities to the retain model's.

    Args:
        marked: Mean over marked tokens, 0 to 1; down.
        unmarked: Mean over the other tokens, 0 to 1; down.
        num_marked: Marked tokens.
        num_unmarked: Other tokens.
    """

    marked: float
    unmarked: float
    num_marked: int
    num_unmarked: int


@dataclass(frozen=True)
class Histogram:
    """Counts of values in fixed bins.

    Args:
        edges: Ends of the bins, ascending, one more than ``counts``. A bin holds its lower end;
            the last one also its upper end and all above.
        counts: Values in each bin.
        total: Sum of the values.
        total_squares: Sum of their squares; TensorBoard wants both.
    """

    edges: tuple[float, ...]
    counts: tuple[int, ...]
    total: float
    total_squares: float


def token_rows(
    records: Sequence[Record],
    retain_records: Sequence[Record],
    marks: Sequence[Marks] | None = None,
) -> list[TokenRow]:
    """Put the answer tokens of a model next to the retain model's, ``(B,)``.

    Args:
        records: Rows scored by the model, with ``token_logps`` and ``token_spans``.
        retain_records: The same rows scored by the retain model.
        marks: ``mark_tokens`` of the rows; None without annotations.

    Raises:
        InputError: If the rows differ, a field is missing or not finite, or the two models cut
            an answer into other tokens.
    """
    check_same_rows(records, retain_records)
    inside = mark_tokens(records)
    rows = []
    for row, (record, retain) in enumerate(zip(records, retain_records, strict=True)):
        if present(retain, row, "token_spans") != record.token_spans:
            raise InputError(
                f"data.retain_results: {where(record, row)} was cut into "
                f"{len(retain.token_spans)} tokens there, {len(record.token_spans)} here; both "
                "models must have one tokenizer."
            )
        kept = [place for place, flag in enumerate(inside[row]) if flag is not None]
        entropies = token_values(record, row, "token_entropies") if record.token_entropies else ()
        flags = () if marks is None else marks[row]
        rows.append(
            TokenRow(
                id=record.id,
                tokens=tuple(record.answer[slice(*record.token_spans[place])] for place in kept),
                probabilities=_probabilities(record, row, kept),
                retain_probabilities=_probabilities(retain, row, kept),
                entropies=tuple(entropies[place] for place in kept if entropies),
                marked=tuple(bool(flags[place]) for place in kept if flags),
            )
        )
    return rows


def probability_gap(rows: Sequence[TokenRow]) -> ProbabilityGapResult:
    """Mean distance of token probabilities to the retain model's, of marked and other tokens.

    Formula: mean of abs(p_i - p_retain_i) over all marked, and over all unmarked answer tokens of
    the set; p the probability of the gold token after the gold tokens before it.
    Unit: probability.
    Range: 0 to 1.
    Direction: down, of the forget set: 0 where the model says of each token what a model says that
    never saw the set.
    Empty input: InputError, also where no token or every token is marked.
    Source: arXiv:2604.17785, token probabilities next to the retain model's.
    Differs from widely used code: open-unlearning has no such number. The paper shows the
    probabilities as a picture; the mean of the distances is ours. On the example below the mean
    probabilities of the two models are equal (.5), the distance is .4.

    Args:
        rows: ``token_rows`` with marks.

    Raises:
        InputError: See above.

    Example:
        >>> row = TokenRow("f/0", ("a", "b", "c"), (0.3, 0.7, 0.5), (0.7, 0.3, 0.5),
        ...     marked=(True, True, False))
        >>> round(probability_gap([row]).marked, 6)
        0.4
    """
    return probability_gap_of(*token_gaps(rows))


def token_gaps(rows: Sequence[TokenRow]) -> tuple[Floats, Floats]:
    """Distance of each marked, and of each other token's probability to the retain model's.

    Raises:
        InputError: If a row has no marks.

    Example:
        >>> row = TokenRow("f/0", ("a", "b"), (0.25, 0.75), (0.75, 0.5), marked=(True, False))
        >>> [gaps.tolist() for gaps in token_gaps([row])]
        [[0.5], [0.25]]
    """
    gaps: dict[bool, list[float]] = {True: [], False: []}
    for row in rows:
        if len(row.marked) != len(row.probabilities):
            raise InputError(f"probability gap: row {row.id} has no marks; give annotations.")
        pairs = zip(row.marked, row.probabilities, row.retain_probabilities, strict=True)
        for flag, own, retain in pairs:
            gaps[flag].append(abs(own - retain))
    return np.array(gaps[True]), np.array(gaps[False])


def probability_gap_of(marked: Floats, unmarked: Floats) -> ProbabilityGapResult:
    """Mean of ``token_gaps`` of either kind; see ``probability_gap``.

    Raises:
        InputError: If there is none of a kind.

    Example:
        >>> probability_gap_of(np.array([0.5]), np.array([0.25, 0.75])).unmarked
        0.5
    """
    if not len(marked) or not len(unmarked):
        raise InputError(
            f"probability gap: {len(marked)} marked and {len(unmarked)} other tokens; it "
            "needs both kinds. Check the annotations."
        )
    own, other = (math.fsum(values) / len(values) for values in (marked, unmarked))
    return ProbabilityGapResult(own, other, len(marked), len(unmarked))


def token_histograms(records: Sequence[Record]) -> dict[str, Histogram]:
    """Histograms of the probabilities and entropies of all labelled tokens, the end token included.

    Formula: counts of p_i = exp(log p_i) in 20 bins from 0 to 1, and of H_i in 25 bins from 0 to
    12.5 nats.
    Unit: tokens.
    Range: counts >= 0; each histogram's add up to the tokens of the set.
    Direction: retain, also of their means: best where the retain model's histograms are.
    Empty input: InputError.
    Source: ours; entropies are arXiv:2604.17785's at temperature 1.
    Differs from widely used code: open-unlearning has no such number. Bins are fixed so that runs
    and epochs compare: TensorBoard's own bins grow by a tenth each, so p = .01 and p = .04 lie
    about 15 bins apart in its picture; here they share the first.

    Args:
        records: Rows with ``token_logps`` and ``token_entropies``, ``(B,)``.

    Raises:
        InputError: If there are no rows, or a field is missing or not finite.

    Example:
        >>> row = Record("forget", "f/0", "a", token_logps=(0.0, -9.0), token_entropies=(0.0, 2.0))
        >>> token_histograms([row])["token_probabilities"].counts[::19]
        (1, 1)
    """
    check_rows(records)
    edges = {"token_probabilities": PROBABILITY_EDGES, "token_entropies": ENTROPY_EDGES}
    return {name: histogram(found, edges[name]) for name, found in token_numbers(records).items()}


def token_numbers(records: Sequence[Record]) -> dict[str, list[float]]:
    """Return what ``token_histograms`` counts, of the labelled tokens of all rows.

    Example:
        >>> row = Record("forget", "f/0", "a", token_logps=(0.0,), token_entropies=(2.0,))
        >>> token_numbers([row])
        {'token_probabilities': [1.0], 'token_entropies': [2.0]}
    """
    probabilities: list[float] = []
    entropies: list[float] = []
    for row, record in enumerate(records):
        probabilities += map(math.exp, token_values(record, row, "token_logps"))
        entropies += token_values(record, row, "token_entropies")
    return {"token_probabilities": probabilities, "token_entropies": entropies}


def histogram(values: Sequence[float], edges: Sequence[float]) -> Histogram:
    """Count values in bins.

    Args:
        values: Finite numbers, none below the first edge.
        edges: Ends of the bins, ascending.

    Raises:
        InputError: If a value lies below the first edge or is not finite.

    Example:
        >>> histogram([0.0, 0.5, 1.0, 7.0], [0.0, 0.5, 1.0]).counts
        (1, 3)
    """
    array = np.asarray(values, dtype=np.float64)
    if not np.isfinite(array).all() or (len(array) and array.min() < edges[0]):
        raise InputError(f"histogram: values must be finite and at least {edges[0]}.")
    counts, _ = np.histogram(np.minimum(array, edges[-1]), edges)
    return Histogram(
        tuple(edges), tuple(counts.tolist()), math.fsum(array), math.fsum(np.square(array))
    )


def _probabilities(record: Record, row: int, kept: Sequence[int]) -> tuple[float, ...]:
    logps = token_values(record, row, "token_logps")
    if len(logps) != len(record.token_spans):
        raise InputError(
            f"{where(record, row)}: token_spans holds {len(record.token_spans)} spans, "
            f"token_logps {len(logps)} numbers; score the set again."
        )
    return tuple(math.exp(logps[place]) for place in kept)
