"""Weights that a token weighting would give to the tokens of records."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from etw_lightning.kernels.signals import Signal, TokenSignals
from etw_lightning.metrics.tokens import mark_tokens, token_values
from etw_lightning.metrics.values import present
from etw_lightning.metrics.words import word_numbers
from etw_lightning.schema import IGNORE_INDEX, InputError, Record
from etw_lightning.weighting import TokenWeighting

__all__ = ["weights_from_records"]

#: Signals that records hold; log-probabilities are there for every weighting.
_HELD: frozenset[Signal] = frozenset({"logps", "entropies", "marked", "words", "reference_logps"})
_Spans = Sequence[Sequence[tuple[int, int]]]


def weights_from_records(
    weighting: TokenWeighting,
    records: Sequence[Record],
    target: Sequence[Record] | None = None,
    spans: _Spans | None = None,
) -> list[list[float]]:
    """Return the weight of each labelled token, as training on these rows would give it.

    Records hold no token ids, so ``labels`` of the signals is ``IGNORE_INDEX`` throughout.

    Args:
        weighting: One that reads nothing but what is given here.
        records: Rows with ``token_logps`` and, where it needs them, ``token_entropies``, ``(B,)``.
        target: The target model's records of the same rows, for ``reference_logps``.
        spans: Marked characters of each answer, ends exclusive, for ``marked``.

    Raises:
        InputError: If the weighting needs what is not there, such as entropies at another
            temperature than 1, or a row lacks a field; names the row.

    Example:
        >>> from etw_lightning.weighting import ETW
        >>> row = Record("forget", "f/0", "a", token_logps=(-1.0, -2.0), token_entropies=(1.0, 3.0))
        >>> weights_from_records(ETW(), [row])
        [[0.5, 1.5]]
    """
    name, needs = type(weighting).__name__, weighting.needs
    lacking = {"reference_logps"} if target is None else set()
    lacking |= {"marked"} if spans is None else set()
    missing = needs - (_HELD - lacking)
    if missing:
        raise InputError(
            f"token weights: {name} needs {', '.join(sorted(missing))}, which these records don't "
            "hold; choose a weighting of probabilities and entropies."
        )
    if "entropies" in needs and weighting.entropy_temperature != 1:
        raise InputError(
            f"token weights: records hold entropies at temperature 1; {name} asks for "
            f"{weighting.entropy_temperature}. Set its temperature to 1."
        )
    logps = _per_row(records, "token_logps")
    lengths = [len(values) for values in logps]
    rows = torch.repeat_interleave(torch.arange(len(records)), torch.tensor(lengths))
    marked = words = reference = None
    if "marked" in needs:
        marks = mark_tokens(records, spans)
        marked = torch.tensor([bool(mark) for row in marks for mark in row])
    if "words" in needs:
        words = torch.tensor([number for numbers in _words(records) for number in numbers])
    if "reference_logps" in needs:
        reference = _flat(_same_tokens(records, target or (), lengths))
    signals = TokenSignals(
        labels=torch.full((len(rows),), IGNORE_INDEX),
        rows=rows,
        num_rows=len(records),
        logps=_flat(logps),
        entropies=_flat(_per_row(records, "token_entropies")) if "entropies" in needs else None,
        marked=marked,
        words=words,
        reference_logps=reference,
    )
    return [weights.tolist() for weights in weighting(signals).split(lengths)]


def _words(records: Sequence[Record]) -> list[tuple[int, ...]]:
    """Return the word of its answer that each token belongs to."""
    pairs = [(one.answer, present(one, row, "token_spans")) for row, one in enumerate(records)]
    return [word_numbers(answer, spans) for answer, spans in pairs]


def _per_row(records: Sequence[Record], name: str) -> list[list[float]]:
    return [token_values(record, row, name) for row, record in enumerate(records)]


def _same_tokens(
    records: Sequence[Record], target: Sequence[Record], lengths: Sequence[int]
) -> list[list[float]]:
    """Return the target model's log-probabilities, if they are of the same tokens."""
    values = _per_row(target, "token_logps")
    for record, found, length in zip(records, values, lengths, strict=True):
        if len(found) != length:
            raise InputError(
                f"token weights: row {record.id} has {length} tokens here and {len(found)} in the "
                "target model's records; score both with one tokenizer and template."
            )
    return values


def _flat(per_row: Sequence[Sequence[float]]) -> torch.Tensor:
    return torch.tensor([value for values in per_row for value in values], dtype=torch.float64)
