"""Probabilities of answers and truth ratios, and accuracy on choice questions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

from etw_lightning.meters.columns import MeanMeter
from etw_lightning.metrics.choice import Normalise, choice_hits
from etw_lightning.metrics.likelihoods import (
    TruthRatioName,
    closer_to_one,
    normalised_probabilities,
    paraphrase_probabilities,
    probabilities,
    true_better,
    truth_probabilities,
    truth_ratios,
)
from etw_lightning.metrics.values import Floats, mean_of
from etw_lightning.schema import Record
from etw_lightning.value_checks import check_name

__all__ = ["ChoiceAccuracy", "Probability", "TruthRatio"]

ProbabilityOf = Literal["answer", "paraphrase", "normalised"]
_PROBABILITIES: Mapping[str, Callable[[Sequence[Record]], Floats]] = {
    "answer": probabilities,
    "paraphrase": paraphrase_probabilities,
    "normalised": normalised_probabilities,
}


class Probability(MeanMeter):
    """Mean length-normalised probability of answers.

    Range: 0 to 1.
    Direction: down on forget sets, up elsewhere.
    Empty input: InputError from ``compute``.
    Source: TOFU, arXiv:2401.06121; see ``metrics.probabilities``, ``paraphrase_probabilities``
        and ``normalised_probabilities``.

    Args:
        of: ``answer``, ``paraphrase``, or ``normalised``, the answer among its alternatives.
        options: Of ``torchmetrics.Metric``.

    Example:
        >>> import torch
        >>> meter = Probability()
        >>> meter.update({"answer_loss": torch.tensor([0.0])})
        >>> meter.compute()
        tensor(1., dtype=torch.float64)
    """

    def __init__(self, of: ProbabilityOf = "answer", **options: Any) -> None:
        check_name("Probability.of", of, get_args(ProbabilityOf))
        super().__init__((of,), **options)
        self.of = of

    def values(self, records: Sequence[Record]) -> Floats:
        """Return the probability of each row."""
        return _PROBABILITIES[self.of](records)


class TruthRatio(MeanMeter):
    """Truth ratio of a set: how wrong answers compare with the right one.

    Range: 0 to 1.
    Direction: ``closer_to_one`` up on forget sets, down elsewhere; the others the other way.
    Empty input: InputError from ``compute``.
    Source: TOFU, arXiv:2401.06121; ``mean_probability``: arXiv:2506.12618; see
        ``metrics.truth_ratio``.

    A tensor holds a truth ratio a row; for ``mean_probability`` the probability of the right
    answer against the typical wrong one.

    Args:
        aggregation: ``closer_to_one``, ``true_better`` or ``mean_probability``.
        options: Of ``torchmetrics.Metric``.

    Example:
        >>> import torch
        >>> meter = TruthRatio("true_better")
        >>> meter.update(torch.tensor([0.5, 2.0]))
        >>> meter.compute()
        tensor(0.2500, dtype=torch.float64)
    """

    def __init__(self, aggregation: TruthRatioName = "closer_to_one", **options: Any) -> None:
        check_name("TruthRatio.aggregation", aggregation, get_args(TruthRatioName))
        super().__init__((aggregation,), **options)
        self.aggregation = aggregation

    def values(self, records: Sequence[Record]) -> Floats:
        """Return the truth ratio of each row, or its probability of the right answer."""
        is_mean = self.aggregation == "mean_probability"
        return truth_probabilities(records) if is_mean else truth_ratios(records)

    def number(self) -> float:
        """Return the ratios as one number."""
        ways = {"closer_to_one": closer_to_one, "true_better": true_better}
        return ways.get(self.aggregation, mean_of)(self.held("values"))


class ChoiceAccuracy(MeanMeter):
    """Share of choice questions whose right option is the model's likeliest.

    Range: 0 to 1; guessing gives one over the number of options.
    Direction: up on tests of what must stay, down, towards guessing, on tests of what must go.
    Empty input: InputError from ``compute``.
    Source: WMDP, arXiv:2403.03218; MMLU, arXiv:2009.03300; see ``metrics.choice_accuracy``.

    A tensor holds 1 for a hit, else 0.

    Args:
        normalise: What an option's log-probability is divided by: ``none``, ``tokens`` or
            ``characters``.
        options: Of ``torchmetrics.Metric``.

    Example:
        >>> meter = ChoiceAccuracy()
        >>> row = {"choices": [(" Paris", " Rome")], "choice_logps": [(-1.0, -2.0)]}
        >>> meter.update(row | {"right_choice": [0]})
        >>> meter.compute()
        tensor(1., dtype=torch.float64)
    """

    def __init__(self, normalise: Normalise = "none", **options: Any) -> None:
        check_name("ChoiceAccuracy.normalise", normalise, get_args(Normalise))
        super().__init__((normalise,), **options)
        self.normalise = normalise

    def values(self, records: Sequence[Record]) -> Floats:
        """Return 1 or 0 of each row."""
        return choice_hits(records, self.normalise)
