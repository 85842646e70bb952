"""What a model says at the labelled tokens of a batch: the input of weightings and objectives.

A weighting or an objective declares in ``needs`` which signals it reads; the module computes the
union of what is declared and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from etw_lightning.kernels.distributions import Distributions, TopLogps

__all__ = [
    "Counts",
    "Level",
    "Padded",
    "Reduction",
    "Signal",
    "States",
    "TokenSignals",
    "reduce_terms",
]

#: Whether an objective has one term a labelled token or one a sequence.
Level = Literal["token", "sequence"]

#: ``logps`` (always there), ``entropies``: fused head, float32. ``marked``: which labels lie in
#: marked text. ``words``: which word of the answer each label belongs to. ``distributions``:
#: log-probabilities of the whole vocabulary. ``padded``: the same at every position of the padded
#: rows. ``states``: what some layers say at the labelled tokens. ``importances``: what a scorer
#: says of each label that learns from them as the run goes on.
#: ``reference_*``: the same of the target model, which training leaves as it is.
#: ``alternative``: the signals of a second answer to each question.
Signal = Literal[
    "logps",
    "entropies",
    "marked",
    "words",
    "distributions",
    "padded",
    "states",
    "importances",
    "reference_logps",
    "reference_entropies",
    "reference_distributions",
    "reference_padded",
    "reference_states",
    "alternative",
]

#: ``token``: mean over the labelled tokens of the effective batch.
#: ``sequence``: mean over its sequences of each sequence's mean.
Reduction = Literal["token", "sequence"]


@dataclass(frozen=True)
class States:
    """Hidden states of some layers at the M labelled tokens themselves.

    Not at the positions that predict them: a row whose first token is labelled has one more here
    than it has log-probabilities.

    Args:
        layers: Output of each layer that is asked for, by its number from 0, ``(M, D)`` each; -1 is
            what the output head reads, behind the last norm.
        rows: Index of the sequence a token belongs to, ascending, ``(M,)``.
    """

    layers: Mapping[int, Tensor]
    rows: Tensor

    def of_labels(self, layer: int, signals: TokenSignals) -> Tensor:
        """Return a layer's states at the N labels that are predicted, ``(N, D)``.

        Args:
            layer: One that was asked for.
            signals: Of the same sequences.
        """
        counts = torch.bincount(self.rows, minlength=signals.num_rows)
        extra = counts - torch.bincount(signals.rows, minlength=signals.num_rows)
        places = torch.arange(len(self.rows), device=self.rows.device)
        places = places - torch.searchsorted(self.rows, self.rows)
        return self.layers[layer][places >= extra[self.rows]]

    def slice_rows(self, start: int, stop: int) -> States:
        """Return the states of sequences ``start`` to ``stop``."""
        part = _places(self.rows, start, stop)
        layers = {layer: states[part] for layer, states in self.layers.items()}
        return States(layers, self.rows[part] - start)


@dataclass(frozen=True)
class Padded:
    """What the model says at every position of the padded rows, prompts and padding too.

    Args:
        hidden: Last hidden states, ``(B, T, D)``.
        mask: 1 for tokens, 0 for padding, ``(B, T)``.
        head: What makes distributions of hidden states ``(N, D)``.
    """

    hidden: Tensor
    mask: Tensor
    head: Callable[[Tensor], Distributions]

    @property
    def length(self) -> int:
        """Positions of each row: those of the longest one."""
        return int(self.mask.sum(1).max()) if len(self.mask) else 0

    @property
    def distributions(self) -> Distributions:
        """Predictions at ``B * length`` positions, row by row."""
        return self.head(self.hidden[:, : self.length].flatten(0, 1))

    def slice_rows(self, start: int, stop: int) -> Padded:
        """Return rows ``start`` to ``stop``, padded to the longest of them."""
        return Padded(self.hidden[start:stop], self.mask[start:stop], self.head)


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
        marked: Labels that overlap marked text, bool, ``(N,)``.
        words: Number of the word that each label belongs to, the labels of a word next to each
            other; -1 for a label of no word, int64, ``(N,)``.
        distributions: Predictions, differentiable, N of them.
        padded: Predictions at every position.
        states: Hidden states of the layers that are asked for.
        importances: How much each label is to be forgotten, 0 to 1, detached, ``(N,)``.
        reference_logps: Label log-probability under the target model, detached, ``(N,)``.
        reference_entropies: As ``entropies``, of the target model.
        reference_distributions: Predictions of the target model, or the largest of each.
        reference_padded: As ``padded``, of the target model.
        reference_states: As ``states``, of the target model.
        alternative: The signals of the second answers, one row for each row here.
        offsets: Where the tokens of each sequence begin, and where those of the last end; empty
            where that has to be asked of ``rows``.
    """

    labels: Tensor
    rows: Tensor
    num_rows: int
    logps: Tensor
    entropies: Tensor | None = None
    marked: Tensor | None = None
    words: Tensor | None = None
    distributions: Distributions | None = None
    padded: Padded | None = None
    states: States | None = None
    importances: Tensor | None = None
    reference_logps: Tensor | None = None
    reference_entropies: Tensor | None = None
    reference_distributions: Distributions | TopLogps | None = None
    reference_padded: Padded | None = None
    reference_states: States | None = None
    alternative: TokenSignals | None = None
    offsets: Sequence[int] = ()

    def slice_rows(self, start: int, stop: int) -> TokenSignals:
        """Return the signals of sequences ``start`` to ``stop`` as a group of its own."""
        offsets = self.offsets[start : stop + 1]
        part = slice(offsets[0], offsets[-1]) if offsets else _places(self.rows, start, stop)
        parts: dict[str, Any] = {"offsets": tuple(place - part.start for place in offsets)}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor | Distributions | TopLogps):
                parts[field.name] = value[part]
            elif isinstance(value, States | Padded):
                parts[field.name] = value.slice_rows(start, stop)
        parts["rows"] = parts["rows"] - start
        return TokenSignals(num_rows=stop - start, **parts)

    def row_sums(self, values: Tensor) -> Tensor:
        """Sum token values ``(N,)`` within each sequence, giving ``(num_rows,)``."""
        sums = values.new_zeros(self.num_rows)
        return sums.index_add(0, self.rows, values)

    def row_counts(self) -> Tensor:
        """Labelled tokens of each sequence, ``(num_rows,)``, in the dtype of ``logps``."""
        return self.row_sums(torch.ones_like(self.logps))

    def places(self) -> Tensor:
        """Place of each token among its sequence's, from 0, ``(N,)``.

        Example:
            >>> rows = torch.tensor([0, 0, 2, 2, 2])
            >>> TokenSignals(rows, rows, 3, torch.zeros(5)).places()
            tensor([0, 1, 0, 1, 2])
        """
        rows = self.rows
        return torch.arange(len(rows), device=rows.device) - torch.searchsorted(rows, rows)


def _places(rows: Tensor, start: int, stop: int) -> slice:
    """Return where the tokens of sequences ``start`` to ``stop`` stand."""
    bounds = rows.new_tensor([start, stop])
    return slice(*torch.searchsorted(rows, bounds).tolist())


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
    skipped: int = 0,
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
        skipped: Tokens at the start of each sequence that have no term and are not counted.

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
    means = signals.row_sums(terms) / (signals.row_counts() - skipped).clamp(min=1)
    return means.sum() / max(counts.rows, 1)
