"""The suite's numbers of what an attack has asked a model itself, as far as its records go."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace

from etw_lightning.catalogue.entries import Entry, Given, Part, Sets
from etw_lightning.catalogue.listing import CATALOGUE
from etw_lightning.catalogue.own import own_entry
from etw_lightning.files.class_paths import is_class_path
from etw_lightning.metrics import Metric, probabilities, rouge_values
from etw_lightning.metrics.repeated import row_interval
from etw_lightning.schema import InputError
from etw_lightning.training.datamodule import UnlearningDataModule

__all__ = ["HeardSuite"]


class HeardSuite:
    """The metrics that can be computed of an attack's own questions, before it and under it.

    Metrics of other rows, or of answers that no attack scores (wrong ones), are left out.

    Args:
        names: Metrics that are wanted.
        data: The run's data module, which knows the benchmark and its conventions.
        sets: Sets of which the attack has records.
        parts: What these hold.
        is_asked: Somebody has named the metrics: one that can't be computed is refused. Else it is
            noted in ``left_out``.
    """

    def __init__(
        self,
        names: Sequence[str],
        data: UnlearningDataModule,
        sets: Collection[str],
        parts: Collection[Part],
        *,
        is_asked: bool = False,
    ) -> None:
        self.names, self.data, self.sets, self.parts = names, data, sets, parts
        self.is_asked = is_asked
        #: Metrics that these rows do not allow, each with the reason.
        self.left_out: dict[str, str] = {}
        self.entries = dict(self._fitting())

    def _fitting(self) -> Iterator[tuple[str, tuple[Entry, tuple[str, ...]]]]:
        """Give each metric that can be had, with its entry and the sets it reads."""
        for name in self.names:
            entry = own_entry(name) if is_class_path(name) else CATALOGUE.get(name)
            if entry is None or entry.needs or entry.is_rated or not entry.parts <= set(self.parts):
                continue
            wanted = entry.sets.get(self.data.family, ())
            there = tuple(self.sets if wanted == ("*",) else (s for s in wanted if s in self.sets))
            # Numbers that are named after their sets are of one set each.
            is_by_set = entry.is_by_set or set(wanted) <= set(entry.emits)
            if there and (is_by_set or len(there) == len(wanted)):
                yield name, (entry, there)

    def require(self, attack: str) -> None:
        """Refuse metrics that were named and can't be computed of what is asked.

        Args:
            attack: Name of its class, as the error says it.

        Raises:
            InputError: Names the first, and those that can be had.
        """
        for name in self.names:
            if name not in self.entries:
                able = [*HeardSuite(list(CATALOGUE), self.data, self.sets, self.parts).entries]
                raise InputError(
                    f"attack: --metrics {name} can't be computed under {attack}, which asks rows "
                    f"of {', '.join(self.sets)} alone; it can compute {', '.join(able)}."
                )

    def of(self, records: Sets) -> dict[str, Metric]:
        """Return the numbers of some records, by name.

        Args:
            records: By set.
        """
        data = self.data
        given = Given(records, conventions=data.conventions, words=data.rouge_tokenizer)
        found: dict[str, Metric] = {}
        for name, (entry, sets) in self.entries.items():
            try:
                found |= entry.compute(given, sets)
            except InputError as error:
                if self.is_asked:
                    raise
                self.left_out[name] = str(error)
        return self._with_intervals(found, records)

    def _with_intervals(self, found: Mapping[str, Metric], records: Sets) -> dict[str, Metric]:
        """Return numbers, the two that are read first with their bootstrap interval over rows."""
        wide = dict(found)
        for name, rows in records.items():
            for number in (f"{name}_probability", f"{name}_rougeL_recall"):
                if number in wide:
                    values = (
                        probabilities(rows)
                        if number.endswith("probability")
                        else rouge_values(rows, "rougeL_recall", words=self.data.rouge_tokenizer)
                    )
                    wide[number] = replace(wide[number], interval=row_interval(values))
        return wide
