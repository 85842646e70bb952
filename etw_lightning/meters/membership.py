"""Membership inference: forget rows told from holdout rows, alone and against the retain model."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, get_args

from etw_lightning.meters.columns import Meter, Rows, as_records, row_values
from etw_lightning.metrics.aggregate import abs_privleak
from etw_lightning.metrics.attacks import Attack, attack_scores
from etw_lightning.metrics.membership import (
    auc_of_scores,
    privleak_from_auc,
    relative_difference,
    retain_deviation,
)
from etw_lightning.metrics.values import Floats, Metric
from etw_lightning.schema import Conventions, InputError, Record
from etw_lightning.value_checks import check_name

__all__ = ["MembershipAUC", "MinK", "PrivLeak", "RelativeDifference", "RetainDeviation"]

_DEFINITIONS = Conventions()
_SIDES = ("forget", "holdout")


class MembershipAUC(Meter):
    """AUC of a membership-inference attack that tells forget from holdout rows.

    The interval of ``metrics.attack_auc`` is not part of it.

    Range: 0 to 1.
    Direction: as near as possible to the retain model's.
    Empty input: InputError from ``compute``, also where one side has no rows.
    Source: MUSE, arXiv:2407.06460; arXiv:2402.07841; see ``metrics.attack_auc`` and
        ``metrics.attack_scores``.

    A tensor holds the attack's score of each row, lower the surer it was trained on.

    Args:
        attack: One of ``metrics.ATTACKS``.
        k: Share of the tokens for min-k and min-k++.
        conventions: ``last_label`` matters here.
        options: Of ``torchmetrics.Metric``.

    Example:
        >>> import torch
        >>> meter = MembershipAUC("loss")
        >>> known, new = torch.tensor([1.0, 2.0]), torch.tensor([2.0, 3.0])
        >>> meter.update({"answer_loss": known}, {"answer_loss": new})
        >>> meter.compute()
        tensor(0.8750, dtype=torch.float64)
    """

    def __init__(
        self,
        attack: Attack,
        k: float = 0.4,
        conventions: Conventions = _DEFINITIONS,
        **options: Any,
    ) -> None:
        check_name(f"{type(self).__name__}.attack", attack, get_args(Attack))
        super().__init__(_SIDES, (attack, k, conventions), **options)
        self.attack = attack
        self.k = k
        self.conventions = conventions

    def update(
        self,
        forget: Rows,
        holdout: Rows,
        forget_reference: Sequence[Record] | None = None,
        holdout_reference: Sequence[Record] | None = None,
    ) -> None:
        """Take further rows of both sets; either may be empty.

        Args:
            forget: Forget rows scored by the model.
            holdout: Rows of the same kind that it never saw.
            forget_reference: The forget rows scored by the other model, for ``reference``.
            holdout_reference: The holdout rows scored by it.

        Raises:
            InputError: If a row lacks what the attack reads.
        """
        others = (forget_reference, holdout_reference)
        pairs = zip(_SIDES, (forget, holdout), others, strict=True)
        self.add(**{side: self._scores(rows, other) for side, rows, other in pairs})

    def number(self) -> float:
        """Return the AUC."""
        return auc_of_scores(self.held("forget"), self.held("holdout"))

    def _scores(self, rows: Rows, reference: Sequence[Record] | None = None) -> Floats:
        read = partial(
            attack_scores,
            attack=self.attack,
            k=self.k,
            reference=None if reference is None else as_records(reference),
            conventions=self.conventions,
        )
        return row_values(rows, read, f"attack {self.attack!r}")


class MinK(MembershipAUC):
    """AUC of Min-K: how often a forget row scores below a holdout row.

    Range: 0 to 1: 1 where the forget set is recognised.
    Direction: as near as possible to the retain model's.
    Empty input: InputError from ``compute``, also where one side has no rows.
    Source: Shi et al. 2023, arXiv:2310.16789; MUSE, arXiv:2407.06460; see ``metrics.min_k_auc``.

    Args:
        k: Share of the tokens; MUSE's is 0.4.
        conventions: ``last_label`` matters here.
        options: Of ``torchmetrics.Metric``.

    Example:
        >>> meter = MinK()
        >>> known, new = [(-1.0, -1.0, -1.0, -5.0)], [(-2.0, -2.0, -2.0, -2.0)]
        >>> meter.update({"token_logps": known}, {"token_logps": new})
        >>> meter.compute()
        tensor(0., dtype=torch.float64)
    """

    def __init__(
        self, k: float = 0.4, conventions: Conventions = _DEFINITIONS, **options: Any
    ) -> None:
        super().__init__("min_k", k, conventions, **options)


class _AgainstRetain(MembershipAUC):
    """An AUC relative to the retain model's, which is given or gathered with the rows."""

    def __init__(
        self,
        attack: Attack,
        retain_auc: float | None,
        conventions: Conventions,
        *settings: Any,
        **options: Any,
    ) -> None:
        check_name(f"{type(self).__name__}.attack", attack, get_args(Attack)[:-2])
        Meter.__init__(
            self,
            (*_SIDES, *(f"retain_{side}" for side in _SIDES)),
            (attack, retain_auc, conventions, *settings),
            **options,
        )
        self.attack = attack
        self.k = 0.4
        self.retain_auc = retain_auc
        self.conventions = conventions

    def update(
        self,
        forget: Rows,
        holdout: Rows,
        retain_forget: Rows | None = None,
        retain_holdout: Rows | None = None,
    ) -> None:
        """Take further rows of both sets; either may be empty.

        Args:
            forget: Forget rows scored by the model, or a tensor of their scores.
            holdout: Rows of the same kind that it never saw.
            retain_forget: Forget rows scored by the retain model, where ``retain_auc`` is not
                given.
            retain_holdout: Holdout rows scored by it.

        Raises:
            InputError: If a row lacks what the attack reads, or the retain model's rows are given
                beside ``retain_auc``, or neither.
        """
        others = {"retain_forget": retain_forget, "retain_holdout": retain_holdout}
        given = {name: rows for name, rows in others.items() if rows is not None}
        if len(given) != (2 if self.retain_auc is None else 0):
            raise InputError(
                f"{type(self).__name__}: needs either retain_auc or the retain model's rows "
                f"(retain_forget and retain_holdout); got retain_auc {self.retain_auc} and "
                f"{' and '.join(given) or 'no rows'}."
            )
        given = {"forget": forget, "holdout": holdout, **given}
        self.add(**{name: self._scores(rows) for name, rows in given.items()})

    def aucs(self) -> tuple[Metric, float]:
        """Return the model's AUC and the retain model's."""
        own, retain = ([self.held(f"{role}{side}") for side in _SIDES] for role in ("", "retain_"))
        auc = Metric(auc_of_scores(*own), "retain", sum(map(len, own)))
        known = self.retain_auc
        return auc, auc_of_scores(*retain) if known is None else known


class PrivLeak(_AgainstRetain):
    """PrivLeak: distance of the Min-K AUC to the retain model's, percent.

    Range: >= -100.
    Direction: nearest to 0; of the absolute value down.
    Empty input: InputError from ``compute``.
    Source: MUSE, arXiv:2407.06460, PrivLeak; see ``metrics.privleak`` and ``abs_privleak``.

    Args:
        retain_auc: ``metrics.min_k_auc`` of the retain model; None gathers its rows too.
        absolute: Leave out the sign.
        attack: ``min_k``, as published; DUSK takes ``min_k_plus_plus``.
        conventions: ``last_label`` matters here.
        options: Of ``torchmetrics.Metric``.

    Example:
        >>> import torch
        >>> meter = PrivLeak(retain_auc=0.5)
        >>> meter.update({"min_k": torch.tensor([1.0])}, {"min_k": torch.tensor([2.0])})
        >>> meter.compute()
        tensor(-100.0000, dtype=torch.float64)
    """

    def __init__(
        self,
        retain_auc: float | None = None,
        absolute: bool = False,
        conventions: Conventions = _DEFINITIONS,
        attack: Attack = "min_k",
        **options: Any,
    ) -> None:
        super().__init__(attack, retain_auc, conventions, absolute, **options)
        self.absolute = absolute

    def number(self) -> float:
        """Return the distance."""
        leak = privleak_from_auc(*self.aucs())
        return abs_privleak(leak).value if self.absolute else leak.value


class RelativeDifference(_AgainstRetain):
    """Relative difference of an attack's AUC to the retain model's, percent.

    Range: >= -100.
    Direction: nearest to 0.
    Empty input: InputError from ``compute``.
    Source: open-unlearning, ``rel_diff``; see ``metrics.relative_difference``.

    Args:
        attack: ``loss``, ``zlib``, ``min_k`` or ``min_k_plus_plus``.
        retain_auc: The retain model's AUC under the attack; None gathers its rows too.
        conventions: ``last_label`` matters here.
        options: Of ``torchmetrics.Metric``.

    Example:
        >>> import torch
        >>> meter = RelativeDifference("loss", retain_auc=0.4)
        >>> meter.update(torch.tensor([1.0]), torch.tensor([2.0]))
        >>> meter.compute()
        tensor(150.0000, dtype=torch.float64)
    """

    def __init__(
        self,
        attack: Attack,
        retain_auc: float | None = None,
        conventions: Conventions = _DEFINITIONS,
        **options: Any,
    ) -> None:
        super().__init__(attack, retain_auc, conventions, **options)

    def number(self) -> float:
        """Return the difference."""
        return relative_difference(*self.aucs()).value


class RetainDeviation(_AgainstRetain):
    """How far texts that stay are told from unseen ones, beside the retain model, percent.

    ``update`` takes texts that stay in the place of forget rows.

    Range: >= 0.
    Direction: down.
    Empty input: InputError from ``compute``.
    Source: DUSK, arXiv:2505.15209; see ``metrics.retain_deviation``.

    Args:
        attack: ``min_k_plus_plus``, as published, or ``loss``, ``zlib``, ``min_k``.
        retain_auc: The retain model's AUC under the attack; None gathers its rows too.
        conventions: ``last_label`` matters here.
        options: Of ``torchmetrics.Metric``.

    Example:
        >>> import torch
        >>> meter = RetainDeviation("loss", retain_auc=0.8)
        >>> meter.update(torch.tensor([1.0]), torch.tensor([2.0]))
        >>> round(meter.compute().item(), 6)
        25.0
    """

    higher_is_better = False

    def __init__(
        self,
        attack: Attack = "min_k_plus_plus",
        retain_auc: float | None = None,
        conventions: Conventions = _DEFINITIONS,
        **options: Any,
    ) -> None:
        super().__init__(attack, retain_auc, conventions, **options)

    def number(self) -> float:
        """Return the deviation."""
        return retain_deviation(*self.aucs()).value
