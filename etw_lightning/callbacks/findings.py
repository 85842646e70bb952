"""What a guard found wrong with a training run, and the end of a run that can't go on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["Finding", "TrainingStoppedError"]


@dataclass(frozen=True)
class Finding:
    """Why a run was stopped or warned of.

    Args:
        kind: ``loss``, ``gradient`` or ``weights`` that are not finite; ``scores`` of an
            evaluation that are not; ``disk`` that is full; ``retain_loss``, ``utility`` or
            ``repetition`` of a collapse.
        reason: One line for people.
        step: Optimiser step, counted from 1, in or after which it was found.
        epoch: Epoch of that step, counted from 1.
        rows: Ids of the rows concerned, those that are surely at fault first.

    Example:
        >>> Finding("loss", "the retain loss is nan", step=3, epoch=1).to_json()
        {'kind': 'loss', 'reason': 'the retain loss is nan', 'step': 3, 'epoch': 1}
    """

    kind: str
    reason: str
    step: int
    epoch: int
    rows: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return plain values, as ``results.json`` and checkpoints hold them; no empty rows."""
        where = {"kind": self.kind, "reason": self.reason, "step": self.step, "epoch": self.epoch}
        return {**where, "rows": list(self.rows)} if self.rows else where

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Finding:
        """Rebuild a finding from ``to_json``'s form.

        Example:
            >>> found = Finding("loss", "nan", 3, 1, ("forget/0",))
            >>> Finding.from_json(found.to_json()) == found
            True
        """
        return cls(**{**found, "rows": tuple(found.get("rows", ()))})


class TrainingStoppedError(RuntimeError):
    """Training can't go on; nothing that was saved before is touched.

    It is not the input's fault alone, so the command line exits with status 1.

    Args:
        finding: Why; its reason is the message.
    """

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding)
        self.finding = finding

    def __str__(self) -> str:
        return self.finding.reason
