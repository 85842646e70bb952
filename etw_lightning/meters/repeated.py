"""What several generations of each row say together, as meters: leak@k, stability of refusals."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, get_args

from etw_lightning.meters.columns import RecordMeter, as_records
from etw_lightning.metrics.repeated import (
    THRESHOLD,
    leakage,
    leaks,
    refusal_agreement,
    refusal_stability,
)
from etw_lightning.metrics.values import present
from etw_lightning.metrics.words import WordRule
from etw_lightning.schema import InputError, Record
from etw_lightning.value_checks import check_name

__all__ = ["LeakAtK", "RefusalAgreement", "RefusalStability"]


class _Repeated(RecordMeter):
    """Keeps generations, those of a row with one id."""

    fields: tuple[str, ...] = ("generation",)

    def update(self, rows: Sequence[Record] | dict[str, Any]) -> None:
        """Take further generations; those of a row may come in any updates and processes.

        Args:
            rows: Records, or their fields, with ``id``: generations of a row have one id.

        Raises:
            InputError: If a row lacks what is read.
        """
        kept = as_records(rows)
        for row, record in enumerate(kept):
            for name in self.fields:
                present(record, row, name)
        self.add(run=self.lines(kept))


class LeakAtK(_Repeated):
    """leak@k: probability that k samples of a row give its answer away, mean over rows.

    Range: 0 to 1.
    Direction: down on forget sets.
    Empty input: InputError from ``compute``, as for rows with fewer than k samples.
    Source: arXiv:2511.04934; see ``metrics.leakage``.

    Args:
        k: How many samples an attacker takes, 1 or more.
        threshold: ROUGE-L recall from which a sample leaks, above 0, at most 1.
        words: ``unicode`` for texts that are not of a-z.
        options: Of ``torchmetrics.Metric``.

    Raises:
        InputError: If ``k`` or ``threshold`` is out of range.

    Example:
        >>> meter = LeakAtK(k=2)
        >>> said = ["In Rome.", "In Oslo.", "No idea."]
        >>> meter.update({"id": ["f/0"] * 3, "answer": ["In Rome."] * 3, "generation": said})
        >>> meter.compute()
        tensor(0.6667, dtype=torch.float64)
    """

    higher_is_better = False
    fields = ("generation", "answer")

    def __init__(
        self,
        k: int = 1,
        threshold: float = THRESHOLD,
        words: WordRule = "published",
        **options: Any,
    ) -> None:
        if k < 1:
            raise InputError(f"LeakAtK.k must be 1 or more; got {k}.")
        if not 0 < threshold <= 1:
            raise InputError(f"LeakAtK.threshold must be above 0 and at most 1; got {threshold}.")
        check_name("LeakAtK.words", words, get_args(WordRule))
        super().__init__(settings=(k, threshold, words), **options)
        self.k, self.threshold, self.words = k, threshold, words

    def number(self) -> float:
        """Return the probability."""
        judge = partial(leaks, threshold=self.threshold, words=self.words)
        return leakage(self.records(), self.k, judge).value


class RefusalStability(_Repeated):
    """Share of rows that are refused in all of several wordings or samples, or in none.

    Range: 0 to 1.
    Direction: up.
    Empty input: InputError from ``compute``, as for rows with one generation.
    Source: 1 - flip rate of arXiv:2512.12066; see ``metrics.refusal_stability``.

    Args:
        options: Of ``torchmetrics.Metric``.

    Example:
        >>> meter = RefusalStability()
        >>> said = ["I don't know.", "No idea.", "No idea.", "In Rome."]
        >>> meter.update({"id": ["f/0", "f/0", "f/1", "f/1"], "generation": said})
        >>> meter.compute()
        tensor(0.5000, dtype=torch.float64)
    """

    higher_is_better = True

    def number(self) -> float:
        """Return the share."""
        return refusal_stability(self.records()).value


class RefusalAgreement(_Repeated):
    """Share of the wordings or samples of a row that do what most do, refuse or not; mean of rows.

    Range: 1/2 to 1.
    Direction: up.
    Empty input: InputError from ``compute``, as for rows with one generation.
    Source: the Safety Stability Index of arXiv:2512.12066; see ``metrics.refusal_agreement``.

    Args:
        options: Of ``torchmetrics.Metric``.

    Example:
        >>> meter = RefusalAgreement()
        >>> said = ["I don't know.", "No idea.", "No idea.", "In Rome."]
        >>> meter.update({"id": ["f/0", "f/0", "f/1", "f/1"], "generation": said})
        >>> meter.compute()
        tensor(0.7500, dtype=torch.float64)
    """

    higher_is_better = True

    def number(self) -> float:
        """Return the share."""
        return refusal_agreement(self.records()).value
