"""What is said of generated text: ROUGE, MUSE's two memories, and whether it is still language."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np

from etw_lightning.meters.columns import (
    ConventionMeter,
    MeanMeter,
    RecordMeter,
    Rows,
    as_records,
    row_values,
)
from etw_lightning.metrics.fluency import (
    checked_probabilities,
    distinct_n,
    emptiness,
    perplexity_of,
    repetition_values,
    text_losses,
)
from etw_lightning.metrics.text import RougeName, gold_continuations, rouge_values
from etw_lightning.metrics.values import Floats
from etw_lightning.metrics.words import WordRule
from etw_lightning.schema import Conventions, Record
from etw_lightning.value_checks import check_name

__all__ = [
    "DistinctN",
    "EmptyGenerations",
    "GenerationPerplexity",
    "Gibberish",
    "KnowMem",
    "Repetition",
    "Rouge",
    "VerbMem",
]

_NGRAMS = (1, 2, 3, 4)
_DEFINITIONS = Conventions()


class Rouge(MeanMeter):
    """Mean ROUGE of generations against gold or paraphrased answers.

    Range: 0 to 1.
    Direction: down on forget sets, up elsewhere.
    Empty input: InputError from ``compute``; an empty generation counts as 0.
    Source: Lin 2004; TOFU, arXiv:2401.06121; see ``metrics.rouge``.

    Args:
        name: ``rouge1_recall``, ``rouge1_f1``, ``rougeL_recall`` or ``rougeL_f1``.
        against: ``answer`` or ``paraphrase``.
        words: ``published`` or ``unicode``; see ``metrics.rouge_scores``.
        options: Of ``torchmetrics.Metric``.

    Example:
        >>> meter = Rouge()
        >>> meter.update({"generation": ["In Paris", "Rome"], "answer": ["In Paris."] * 2})
        >>> meter.compute()
        tensor(0.5000, dtype=torch.float64)
    """

    def __init__(
        self,
        name: RougeName = "rougeL_recall",
        against: Literal["answer", "paraphrase"] = "answer",
        words: WordRule = "published",
        **options: Any,
    ) -> None:
        check_name("Rouge.name", name, get_args(RougeName))
        check_name("Rouge.against", against, ("answer", "paraphrase"))
        check_name("Rouge.words", words, get_args(WordRule))
        super().__init__((name, against, words), **options)
        self.name = name
        self.against = against
        self.words = words

    def values(self, records: Sequence[Record]) -> Floats:
        """Return the ROUGE of each row."""
        return rouge_values(records, self.name, self.against, self.words)


class VerbMem(ConventionMeter):
    """MUSE's verbatim memorisation: mean ROUGE-L F1 of continued forget passages, percent.

    Range: 0 to 100.
    Direction: down.
    Empty input: InputError from ``compute``.
    Source: MUSE, arXiv:2407.06460, VerbMem; see ``metrics.verbmem``.

    Args:
        conventions: ``gold_text`` matters here.
        words: ``published`` or ``unicode``; see ``metrics.rouge_scores``.
        options: Of ``torchmetrics.Metric``.

    Example:
        >>> meter = VerbMem()
        >>> meter.update({"generation": ["loves books"], "answer": ["loved the books"]})
        >>> meter.compute()
        tensor(80., dtype=torch.float64)
    """

    def __init__(
        self,
        conventions: Conventions = _DEFINITIONS,
        words: WordRule = "published",
        **options: Any,
    ) -> None:
        check_name("VerbMem.words", words, get_args(WordRule))
        super().__init__(conventions, (words,), **options)
        self.words = words

    def values(self, records: Sequence[Record]) -> Floats:
        """Return the percentage of each row."""
        golds = gold_continuations(records, self.conventions)
        return 100 * rouge_values(golds, "rougeL_f1", words=self.words)


class KnowMem(MeanMeter):
    """MUSE's knowledge memorisation: mean ROUGE-L F1 of generated answers, percent.

    Range: 0 to 100.
    Direction: down on forget questions, up on retain questions.
    Empty input: InputError from ``compute``.
    Source: MUSE, arXiv:2407.06460, KnowMem; see ``metrics.knowmem``.

    Args:
        words: ``published`` or ``unicode``; see ``metrics.rouge_scores``.
        options: Of ``torchmetrics.Metric``.

    Example:
        >>> meter = KnowMem()
        >>> meter.update({"generation": ["1957"], "answer": ["1956"]})
        >>> meter.compute()
        tensor(0., dtype=torch.float64)
    """

    def __init__(self, words: WordRule = "published", **options: Any) -> None:
        check_name("KnowMem.words", words, get_args(WordRule))
        super().__init__((words,), **options)
        self.words = words

    def values(self, records: Sequence[Record]) -> Floats:
        """Return the percentage of each row."""
        return 100 * rouge_values(records, "rougeL_f1", words=self.words)


class Repetition(MeanMeter):
    """Share of the n-grams of a generation that it has said before, averaged over generations.

    Range: 0 to below 1.
    Direction: down; read it beside ``EmptyGenerations``.
    Empty input: InputError from ``compute``; an empty generation: 0.
    Source: Welleck et al. 2019, arXiv:1908.04319; see ``metrics.repetition``.

    Args:
        n: Words of an n-gram, 1 to 4.
        words: ``unicode`` cuts runs of scripts without spaces.
        options: Of ``torchmetrics.Metric``.

    Example:
        >>> meter = Repetition(n=2)
        >>> meter.update({"generation": ["a b a b a b"]})
        >>> meter.compute()
        tensor(0.6000, dtype=torch.float64)
    """

    higher_is_better = False

    def __init__(self, n: int = 4, words: WordRule = "published", **options: Any) -> None:
        check_name("Repetition.n", n, _NGRAMS)
        check_name("Repetition.words", words, get_args(WordRule))
        super().__init__((n, words), **options)
        self.n = n
        self.words = words

    def values(self, records: Sequence[Record]) -> Floats:
        """Return the share of each row."""
        return repetition_values(records, self.n, self.words)


class EmptyGenerations(MeanMeter):
    """Share of generations without a word.

    Range: 0 to 1.
    Direction: down.
    Empty input: InputError from ``compute``.
    Source: none; see ``metrics.empty_generations``.

    Args:
        options: Of ``torchmetrics.Metric``.

    Example:
        >>> meter = EmptyGenerations()
        >>> meter.update({"generation": ["yes", " "]})
        >>> meter.compute()
        tensor(0.5000, dtype=torch.float64)
    """

    higher_is_better = False

    def values(self, records: Sequence[Record]) -> Floats:
        """Return 1 or 0 of each row."""
        return emptiness(records)


class DistinctN(RecordMeter):
    """Different n-grams of all generations together, over all their words.

    The generations themselves are kept and gathered: no n-gram counts twice, whoever saw it.

    Range: 0 to 1.
    Direction: up; compare sets of equal size only.
    Empty input: InputError from ``compute``; generations without any word: 0.
    Source: Li et al. 2016, arXiv:1510.03055; see ``metrics.distinct_n``.

    Args:
        n: Words of an n-gram, 1 to 4.
        words: ``unicode`` cuts runs of scripts without spaces.
        options: Of ``torchmetrics.Metric``.

    Example:
        >>> meter = DistinctN(n=2)
        >>> meter.update({"generation": ["a b", "a b"]})
        >>> meter.compute()
        tensor(0.2500, dtype=torch.float64)
    """

    higher_is_better = True

    def __init__(self, n: int = 2, words: WordRule = "published", **options: Any) -> None:
        check_name("DistinctN.n", n, _NGRAMS)
        check_name("DistinctN.words", words, get_args(WordRule))
        super().__init__(settings=(n, words), **options)
        self.n = n
        self.words = words

    def update(self, rows: Sequence[Record] | dict[str, Any]) -> None:
        """Take further generations.

        Args:
            rows: Records, or their fields.

        Raises:
            InputError: If a row has no generation.
        """
        records = as_records(rows)
        if records:
            emptiness(records)  # Refuses a row without a generation.
        said = [Record(one.dataset, one.id, "", generation=one.generation) for one in records]
        self.add(run=self.lines(said))

    def number(self) -> float:
        """Return the share."""
        return distinct_n(self.records(), self.n, self.words).value


class GenerationPerplexity(MeanMeter):
    """How surprised another model is by what was generated, per token.

    Range: 1 or more.
    Direction: down, towards that of the target model's own generations.
    Empty input: InputError from ``compute``; a row without a token of text is one from ``update``.
    Source: Jelinek et al. 1977; see ``metrics.generation_perplexity``.

    A tensor holds a loss a token, nats.

    Args:
        options: Of ``torchmetrics.Metric``.

    Example:
        >>> import torch
        >>> meter = GenerationPerplexity()
        >>> meter.update(torch.tensor([0.0, 0.0]))
        >>> meter.compute()
        tensor(1., dtype=torch.float64)
    """

    higher_is_better = False

    def values(self, records: Sequence[Record]) -> list[float]:
        """Return the loss of each token."""
        return text_losses(records)

    def number(self) -> float:
        """Return the perplexity."""
        return perplexity_of(self.held("values"), "rows")


class Gibberish(MeanMeter):
    """Mean probability that a classifier gives to a generation being clean text.

    Range: 0 to 1.
    Direction: up.
    Empty input: InputError from ``compute``.
    Source: open-unlearning's ``forget_Q_A_gibberish``; see ``metrics.gibberish``.

    Args:
        options: Of ``torchmetrics.Metric``.

    Example:
        >>> import torch
        >>> meter = Gibberish()
        >>> meter.update(torch.tensor([1.0, 0.5]))
        >>> meter.compute()
        tensor(0.7500, dtype=torch.float64)
    """

    higher_is_better = True

    def update(self, rows: Rows) -> None:
        """Take further rows.

        Args:
            rows: Probability of each generation being clean text, ``(B,)``; records hold none.

        Raises:
            InputError: If one is no probability.
        """
        values = row_values(rows, np.asarray, "Gibberish")
        self.add(values=checked_probabilities(values))
