"""Metrics of models that think before they answer: what is left in trace and answer."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, Literal

import numpy as np

from etw_lightning.metrics.text import rouge_scores
from etw_lightning.metrics.values import Floats, Metric, check_rows, present, where
from etw_lightning.metrics.words import WordRule
from etw_lightning.schema import InputError, Record

__all__ = [
    "answer_rouge",
    "answer_rouge_values",
    "parted",
    "steps_of",
    "trace_rouge",
    "trace_rouge_values",
    "trace_step_rouge",
    "trace_step_rouge_values",
    "unfinished_traces",
    "unfinished_values",
]

#: What a trace begins and ends with.
_BEGIN, _END = "<think>", "</think>"


def parted(text: str) -> tuple[str, str | None]:
    r"""Return the trace of a text and its answer, which is None where the trace does not end.

    Example:
        >>> parted("<think>\nLet me see.\n</think>\n\nBasil.")
        ('Let me see.', 'Basil.')
        >>> parted("Let me see")
        ('Let me see', None)
    """
    trace, end, answer = text.partition(_END)
    return trace.strip().removeprefix(_BEGIN).strip(), answer.strip() if end else None


def steps_of(trace: str) -> list[str]:
    """Return the sentences of a trace, by nltk's Punkt without training.

    Example:
        >>> steps_of("Let me see. Who was it? Basil!")
        ['Let me see.', 'Who was it?', 'Basil!']
    """
    return list(_sentences().tokenize(trace))


@cache
def _sentences() -> Any:
    from nltk.tokenize.punkt import PunktSentenceTokenizer  # type: ignore[import-untyped]

    return PunktSentenceTokenizer()


def _traces(records: Sequence[Record]) -> list[tuple[str, str]]:
    """Return the generated and the gold trace of each row."""
    check_rows(records)
    found = []
    for row, record in enumerate(records):
        gold, answer = parted(record.answer)
        if answer is None or not gold:
            raise InputError(
                f"{where(record, row)}: its answer has no trace that ends in {_END}; leave the "
                "metrics of traces out of --metrics."
            )
        found.append((parted(str(present(record, row, "generation")))[0], gold))
    return found


def trace_rouge(
    records: Sequence[Record], direction: Literal["up", "down"], words: WordRule = "published"
) -> Metric:
    r"""Mean ROUGE-L recall of generated traces: what is still thought, in the same order.

    Formula: mean over rows of the ROUGE-L recall of the generated trace against the gold one,
        stemmed; a trace is what stands before ``</think>``, all where that is missing.
    Unit: fraction.
    Range: 0 to 1.
    Direction: down on forget, up elsewhere.
    Empty input: InputError; an empty trace counts as 0.
    Source: R-TOFU, arXiv:2505.15214, CoT forget efficacy; its ``rouge_cot_forget_score``.
    Differs from widely used code: that leaves ``<think>`` in the generated text, whose word "think"
        may meet one of the gold trace: of the gold "I think so" the trace "so" has a recall of 1/3
        here and 2/3 there.

    Args:
        records: Rows whose answers hold a trace, generated, ``(B,)``.
        direction: ``down`` for forget sets, ``up`` for others.
        words: As of ``rouge_scores``.

    Raises:
        InputError: If a row has no generation, or its answer no trace.

    Example:
        >>> row = Record("forget", "f/0", "It is red.\n</think>\n\nRed.", generation="It was red.")
        >>> round(trace_rouge([row], "down").value, 4)
        0.6667
    """
    return Metric.mean(trace_rouge_values(records, words), direction)


def trace_rouge_values(records: Sequence[Record], words: WordRule = "published") -> Floats:
    """Return what ``trace_rouge`` averages, ``(B,)``."""
    pairs = _traces(records)
    return np.array([rouge_scores(said, gold, words)["rougeL_recall"] for said, gold in pairs])


def trace_step_rouge(
    records: Sequence[Record], direction: Literal["up", "down"], words: WordRule = "published"
) -> Metric:
    r"""Mean ROUGE-L recall of the steps of traces: what is still thought, in whatever order.

    Formula: mean over rows of the mean over the sentences of the gold trace of the largest ROUGE-L
        recall that a sentence of the generated trace has of it, stemmed; 0 without sentences.
    Unit: fraction.
    Range: 0 to 1.
    Direction: down on forget, up elsewhere.
    Empty input: InputError; an empty trace counts as 0.
    Source: R-TOFU, arXiv:2505.15214, step-wise ROUGE; its ``compute_cosine_similarity_score``.
    Differs from widely used code: as ``trace_rouge``: of the gold "I think so." the trace "so." has
        1/3 here and 2/3 there. The sentences are nltk's Punkt's in both.

    Args:
        records: Rows whose answers hold a trace, generated, ``(B,)``.
        direction: ``down`` for forget sets, ``up`` for others.
        words: As of ``rouge_scores``.

    Raises:
        InputError: If a row has no generation, or its answer no trace.

    Example:
        >>> gold = "It is red. He saw it.\n</think>\n\nRed."
        >>> row = Record("forget", "f/0", gold, generation="He saw it. It was red.\n</think>\n\nNo")
        >>> round(trace_step_rouge([row], "down").value, 4)
        0.8333
    """
    return Metric.mean(trace_step_rouge_values(records, words), direction)


def trace_step_rouge_values(records: Sequence[Record], words: WordRule = "published") -> Floats:
    """Return what ``trace_step_rouge`` averages, ``(B,)``."""

    def best(gold: str, said: Sequence[str]) -> float:
        found = (rouge_scores(one, gold, words)["rougeL_recall"] for one in said)
        return max(found, default=0.0)

    pairs = [(steps_of(said), steps_of(gold)) for said, gold in _traces(records)]
    return np.array([np.mean([best(step, said) for step in gold]) for said, gold in pairs])


def answer_rouge(
    records: Sequence[Record], direction: Literal["up", "down"], words: WordRule = "published"
) -> Metric:
    r"""Mean ROUGE-L recall of what is answered once the trace has ended.

    Formula: mean over rows of the ROUGE-L recall of what the generation has behind ``</think>``
        against the same of the gold answer, or the whole of a gold answer without trace; stemmed.
    Unit: fraction.
    Range: 0 to 1.
    Direction: down on forget, up elsewhere.
    Empty input: InputError; a trace that does not end counts as 0.
    Source: R-TOFU, arXiv:2505.15214, answer forget efficacy and model utility; its
        ``get_all_evals``.
    Differs from widely used code: that looks for ``</think>`` with two line ends behind it. Of
        "No.\n</think>\nRed." the answer "Red." has a recall of 1 here and 0 there.

    Args:
        records: Generated rows, ``(B,)``.
        direction: ``down`` for forget sets, ``up`` for others.
        words: As of ``rouge_scores``.

    Raises:
        InputError: If a row has no generation.

    Example:
        >>> rows = [Record("forget", "f/0", "It is red.\n</think>\n\nRed.", generation=said)
        ...     for said in ("Hm.\n</think>\n\nRed!", "It is red.")]
        >>> answer_rouge(rows, "down").value
        0.5
    """
    return Metric.mean(answer_rouge_values(records, words), direction)


def answer_rouge_values(records: Sequence[Record], words: WordRule = "published") -> Floats:
    """Return what ``answer_rouge`` averages, ``(B,)``."""
    check_rows(records)
    values = []
    for row, record in enumerate(records):
        gold = parted(record.answer)[1]
        said = parted(str(present(record, row, "generation")))[1] or ""
        golden = record.answer if gold is None else gold
        values.append(rouge_scores(said, golden, words)["rougeL_recall"])
    return np.array(values)


def unfinished_traces(records: Sequence[Record]) -> Metric:
    r"""Share of generations that never come to an answer.

    Formula: share of the rows whose generation holds no ``</think>``.
    Unit: fraction.
    Range: 0 to 1.
    Direction: down: such a row counts as forgotten and is none.
    Empty input: InputError.
    Source: ours; it says how many of the answers that ``answer_rouge`` counts as 0 there are not.
    Differs from widely used code: that counts nothing of the kind. Of "Hm." and
        "Hm.\n</think>\n\nRed." the share is 0.5.

    Args:
        records: Generated rows, ``(B,)``.

    Raises:
        InputError: If a row has no generation.

    Example:
        >>> rows = [Record("forget", "f/0", "Red.", generation=said)
        ...     for said in ("Hm.", "Hm.\n</think>\n\nRed.")]
        >>> unfinished_traces(rows).value
        0.5
    """
    return Metric.mean(unfinished_values(records), "down")


def unfinished_values(records: Sequence[Record]) -> Floats:
    """Return 1 for a trace that does not end, else 0, ``(B,)``."""
    check_rows(records)
    said = [str(present(record, row, "generation")) for row, record in enumerate(records)]
    return np.array([float(_END not in one) for one in said])
