"""What models that think before they answer still think, and what they still answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

from etw_lightning.meters.columns import MeanMeter
from etw_lightning.metrics.reasoning import (
    answer_rouge_values,
    trace_rouge_values,
    trace_step_rouge_values,
    unfinished_values,
)
from etw_lightning.metrics.values import Floats
from etw_lightning.metrics.words import WordRule
from etw_lightning.schema import Record
from etw_lightning.value_checks import check_name

__all__ = ["AnswerRouge", "TraceRouge", "UnfinishedTraces"]


class TraceRouge(MeanMeter):
    r"""Mean ROUGE-L recall of generated traces, of each as a whole or of its steps.

    Range: 0 to 1.
    Direction: down on forget sets, up elsewhere.
    Empty input: InputError from ``compute``; an empty trace counts as 0.
    Source: R-TOFU, arXiv:2505.15214; see ``metrics.trace_rouge`` and ``trace_step_rouge``.

    Args:
        unit: ``trace`` or ``step``.
        words: See ``metrics.rouge_scores``.
        options: Of ``torchmetrics.Metric``.

    Example:
        >>> meter = TraceRouge()
        >>> meter.update({"generation": ["It was"], "answer": ["It is.\n</think>\n\nNo."]})
        >>> meter.compute()
        tensor(0.5000, dtype=torch.float64)
    """

    def __init__(
        self,
        unit: Literal["trace", "step"] = "trace",
        words: WordRule = "published",
        **options: Any,
    ) -> None:
        check_name("TraceRouge.unit", unit, ("trace", "step"))
        check_name("TraceRouge.words", words, get_args(WordRule))
        super().__init__((unit, words), **options)
        self.unit = unit
        self.words = words

    def values(self, records: Sequence[Record]) -> Floats:
        """Return the recall of each row."""
        of_rows = trace_rouge_values if self.unit == "trace" else trace_step_rouge_values
        return of_rows(records, self.words)


class AnswerRouge(MeanMeter):
    r"""Mean ROUGE-L recall of what is answered once the trace has ended.

    Range: 0 to 1.
    Direction: down on forget sets, up elsewhere.
    Empty input: InputError from ``compute``; a trace that does not end counts as 0.
    Source: R-TOFU, arXiv:2505.15214; see ``metrics.answer_rouge``.

    Args:
        words: See ``metrics.rouge_scores``.
        options: Of ``torchmetrics.Metric``.

    Example:
        >>> meter = AnswerRouge()
        >>> said = ["Hm.\n</think>\n\nIn Rome", "Rome"]
        >>> meter.update({"generation": said, "answer": ["Rome"] * 2})
        >>> meter.compute()
        tensor(0.5000, dtype=torch.float64)
    """

    def __init__(self, words: WordRule = "published", **options: Any) -> None:
        check_name("AnswerRouge.words", words, get_args(WordRule))
        super().__init__((words,), **options)
        self.words = words

    def values(self, records: Sequence[Record]) -> Floats:
        """Return the recall of each row."""
        return answer_rouge_values(records, self.words)


class UnfinishedTraces(MeanMeter):
    r"""Share of generations that never come to an answer.

    Range: 0 to 1.
    Direction: down.
    Empty input: InputError from ``compute``.
    Source: ours; see ``metrics.unfinished_traces``.

    Args:
        options: Of ``torchmetrics.Metric``.

    Example:
        >>> meter = UnfinishedTraces()
        >>> meter.update({"generation": ["Hm.\n</think>\n\nRome", "Rome"]})
        >>> meter.compute()
        tensor(0.5000, dtype=torch.float64)
    """

    higher_is_better = False

    def values(self, records: Sequence[Record]) -> Floats:
        """Return 1 or 0 of each row."""
        return unfinished_values(records)
