"""Whether generations are answers, as meters: refusals, stutter, loops, and what is still said."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

from etw_lightning.meters.columns import MeanMeter, RecordMeter, as_records
from etw_lightning.metrics.sanity import looped_values, refusal_values, stutter_values
from etw_lightning.metrics.still_said import ItemKind, items_of, still_said, still_said_of_kind
from etw_lightning.metrics.values import Floats, present
from etw_lightning.metrics.words import WordRule
from etw_lightning.schema import Record
from etw_lightning.value_checks import check_name

__all__ = ["Looped", "Refusals", "StillSaid", "Stutter"]


class Refusals(MeanMeter):
    """Share of generations that refuse, or say that they do not know.

    Range: 0 to 1.
    Direction: none.
    Empty input: InputError from ``compute``; an empty generation is no refusal.
    Source: the keyword test of arXiv:2307.15043, with phrases of ours; see ``metrics.refusals``.

    Args:
        options: Of ``torchmetrics.Metric``.

    Example:
        >>> meter = Refusals()
        >>> meter.update({"generation": ["I don't know.", "Rome"]})
        >>> meter.compute()
        tensor(0.5000, dtype=torch.float64)
    """

    def values(self, records: Sequence[Record]) -> Floats:
        """Return 1 or 0 of each row."""
        return refusal_values(records)


class Stutter(MeanMeter):
    """Share of generations that say a word twice in a row.

    Range: 0 to 1.
    Direction: down.
    Empty input: InputError from ``compute``.
    Source: none; see ``metrics.stuttering_generations``.

    Args:
        words: ``unicode`` cuts runs of scripts without spaces.
        options: Of ``torchmetrics.Metric``.

    Example:
        >>> meter = Stutter()
        >>> meter.update({"generation": ["in in Rome", "in Rome"]})
        >>> meter.compute()
        tensor(0.5000, dtype=torch.float64)
    """

    higher_is_better = False

    def __init__(self, words: WordRule = "published", **options: Any) -> None:
        check_name("Stutter.words", words, get_args(WordRule))
        super().__init__((words,), **options)
        self.words = words

    def values(self, records: Sequence[Record]) -> Floats:
        """Return 1 or 0 of each row."""
        return stutter_values(records, self.words)


class Looped(MeanMeter):
    """Share of generations that are gibberish by compression: loops, or nothing at all.

    Range: 0 to 1.
    Direction: down.
    Empty input: InputError from ``compute``; an empty generation counts.
    Source: Radford et al. 2022, arXiv:2212.04356; see ``metrics.looped_generations``.

    Args:
        options: Of ``torchmetrics.Metric``.

    Example:
        >>> meter = Looped()
        >>> meter.update({"generation": ["in " * 40, "in Rome"]})
        >>> meter.compute()
        tensor(0.5000, dtype=torch.float64)
    """

    higher_is_better = False

    def values(self, records: Sequence[Record]) -> Floats:
        """Return 1 or 0 of each row."""
        return looped_values(records)


class StillSaid(RecordMeter):
    """Share of the names, numbers and addresses of gold answers that generations still hold.

    Range: 0 to 1.
    Direction: down on forget sets.
    Empty input: InputError from ``compute``, also where no answer has an item.
    Source: none; see ``metrics.still_said``.

    Args:
        kind: ``name``, ``number`` or ``address``; None for all.
        options: Of ``torchmetrics.Metric``.

    Example:
        >>> meter = StillSaid()
        >>> meter.update({"answer": ["In Rome, in 1990."], "generation": ["In Rome."]})
        >>> meter.compute()
        tensor(0.5000, dtype=torch.float64)
    """

    higher_is_better = False

    def __init__(self, kind: ItemKind | None = None, **options: Any) -> None:
        if kind is not None:
            check_name("StillSaid.kind", kind, get_args(ItemKind))
        super().__init__(settings=(kind,), **options)
        self.kind = kind

    def update(self, rows: Sequence[Record] | dict[str, Any]) -> None:
        """Take further rows.

        Args:
            rows: Records, or their fields: ``answer``, ``generation`` and, where there is one,
                ``question``.

        Raises:
            InputError: If a row lacks one of them.
        """
        kept = as_records(rows)
        for row, record in enumerate(kept):
            present(record, row, "generation")
            items_of(record)
        self.add(run=self.lines(kept))

    def number(self) -> float:
        """Return the share."""
        records = self.records()
        if self.kind is None:
            return still_said(records).value
        return still_said_of_kind(records, self.kind).value
