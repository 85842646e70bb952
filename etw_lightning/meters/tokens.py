"""What is said of single tokens, and of layers: ragged rows."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any, Literal, get_args

from torch import Tensor

from etw_lightning.catalogue.token_weights import weights_from_records
from etw_lightning.meters.columns import Meter, as_lists
from etw_lightning.metrics.depth import unlearning_depth
from etw_lightning.metrics.token_probabilities import (
    probability_gap_of,
    token_gaps,
    token_numbers,
    token_rows,
)
from etw_lightning.metrics.tokens import Marks, token_auc
from etw_lightning.metrics.values import mean_of
from etw_lightning.schema import InputError, Record
from etw_lightning.value_checks import check_name
from etw_lightning.weighting import TokenWeighting

__all__ = ["TokenAUC", "TokenGap", "TokenMean", "UnlearningDepth"]

Ragged = Tensor | Sequence[Sequence[float]] | Sequence[Tensor]
TokenMeanOf = Literal["probabilities", "entropies"]
#: What stands for a token outside the answer.
_OUTSIDE = -1.0


class TokenAUC(Meter):
    """ROC-AUC of token weights as a detector of the tokens somebody marked as informative.

    Range: 0 to 1; 0.5 for weights that know nothing.
    Direction: up.
    Empty input: InputError from ``compute``, also where all tokens are marked or none, or no row
        has both kinds.
    Source: arXiv:2604.17785, ROC-AUC of token weights; see ``metrics.token_auc``.

    Args:
        per_row: The mean of each row's own AUC, in place of one over the tokens of all rows.
        weighting: Gives the weights where ``update`` is given records; None takes their entropies.
        options: Of ``torchmetrics.Metric``.

    Example:
        >>> import torch
        >>> meter = TokenAUC()
        >>> weights, marks = torch.tensor([[0.1, 2.0, 9.0]]), torch.tensor([[0, 1, -1]])
        >>> meter.update(weights, marks)
        >>> meter.compute()
        tensor(1., dtype=torch.float64)
    """

    higher_is_better = True

    def __init__(
        self, per_row: bool = False, weighting: TokenWeighting | None = None, **options: Any
    ) -> None:
        super().__init__(("weights", "marks", "lengths"), (per_row, weighting), **options)
        self.per_row = per_row
        self.weighting = weighting

    def update(self, weights: Ragged | Sequence[Record], marks: Sequence[Marks] | Tensor) -> None:
        """Take further rows.

        Args:
            weights: One weight a labelled token, ``(B, T)`` or rows of ``(N,)``; or records.
            marks: ``metrics.mark_tokens`` of the same rows; or 1 for marked, 0 for others and -1
                for tokens that do not count, such as padding, of the shape of the weights.

        Raises:
            InputError: If weights and marks are not of the same tokens.
        """
        rows = self._weights(list(weights))
        flags = [
            [_OUTSIDE if one is None else float(one) for one in row] for row in as_lists(marks)
        ]
        if [len(row) for row in rows] != [len(row) for row in flags]:
            raise InputError(
                f"TokenAUC: weights of {list(map(len, rows))} tokens, marks of "
                f"{list(map(len, flags))}; each token needs one of each."
            )
        self.add(weights=_flat(rows), marks=_flat(flags), lengths=[float(len(row)) for row in rows])

    def number(self) -> float:
        """Return the AUC."""
        lengths = self.held("lengths")
        flags = {1.0: True, 0.0: False}
        marks = [tuple(map(flags.get, row)) for row in _split(self.held("marks"), lengths)]
        result = token_auc(_split(self.held("weights"), lengths), marks)
        return result.per_row if self.per_row else result.pooled

    def _weights(self, rows: list[Any]) -> list[list[float]]:
        if not rows or not isinstance(rows[0], Record):
            return as_lists(rows)
        if self.weighting is not None:
            return weights_from_records(self.weighting, rows)
        return [list(record.token_entropies) for record in rows]


class TokenGap(Meter):
    """Mean distance of token probabilities to the retain model's, of marked or of other tokens.

    Range: 0 to 1.
    Direction: down, of the forget set.
    Empty input: InputError from ``compute``, also where no token or every token is marked.
    Source: arXiv:2604.17785; see ``metrics.probability_gap``.

    Args:
        of: ``marked`` or ``unmarked`` tokens.
        options: Of ``torchmetrics.Metric``.

    Example:
        >>> fields = dict(token_spans=((0, 1), (1, 2)))
        >>> run = Record("forget", "f/0", "ab", token_logps=(0.0, 0.0), **fields)
        >>> retain = Record("forget", "f/0", "ab", token_logps=(0.0, -99.0), **fields)
        >>> meter = TokenGap("unmarked")
        >>> meter.update([run], [retain], [(True, False)])
        >>> meter.compute()
        tensor(1., dtype=torch.float64)
    """

    higher_is_better = False

    def __init__(self, of: Literal["marked", "unmarked"] = "marked", **options: Any) -> None:
        check_name("TokenGap.of", of, ("marked", "unmarked"))
        super().__init__(("marked", "unmarked"), (of,), **options)
        self.of = of

    def update(
        self, forget: Sequence[Record], retain_forget: Sequence[Record], marks: Sequence[Marks]
    ) -> None:
        """Take further rows.

        Args:
            forget: Rows scored by the run.
            retain_forget: The same rows scored by the retain model.
            marks: ``metrics.mark_tokens`` of them.

        Raises:
            InputError: If the rows or their tokens differ, or a field is missing.
        """
        if len(forget):
            marked, unmarked = token_gaps(token_rows(forget, retain_forget, marks))
            self.add(marked=marked, unmarked=unmarked)

    def number(self) -> float:
        """Return the mean of the tokens that are asked for."""
        gap = probability_gap_of(self.held("marked"), self.held("unmarked"))
        return float(getattr(gap, self.of))


class TokenMean(Meter):
    """Mean probability of the labelled tokens, or mean entropy of their predictions.

    Range: 0 to 1; entropies: >= 0, nats.
    Direction: as near as possible to the retain model's.
    Empty input: InputError from ``compute``.
    Source: arXiv:2604.17785; the means of ``metrics.token_histograms``.

    Args:
        of: ``probabilities`` or ``entropies``.
        options: Of ``torchmetrics.Metric``.

    Example:
        >>> meter = TokenMean("entropies")
        >>> row = Record("forget", "f/0", "a", token_logps=(0.0, -9.0), token_entropies=(0.0, 2.0))
        >>> meter.update([row])
        >>> meter.compute()
        tensor(1., dtype=torch.float64)
    """

    def __init__(self, of: TokenMeanOf = "probabilities", **options: Any) -> None:
        check_name("TokenMean.of", of, get_args(TokenMeanOf))
        super().__init__(("values",), (of,), **options)
        self.of = of

    def update(self, rows: Sequence[Record]) -> None:
        """Take further rows.

        Args:
            rows: Records with ``token_logps`` and ``token_entropies``.

        Raises:
            InputError: If a field is missing or not finite.
        """
        self.add(values=token_numbers(rows)[f"token_{self.of}"])

    def number(self) -> float:
        """Return the mean."""
        return mean_of(self.held("values"))


class UnlearningDepth(Meter):
    """Unlearning Depth Score: how much of what the retain model lacks the hidden states lack too.

    Range: 0 to 1.
    Direction: up, of the forget set.
    Empty input: InputError from ``compute``, also where no row has a score.
    Source: arXiv:2605.24614, UDS; see ``metrics.unlearning_depth``.

    Args:
        tau: Layers with a delta of the retain model at or below it are noise, nats, >= 0.
        options: Of ``torchmetrics.Metric``.

    Example:
        >>> import torch
        >>> meter = UnlearningDepth()
        >>> meter.update(torch.tensor([[0.01, 1.0, 3.0]]), torch.tensor([[5.0, 0.5, 4.0]]))
        >>> meter.compute()
        tensor(0.8750, dtype=torch.float64)
    """

    higher_is_better = True

    def __init__(self, tau: float = 0.05, **options: Any) -> None:
        super().__init__(("retain", "unlearned", "lengths"), (tau,), **options)
        self.tau = tau

    def update(self, retain_deltas: Ragged, unlearned_deltas: Ragged) -> None:
        """Take further rows.

        Args:
            retain_deltas: Of the retain model, nats per token, ``(B, layers)``; a row without
                marked tokens is empty.
            unlearned_deltas: Of the unlearned model, the same rows and layers.

        Raises:
            InputError: If the two hold other rows or layers.
        """
        pair = [as_lists(deltas) for deltas in (retain_deltas, unlearned_deltas)]
        lengths, others = ([float(len(row)) for row in rows] for rows in pair)
        if lengths != others:
            raise InputError(
                f"UnlearningDepth: {len(lengths)} rows of the retain and {len(others)} of the "
                "unlearned model; it needs the same rows and layers of both."
            )
        self.add(retain=_flat(pair[0]), unlearned=_flat(pair[1]), lengths=lengths)

    def number(self) -> float:
        """Return the mean score of the rows that have one."""
        lengths = self.held("lengths")
        pair = [_split(self.held(name), lengths) for name in ("retain", "unlearned")]
        return unlearning_depth(pair[0], pair[1], self.tau).value


def _flat(rows: Iterable[Iterable[float]]) -> list[float]:
    return list(itertools.chain.from_iterable(rows))


def _split(values: Iterable[float], lengths: Iterable[float]) -> list[list[float]]:
    """Return values as rows of these lengths."""
    rest = iter(values)
    return [[float(one) for one in itertools.islice(rest, int(length))] for length in lengths]
