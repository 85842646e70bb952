"""How much of an answer a model reproduces when it is led along it."""

from __future__ import annotations

from collections.abc import Sequence

from etw_lightning.meters.columns import ConventionMeter
from etw_lightning.metrics.memorisation import exact_memorisation_values, extraction_strength_values
from etw_lightning.metrics.values import Floats
from etw_lightning.schema import Record

__all__ = ["ExactMemorisation", "ExtractionStrength"]


class ExtractionStrength(ConventionMeter):
    """Mean extraction strength: the share of an answer that follows from its beginning.

    Range: 0 to 1.
    Direction: down on forget sets.
    Empty input: InputError from ``compute``.
    Source: Carlini et al. 2021, arXiv:2012.07805; see ``metrics.extraction_strength``.

    Args:
        conventions: ``floor`` and ``last_label`` matter here.
        options: Of ``torchmetrics.Metric``.

    Example:
        >>> import torch
        >>> meter = ExtractionStrength()
        >>> matches = torch.tensor([[1, 0, 1], [1, 1, 0]])
        >>> mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
        >>> meter.update({"token_matches": matches, "mask": mask})
        >>> meter.compute()
        tensor(0.6667, dtype=torch.float64)
    """

    def values(self, records: Sequence[Record]) -> Floats:
        """Return the share of each row."""
        return extraction_strength_values(records, self.conventions)


class ExactMemorisation(ConventionMeter):
    """Mean exact memorisation: the share of labels that are the likeliest token.

    Range: 0 to 1; far above 0 for any model of the language.
    Direction: down on forget sets.
    Empty input: InputError from ``compute``.
    Source: Tirumala et al. 2022, arXiv:2205.10770; see ``metrics.exact_memorisation``.

    Args:
        conventions: ``last_label`` matters here.
        options: Of ``torchmetrics.Metric``.

    Example:
        >>> meter = ExactMemorisation()
        >>> meter.update({"token_matches": [(1, 0), (1, 1, 1, 1)]})
        >>> meter.compute()
        tensor(0.7500, dtype=torch.float64)
    """

    def values(self, records: Sequence[Record]) -> Floats:
        """Return the share of each row."""
        return exact_memorisation_values(records, self.conventions)
