"""TOFU's two numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from torch import Tensor

from etw_lightning.meters.columns import Meter, Rows, row_values
from etw_lightning.metrics.likelihoods import GOLD_IS_RIGHT, truth_ratios
from etw_lightning.metrics.tofu import (
    ModelUtilityResult,
    forget_quality_of,
    model_utility_of,
    utility_values,
)
from etw_lightning.metrics.values import Floats, check_same_rows
from etw_lightning.metrics.words import WordRule
from etw_lightning.schema import InputError, Record
from etw_lightning.value_checks import check_name

__all__ = ["ForgetQuality", "ModelUtility", "UtilityRows", "UtilityTable"]

QualityNumber = Literal["p_value", "neg_log10", "d_times_n", "floor"]
UtilityRows = Sequence[Record] | Mapping[str, Tensor]
RetainSet = Literal["retain", "retain_paraphrased"]
_PARTS = ("probability", "rouge", "truth_ratio")


class ForgetQuality(Meter):
    """Forget quality: can the run's truth ratios be told from the retain model's?

    Range: 2 / C(2n, n) to 1; ``neg_log10``: >= 0; ``d_times_n``: 0 to n.
    Direction: up; ``neg_log10`` and ``d_times_n`` down; ``floor`` none.
    Empty input: InputError from ``compute``.
    Source: TOFU, arXiv:2401.06121; see ``metrics.forget_quality``.

    A tensor holds a truth ratio a row.

    Args:
        gives: ``p_value``, ``neg_log10`` (-log10 of it), ``d_times_n`` (the distance of the two
            distributions in rows) or ``floor`` (the smallest p-value of that many rows).
        options: Of ``torchmetrics.Metric``.

    Example:
        >>> import torch
        >>> meter = ForgetQuality("d_times_n")
        >>> meter.update(torch.tensor([1.0, 2.0]), torch.tensor([1.5, 3.0]))
        >>> meter.compute()
        tensor(1., dtype=torch.float64)
    """

    def __init__(self, gives: QualityNumber = "p_value", **options: Any) -> None:
        check_name("ForgetQuality.gives", gives, get_args(QualityNumber))
        super().__init__(("ratios", "retain_ratios"), (gives,), **options)
        self.gives = gives

    def update(self, forget: Rows, retain_forget: Rows) -> None:
        """Take further rows.

        Args:
            forget: Forget rows scored by the run.
            retain_forget: The same rows scored by the retain model.

        Raises:
            InputError: If the rows differ, or one lacks a loss.
        """
        pair = (forget, retain_forget)
        if all(isinstance(rows, Sequence) and len(rows) for rows in pair):
            check_same_rows(forget, retain_forget)  # type: ignore[arg-type]
        ours, theirs = (row_values(rows, truth_ratios, "truth ratio") for rows in pair)
        if len(ours) != len(theirs):
            raise InputError(
                f"ForgetQuality: {len(ours)} rows of the run and {len(theirs)} of the retain "
                "model; both must score the same rows."
            )
        self.add(ratios=ours, retain_ratios=theirs)

    def number(self) -> float:
        """Return the number that is asked for."""
        quality = forget_quality_of(self.held("ratios"), self.held("retain_ratios"))
        return float(getattr(quality, self.gives))


class UtilityTable:
    """The columns that model utility is computed from, for meters that keep them.

    Args:
        retain_set: ``retain``, or ``retain_paraphrased`` for paraphrased questions.
        before: What the names of the columns begin with.
        words: ``published`` or ``unicode``; see ``metrics.rouge_scores``.
    """

    def __init__(
        self, retain_set: RetainSet, before: str = "", words: WordRule = "published"
    ) -> None:
        check_name("retain_set", retain_set, get_args(RetainSet))
        check_name("words", words, get_args(WordRule))
        self.words = words
        self.sets = (retain_set, *GOLD_IS_RIGHT)
        self.before = before

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the nine parts."""
        return tuple(f"{name}_{part}" for name in self.sets for part in _PARTS)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns."""
        return tuple(f"{self.before}{part}" for part in self.parts)

    def read(self, rows: UtilityRows) -> dict[str, Floats]:
        """Return what to add of further rows.

        Raises:
            InputError: If a record is of another set, a tensor of no part, or a field is missing.
        """
        found: dict[str, Floats] = {}
        if isinstance(rows, Mapping):
            for part, values in rows.items():
                check_name("model utility: a tensor's part", part, self.parts)
                found[part] = row_values(values, list, part)
        else:
            by_set: dict[str, list[Record]] = {}
            for record in rows:
                check_name("model utility: a record's set", record.dataset, self.sets)
                by_set.setdefault(record.dataset, []).append(record)
            for name, records in by_set.items():
                found |= utility_values(records, name, self.words)
        return {f"{self.before}{part}": values for part, values in found.items()}

    def result(self, meter: Meter) -> ModelUtilityResult:
        """Return model utility of the rows that a meter holds."""
        return model_utility_of({part: meter.held(f"{self.before}{part}") for part in self.parts})


class ModelUtility(Meter):
    """Model utility: what the model should still know, as one number of nine parts.

    Range: 0 to 1; 0 where a part is 0.
    Direction: up.
    Empty input: InputError from ``compute``, also where one of the three sets has no rows.
    Source: TOFU, arXiv:2401.06121; see ``metrics.model_utility``.

    Args:
        part: Give one part, such as ``world_facts_rouge``, in place of the whole.
        retain_set: ``retain``, or ``retain_paraphrased`` for paraphrased questions.
        words: ``published`` or ``unicode``; see ``metrics.rouge_scores``.
        options: Of ``torchmetrics.Metric``.

    Example:
        >>> sure = dict(answer_loss=0.0, perturbed_losses=(99.0,), generation="Yes.")
        >>> rows = [Record(name, f"{name}/0", "yes", paraphrase_loss=0.0, **sure)
        ...     for name in ("retain", "real_authors", "world_facts")]
        >>> meter = ModelUtility()
        >>> meter.update(rows)
        >>> meter.compute()
        tensor(1.0000, dtype=torch.float64)
    """

    higher_is_better = True

    def __init__(
        self,
        part: str | None = None,
        retain_set: RetainSet = "retain",
        words: WordRule = "published",
        **options: Any,
    ) -> None:
        table = UtilityTable(retain_set, words=words)
        if part is not None:
            check_name("ModelUtility.part", part, table.parts)
        super().__init__(table.columns, (part, retain_set, words), **options)
        self.part = part
        self.table = table

    def update(self, kept: UtilityRows) -> None:
        """Take further rows of any of the three sets.

        Args:
            kept: Records of ``retain``, ``real_authors`` and ``world_facts``, in any order; or a
                mapping of parts to tensors ``(B,)``: probabilities, ROUGE-L recall, truth ratios.

        Raises:
            InputError: If a record is of another set, or a row lacks what is read.
        """
        self.add(**self.table.read(kept))

    def number(self) -> float:
        """Return the whole, or the part that is asked for."""
        result = self.table.result(self)
        return result.value if self.part is None else result.parts[self.part]
