"""The best evaluation of a run: the best value of one number, while another keeps to its floor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from etw_lightning.catalogue.suite import explain
from etw_lightning.metrics import Metric
from etw_lightning.schema import InputError

__all__ = ["BestEvaluation"]


@dataclass
class BestEvaluation:
    """Tells whether an evaluation is the best so far.

    Args:
        metric: Number that decides, in its own direction; None for no best.
        utility: Number that must not have fallen too far.
        floor: Share of its value before training that ``utility`` must have; None for no floor.

    Example:
        >>> best = BestEvaluation("forget_quality", "model_utility", 0.5)
        >>> best.begin({"model_utility": Metric(0.6, "up", 9)})
        >>> good, useless = Metric(0.4, "up", 40), Metric(0.1, "up", 9)
        >>> best.improves({"forget_quality": good, "model_utility": useless})
        False
        >>> best.improves({"forget_quality": good, "model_utility": Metric(0.5, "up", 9)})
        True
        >>> best.improves({"forget_quality": good, "model_utility": Metric(0.6, "up", 9)})
        False
    """

    metric: str | None
    utility: str
    floor: float | None
    #: Optimiser steps before it; None as long as there is none.
    step: int | None = None
    value: float | None = None
    start_utility: float | None = None

    def begin(self, found: Mapping[str, Metric]) -> None:
        """Take the numbers of the model before training."""
        if self.utility in found:
            self.start_utility = found[self.utility].value

    def improves(self, found: Mapping[str, Metric]) -> bool:
        """Take an evaluation's numbers; tell whether it is better than all before it."""
        if self.metric is None or self.metric not in found or not self._is_useful(found):
            return False
        given = found[self.metric]
        signed = {"up": given.value, "down": -given.value}
        value = signed.get(given.direction, -abs(given.value))
        if self.value is not None and value <= self.value:
            return False
        self.value = value
        return True

    def _is_useful(self, found: Mapping[str, Metric]) -> bool:
        if self.floor is None:
            return True
        if self.utility not in found or self.start_utility is None:
            return False
        return found[self.utility].value >= self.floor * self.start_utility

    def check(self) -> None:
        """Refuse numbers that no metric gives.

        Raises:
            InputError: Names the key.
        """
        for key, name in (("best", self.metric), ("utility", self.utility)):
            if name is None:
                continue
            try:
                explain(name)
            except InputError as error:
                raise InputError(
                    f"checkpoints.{key} must be a number of a metric, as 'explain' lists them; got "
                    f"{name!r}."
                ) from error

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run goes on with; plain numbers."""
        return {"step": self.step, "value": self.value, "start_utility": self.start_utility}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state_dict``."""
        self.step, self.value = state["step"], state["value"]
        self.start_utility = state["start_utility"]
