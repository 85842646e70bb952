"""What a model says at the labelled tokens of a batch: the input of weightings and objectives.

A weighting or an objective declares in ``needs`` which signals it reads; the module computes the
union of what is declared and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

__all__ = ["Counts", "Level", "Reduction", "Signal", "TokenSignals", "reduce_terms"]

#: Whether an objective has one term a labelled token or one a sequence.
Level = Literal["token", "sequence"]

#: ``logps``, ``entropies``: fused head, float32. ``distributions``: log-probabilities of the
#: whole vocabulary. ``hidden_states``: every layer's. ``reference_*``: the same of a frozen copy
#: of the target model. ``alternative``: the signals of a second answer to each question.
Signal = Literal[
    "logps",
    "entropies",
    "distributions",
    "hidden_states",
    "reference_logps",
    "reference_distributions",
    "reference_hidden_states",
    "alternative",
]

#: ``token``: mean over the labelled tokens of the effective batch.
#: ``sequence``: mean over its sequences of each sequence's mean.
Reduction = Literal["token", "sequence"]


@dataclass(frozen=True)
class TokenSignals:
    """Signals at the N labelled tokens of one group of rows (forget, retain or alternative).

    Args:
        labels: Token ids, ``(N,)``.
        rows: Index of the sequence a token belongs to, ascending, ``(N,)``.
        num_rows: Number of sequences; a sequence may have no token.
        logps: Log-probability of the label, nats, float32, differentiable, ``(N,)``.
        entropies: Entropy of the prediction at the weighting's temperature, nats, float32,
            detached, ``(N,)``.
        distributions: Log-probabilities, differentiable, ``(N, V)``.
        hidden_states: Output of the embedding and of each layer, ``(layers + 1, N, D)``.
        reference_logps: Label log-probability under the reference model, detached, ``(N,)``.
        reference_distributions: Log-probabilities under the reference model, ``(N, V)``.
        reference_hidden_states: Hidden states of the reference model.
        alternative: The signals of the second answers, one row for each row here.
    """

    labels: Tensor
    rows: Tensor
    num_rows: int
    logps: Tensor
    entropies: Tensor | None = None
    distributions: Tensor | None = None
    hidden_states: Tensor | None = None
    reference_logps: Tensor | None = None
    reference_distributions: Tensor | None = None
    reference_hidden_states: Tensor | None = None
    alternative: TokenSignals | None = None

    def slice_rows(self, start: int, stop: int) -> TokenSignals:
        """Return the signals of sequences ``start`` to ``stop`` as a group of its own."""
        bounds = torch.tensor([start, stop], device=self.rows.device)
        first, last = torch.searchsorted(self.rows, bounds).tolist()
        parts: dict[str, Any] = {
            field.name: value[first:last]
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), Tensor) and value.dim() < 3
        }
        parts |= {
            name: value[:, first:last]
            for name in ("hidden_states", "reference_hidden_states")
            if (value := getattr(self, name)) is not None
        }
        parts["rows"] = parts["rows"] - start
        return TokenSignals(num_rows=stop - start, **parts)

    def row_sums(self, values: Tensor) -> Tensor:
        """Sum token values ``(N,)`` within each sequence, giving ``(num_rows,)``."""
        sums = values.new_zeros(self.num_rows)
        return sums.index_add(0, self.rows, values)

    def row_counts(self) -> Tensor:
        """Labelled tokens of each sequence, ``(num_rows,)``, in the dtype of ``logps``."""
        return self.row_sums(torch.ones_like(self.logps, requires_grad=False))


class Counts(NamedTuple):
    """How much the whole effective batch holds, over all micro-batches and processes.

    Args:
        tokens: Labelled tokens.
        rows: Sequences with at least one labelled token.
    """

    tokens: int
    rows: int


def reduce_terms(
    terms: Tensor,
    signals: TokenSignals,
    counts: Counts,
    reduction: Reduction,
    level: Level = "token",
) -> Tensor:
    """Return this micro-batch's share of the effective batch's mean.

    The shares of all micro-batches and processes add up to the mean, however the effective batch
    was split, because the divisor is the count of the whole.

    Args:
        terms: One term a labelled token, ``(N,)``, or one a sequence, ``(num_rows,)``.
        signals: The tokens the terms belong to.
        counts: Counts of the effective batch.
        reduction: ``token``: sum over tokens / tokens. ``sequence``: sum over sequences of the
            sequence's token mean / sequences. Sequence terms are always averaged over sequences.
        level: What one term stands for.

    Returns:
        Scalar; 0 if nothing is labelled.

    Example:
        >>> signals = TokenSignals(
        ...     labels=torch.tensor([5, 6, 7]),
        ...     rows=torch.tensor([0, 0, 1]),
        ...     num_rows=2,
        ...     logps=torch.tensor([-1.0, -3.0, -5.0]),
        ... )
        >>> reduce_terms(signals.logps, signals, Counts(tokens=3, rows=2), "token")
        tensor(-3.)
        >>> reduce_terms(signals.logps, signals, Counts(tokens=3, rows=2), "sequence")
        tensor(-3.5000)
    """
    if level == "sequence":
        return terms.sum() / max(counts.rows, 1)
    if reduction == "token":
        return terms.sum() / max(counts.tokens, 1)
    means = signals.row_sums(terms) / signals.row_counts().clamp(min=1)
    return means.sum() / max(counts.rows, 1)
