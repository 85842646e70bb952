"""Which tokens somebody marked as the ones that matter, and how well weights find them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from etw_lightning.metrics.values import check_rows, finite, pairs_in_order, present, where
from etw_lightning.schema import InputError, Record

__all__ = ["Marks", "TokenAUCResult", "mark_tokens", "token_auc", "token_values"]

#: For each labelled token of a row: marked, not marked, or None where it is no part of the answer.
Marks = tuple[bool | None, ...]


@dataclass(frozen=True)
class TokenAUCResult:
    """How well weights tell marked tokens from the others.

    Args:
        pooled: ROC-AUC over the tokens of all rows, 0 to 1; up.
        per_row: Mean of each row's own ROC-AUC, 0 to 1; up.
        num_tokens: Tokens in ``pooled``.
        num_marked: Marked ones among them.
        num_rows: Rows in ``per_row``.
        num_rows_without: Rows left out of ``per_row``: all tokens are marked, or none.
    """

    pooled: float
    per_row: float
    num_tokens: int
    num_marked: int
    num_rows: int
    num_rows_without: int


def mark_tokens(
    records: Sequence[Record], spans: Sequence[Sequence[tuple[int, int]]] | None = None
) -> list[Marks]:
    """Say of each labelled token whether it overlaps a marked span.

    Args:
        records: Rows with ``token_spans``, ``(B,)``.
        spans: Marked characters of each answer, ends exclusive, ``(B,)``; None marks all of it.

    Returns:
        One mark a token; None for the end token and whatever else lies outside the answer.

    Raises:
        InputError: If there are no rows, the counts differ, or a row was scored without spans.

    Example:
        >>> row = Record("forget", "f/0", "In Rome", token_spans=((0, 2), (2, 7), (7, 7)))
        >>> mark_tokens([row], [[(3, 7)]])
        [(False, True, None)]
    """
    check_rows(records)
    if spans is not None and len(spans) != len(records):
        raise InputError(
            f"annotations: marked spans of {len(spans)} rows for {len(records)} records of "
            f"{records[0].dataset!r}; both must be of the same rows."
        )
    marks = []
    for row, record in enumerate(records):
        wanted = [(0, len(record.answer))] if spans is None else spans[row]
        marks.append(
            tuple(
                any(max(start, first) < min(stop, end) for first, end in wanted)
                if start < stop
                else None
                for start, stop in present(record, row, "token_spans")
            )
        )
    return marks


def token_values(record: Record, row: int, name: str) -> list[float]:
    """Return a token field of a record: finite numbers, as many as there are ``token_logps``."""
    values = [finite(value, record, row, name) for value in present(record, row, name)]
    if len(values) != len(record.token_logps):
        raise InputError(
            f"{where(record, row)}: {name} holds {len(values)} numbers, token_logps "
            f"{len(record.token_logps)}; score the set again."
        )
    return values


def _roc_auc(values: Sequence[float], marks: Sequence[bool]) -> float:
    """Return how often a marked token has a higher value than another; refuse one kind only."""
    is_marked = np.asarray(marks, dtype=bool)
    if is_marked.all() or not is_marked.any():
        raise InputError(
            f"token ROC-AUC: {is_marked.sum()} of {len(is_marked)} tokens are marked; it needs "
            "both kinds. Check the annotations."
        )
    found = np.asarray(values, dtype=np.float64)
    return pairs_in_order(found[~is_marked], found[is_marked])


def token_auc(weights: Sequence[Sequence[float]], marks: Sequence[Marks]) -> TokenAUCResult:
    """ROC-AUC of token weights as a detector of the tokens somebody marked as informative.

    Formula: P(w_i > w_j) + P(w_i = w_j) / 2 for a marked token i and an unmarked token j, drawn
    from the tokens of all rows (``pooled``) or from one row, averaged over rows (``per_row``). A
    token is marked if one of its characters is; the end token and other tokens outside the answer
    are left out.
    Unit: none.
    Range: 0 to 1; 0.5 for weights that know nothing, as uniform ones.
    Direction: up. ``pooled`` also asks for weights that compare between rows: ETW's sum to the
    number of tokens in each row, so it may differ from the ROC-AUC of the bare entropy.
    Empty input: InputError, also where all tokens are marked or none. Rows of which either is so
    are part of ``pooled``, not of ``per_row``, and counted.
    Source: arXiv:2604.17785, ROC-AUC of token weights; the marking of TOFU is arXiv:2506.03142's.
    Detectors: ``etw`` (its weights), ``entropy``, ``imp`` (1 - p), ``wga`` (p), ``satimp`` (5 and
    1), ``tnpo`` (needs the target model's records; all alike on that model itself), ``scn`` and
    ``sce`` (spaCy's nouns and entities; need ``--spacy_model``).
    Differs from widely used code: open-unlearning has no such number, and who marked the paper's
    tokens isn't published. Untouched SmolLM2-135M on the first 200 rows of forget10 in its chat
    template, 1,663 of 7,459 tokens marked, pooled: entropy .659, ETW's weights .656, 1 - p .648,
    p .352; per row .686, .686, .678 and .322.

    Args:
        weights: One weight a labelled token, any scale, ``(B,)`` rows.
        marks: ``mark_tokens`` of the same rows.

    Raises:
        InputError: See above; also where the counts differ or a weight is not finite.

    Example:
        >>> token_auc([[0.1, 2.0, 9.0], [0.3, 0.2]], [(False, True, None), (False, True)]).pooled
        0.75
    """
    if len(weights) != len(marks):
        raise InputError(f"token ROC-AUC: weights of {len(weights)} rows, marks of {len(marks)}.")
    rows: list[tuple[list[float], list[bool]]] = []
    for row, (some, flags) in enumerate(zip(weights, marks, strict=True)):
        if len(some) != len(flags):
            raise InputError(
                f"token ROC-AUC: row {row} has {len(some)} weights for {len(flags)} tokens."
            )
        kept = [(value, flag) for value, flag in zip(some, flags, strict=True) if flag is not None]
        if not all(math.isfinite(value) for value, _ in kept):
            raise InputError(f"token ROC-AUC: row {row} has a weight that is not a finite number.")
        rows.append(([value for value, _ in kept], [flag for _, flag in kept]))
    values = [value for some, _ in rows for value in some]
    flags_of_all = [flag for _, flags in rows for flag in flags]
    pooled = _roc_auc(values, flags_of_all)
    mixed = [_roc_auc(some, flags) for some, flags in rows if 0 < sum(flags) < len(flags)]
    if not mixed:
        raise InputError("token ROC-AUC: no row has both marked and unmarked tokens.")
    return TokenAUCResult(
        pooled=pooled,
        per_row=math.fsum(mixed) / len(mixed),
        num_tokens=len(values),
        num_marked=sum(flags_of_all),
        num_rows=len(mixed),
        num_rows_without=len(rows) - len(mixed),
    )
