"""Numbers made of other numbers: the paper's table and the scores of the 2025 meta-evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

from torch import Tensor

from etw_lightning.catalogue.entries import Given
from etw_lightning.catalogue.listing import CATALOGUE
from etw_lightning.meters.columns import Meter, RecordMeter, row_values
from etw_lightning.meters.tofu import UtilityRows, UtilityTable
from etw_lightning.metrics.aggregate import utility_drop, utility_score
from etw_lightning.metrics.fluency import checked_probabilities
from etw_lightning.metrics.values import Metric, mean_of
from etw_lightning.metrics.words import WordRule
from etw_lightning.schema import Conventions, InputError, Record
from etw_lightning.value_checks import check_name

__all__ = [
    "MemorisationScore",
    "PaperAggregate",
    "PrivacyScore",
    "UnlearningScore",
    "UtilityDrop",
    "UtilityScore",
]

Start = Literal["target", "retain"]
_DEFINITIONS = Conventions()


class UtilityDrop(Meter):
    """dMU: how much model utility is lost, points.

    Range: -100 to 100.
    Direction: down.
    Empty input: InputError from ``compute``, also where a set of either model has no rows.
    Source: arXiv:2604.17785; see ``metrics.utility_drop``.

    Args:
        words: ``published`` or ``unicode``; see ``metrics.rouge_scores``.
        options: Of ``torchmetrics.Metric``.

    Example:
        >>> import torch
        >>> parts = [f"{name}_{part}" for name in ("retain", "real_authors", "world_facts")
        ...     for part in ("probability", "rouge", "truth_ratio")]
        >>> meter = UtilityDrop()
        >>> meter.update(*({part: torch.tensor([value]) for part in parts} for value in (0.5, 0.5)))
        >>> meter.compute()
        tensor(0., dtype=torch.float64)
    """

    higher_is_better = False

    def __init__(self, words: WordRule = "published", **options: Any) -> None:
        tables = {role: UtilityTable("retain", f"{role}_", words) for role in ("run", "start")}
        columns = [name for one in tables.values() for name in one.columns]
        super().__init__(columns, (words,), **options)
        self.tables = tables

    def update(self, kept: UtilityRows, start_kept: UtilityRows) -> None:
        """Take further rows of the three sets; see ``ModelUtility.update``.

        Args:
            kept: Rows scored by the run.
            start_kept: Rows scored by the target or the retain model.

        Raises:
            InputError: If a record is of another set, or a row lacks what is read.
        """
        self.add(**self.tables["run"].read(kept), **self.tables["start"].read(start_kept))

    def number(self) -> float:
        """Return the lost points."""
        return utility_drop(*(_utility(table, self) for table in self.tables.values())).value


class UtilityScore(Meter):
    """Util of the meta-evaluation: utility and fluency kept of the target model's.

    Range: 0 to 1; 1 for the target model.
    Direction: up.
    Empty input: InputError from ``compute``.
    Source: arXiv:2506.12618, appendix F.1; see ``metrics.utility_score``.

    Args:
        words: ``published`` or ``unicode``; see ``metrics.rouge_scores``.
        options: Of ``torchmetrics.Metric``.
    """

    higher_is_better = True

    def __init__(self, words: WordRule = "published", **options: Any) -> None:
        tables = {role: UtilityTable("retain", f"{role}_", words) for role in ("run", "target")}
        columns = [name for one in tables.values() for name in one.columns]
        super().__init__([*columns, "clean", "target_clean"], (words,), **options)
        self.tables = tables

    def update(
        self, kept: UtilityRows, target_kept: UtilityRows, clean: Tensor, target_clean: Tensor
    ) -> None:
        """Take further rows.

        Args:
            kept: Rows of the three sets scored by the run; see ``ModelUtility.update``.
            target_kept: The same of the target model.
            clean: Probability of the run's forget generations being clean text, ``(B,)``.
            target_clean: The same of the target model's.

        Raises:
            InputError: If a record is of another set, a row lacks what is read, or a probability
                is none.
        """
        fluency = {"clean": clean, "target_clean": target_clean}
        columns = {name: _clean(values) for name, values in fluency.items()}
        rows = {"run": kept, "target": target_kept}
        for role, table in self.tables.items():
            columns |= table.read(rows[role])
        self.add(**columns)

    def number(self) -> float:
        """Return the score."""
        run, target = (_utility(table, self) for table in self.tables.values())
        clean, target_clean = (
            Metric(mean_of(found), "up", len(found))
            for found in (self.held("clean"), self.held("target_clean"))
        )
        return utility_score(run, clean, target, target_clean).value


class _OfCatalogue(RecordMeter):
    """A number of the catalogue, computed as ``evaluate`` computes it from the same records."""

    #: The metric of the catalogue, and which number of it; its own name where that is empty.
    entry: str
    number_name: str = ""
    #: Models whose records are kept beside the run's, and columns of numbers.
    roles: tuple[str, ...]
    columns: tuple[str, ...] = ()

    def __init__(
        self,
        conventions: Conventions = _DEFINITIONS,
        words: WordRule = "published",
        **options: Any,
    ) -> None:
        check_name(f"{type(self).__name__}.words", words, get_args(WordRule))
        settings = (self.entry, conventions, words)
        super().__init__(("run", *self.roles), settings, columns=self.columns, **options)
        self.conventions = conventions
        self.words = words

    def number(self) -> float:
        """Return the number."""
        sets = {role: _Sets(role, self.records(role)) for role in self.byte_columns}
        names = CATALOGUE[self.entry].sets["tofu"]
        given = Given(
            sets["run"],
            retain=sets.get("retain"),
            target=sets.get("target"),
            conventions=self.conventions,
            clean=self.clean(names[0]),
            words=self.words,
        )
        return CATALOGUE[self.entry].compute(given, names)[self.number_name or self.entry].value

    def clean(self, name: str) -> Mapping[str, Mapping[str, list[float]]]:
        """Return how clean the generations of a set are, by model, where the number reads that."""
        return {}


class PaperAggregate(_OfCatalogue):
    """Agg of the paper: forget quality and lost utility as one number.

    Range: any number.
    Direction: down; never select on it alone, see ``metrics.paper_aggregate``.
    Empty input: InputError from ``compute``.
    Source: arXiv:2604.17785, its main table.

    Args:
        start: Model whose utility the loss is measured from: ``target`` or ``retain``.
        words: ``published`` or ``unicode``; see ``metrics.rouge_scores``.
        options: Of ``torchmetrics.Metric``.
    """

    def __init__(
        self, start: Start = "target", words: WordRule = "published", **options: Any
    ) -> None:
        check_name("PaperAggregate.start", start, get_args(Start))
        self.entry, self.number_name = f"utility_drop_{start}", f"paper_aggregate_{start}"
        self.roles = ("retain", "target") if start == "target" else ("retain",)
        super().__init__(words=words, **options)

    def update(
        self,
        rows: Sequence[Record],
        retain_rows: Sequence[Record],
        target_rows: Sequence[Record] = (),
    ) -> None:
        """Take further rows of ``forget`` and of model utility's three sets.

        Args:
            rows: Scored by the run.
            retain_rows: The forget rows scored by the retain model, and the three sets where it is
                the start.
            target_rows: The three sets scored by the target model where it is the start.
        """
        given = {"run": rows, "retain": retain_rows, "target": target_rows}
        self.add(**{role: self.lines(given[role]) for role in self.byte_columns})


class MemorisationScore(_OfCatalogue):
    """Mem of the meta-evaluation: how much less is memorised than by the target model.

    Range: 0 to 1; 0 for the target model.
    Direction: up.
    Empty input: InputError from ``compute``.
    Source: arXiv:2506.12618, appendix F.1; see ``metrics.memorisation_score``.

    Args:
        conventions: ``floor`` and ``last_label`` matter here.
        options: Of ``torchmetrics.Metric``.
    """

    higher_is_better = True
    entry = "memorisation_score"
    roles = ("target",)

    def update(self, rows: Sequence[Record], target_rows: Sequence[Record]) -> None:
        """Take further rows of ``forget_paraphrased``.

        Args:
            rows: Scored by the run.
            target_rows: Scored by the target model.
        """
        self.add(run=self.lines(rows), target=self.lines(target_rows))


class PrivacyScore(_OfCatalogue):
    """Priv of the meta-evaluation: how near four attacks' AUCs are to the retain model's.

    Range: 0 to 1; 1 for the retain model.
    Direction: up.
    Empty input: InputError from ``compute``.
    Source: arXiv:2506.12618, appendix F.1; see ``metrics.privacy_score``.

    Args:
        conventions: ``last_label`` matters here.
        options: Of ``torchmetrics.Metric``.
    """

    higher_is_better = True
    entry = "privacy_score"
    roles = ("retain",)

    def update(self, rows: Sequence[Record], retain_rows: Sequence[Record]) -> None:
        """Take further rows of ``forget`` and ``holdout``, two of each at least in the end.

        Args:
            rows: Scored by the run.
            retain_rows: Scored by the retain model.
        """
        self.add(run=self.lines(rows), retain=self.lines(retain_rows))


class UnlearningScore(_OfCatalogue):
    """Agg of the meta-evaluation: memorisation, privacy and utility as one number.

    Range: 0 to 1; 0 for the target model.
    Direction: up.
    Empty input: InputError from ``compute``.
    Source: arXiv:2506.12618, section 5; see ``metrics.unlearning_score``.

    Args:
        conventions: ``floor`` and ``last_label`` matter here.
        words: ``published`` or ``unicode``; see ``metrics.rouge_scores``.
        options: Of ``torchmetrics.Metric``.
    """

    higher_is_better = True
    entry = "unlearning_score"
    roles = ("retain", "target")
    columns = ("clean", "target_clean")

    def update(
        self,
        rows: Sequence[Record],
        retain_rows: Sequence[Record],
        target_rows: Sequence[Record],
        clean: Tensor,
        target_clean: Tensor,
    ) -> None:
        """Take further rows of ``forget``, ``forget_paraphrased``, ``holdout`` and utility's sets.

        Args:
            rows: Scored by the run.
            retain_rows: ``forget`` and ``holdout`` scored by the retain model.
            target_rows: ``forget_paraphrased`` and utility's sets scored by the target model.
            clean: Probability of the run's forget generations being clean text, ``(B,)``.
            target_clean: The same of the target model's.

        Raises:
            InputError: If a probability is none.
        """
        self.add(
            run=self.lines(rows),
            retain=self.lines(retain_rows),
            target=self.lines(target_rows),
            clean=_clean(clean),
            target_clean=_clean(target_clean),
        )

    def clean(self, name: str) -> Mapping[str, Mapping[str, list[float]]]:
        """Return how clean the generations are, of the run and of the target model."""
        columns = {"run": "clean", "target": "target_clean"}
        return {role: {name: self.held(one).tolist()} for role, one in columns.items()}


class _Sets(dict[str, list[Record]]):
    """Records by set; a set that is not there is the user's to give."""

    def __init__(self, role: str, records: Iterable[Record]) -> None:
        super().__init__()
        self.role = role
        for record in records:
            self.setdefault(record.dataset, []).append(record)

    def __missing__(self, name: str) -> list[Record]:
        raise InputError(
            f"metrics: no rows of the set {name!r} of the {self.role} model were given; update "
            "the metric with them."
        )


def _utility(table: UtilityTable, meter: Meter) -> Metric:
    result = table.result(meter)
    return Metric(result.value, "up", result.n)


def _clean(values: Tensor) -> Any:
    return checked_probabilities(row_values(values, list, "clean"))
