"""Notices that a model collapses: what it should keep is lost, or it only repeats itself."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast, get_args

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from etw_lightning.callbacks.collapse_settings import Action, CollapseSettings
from etw_lightning.callbacks.evaluation import EvaluationCallback
from etw_lightning.callbacks.findings import Finding
from etw_lightning.metrics import repetition
from etw_lightning.schema import InputError, Record
from etw_lightning.training.module import UnlearningModule

__all__ = ["Collapse"]

_DEFAULT = CollapseSettings()
#: Nats that a smaller start counts as: of a model that knows its rows by heart, a loss that is
#: still small is many times nothing.
_LEAST_START = 0.5
#: Numbers that tell what a model is still good for, the best first, to a value below which there
#: is nothing to lose.
_PROBES: Mapping[str, float] = {
    "model_utility": 0.05,
    "knowmem_retain": 5.0,
    "retain_probability": 0.05,
}


class Collapse(Callback):
    """Stop a run, or warn of it, once the model has lost what it was to keep.

    Three signs, each read from what the run computes anyway; the first time that one is seen, the
    reason goes into ``results.json``, under ``stopped`` or ``warnings``:

    * the retain loss, averaged over the last ``window`` steps, is above ``retain_factor`` times its
      start. The start is the loss of the first step, which no update has touched, or the mean over
      the first ``window`` steps if that is lower; below 0.5 nats it counts as 0.5. Not judged
      without a retain term, or where that compares hidden states;
    * in an evaluation, model utility is below ``utility_floor`` of what it was before training;
      MUSE has ``knowmem_retain`` and other files ``retain_probability`` in its place;
    * the share of repeated 4-grams in generations on a set that is to be kept has risen by more
      than ``repetition`` since before training. What is generated on forget sets is not judged: it
      may well be noise after unlearning. Texts of scripts without spaces are cut into Unicode's
      words, whatever ``data.rouge_tokenizer`` says.

    The second and third need the evaluation before training (``trainer.num_sanity_val_steps`` -1).

    Args:
        action: ``warn`` says so and trains on, so that no number depends on these settings;
            ``stop`` ends the run in good order after the step or the evaluation: evaluated, saved.
        retain_factor: Most that the retain loss may be, as a multiple of its start, > 1; null does
            not look.
        utility_floor: Least share of the utility before training, above 0 and below 1; null does
            not look.
        repetition: Most that the share of repeated 4-grams may rise by, above 0 and below 1; null
            does not look.
        window: Optimiser steps that the retain loss is averaged over, >= 1.

    Raises:
        InputError: If a number is out of its range.

    Example:
        >>> guard = Collapse(retain_factor=3.0, window=2)
        >>> [guard.judge_loss(loss) for loss in (1.0, 2.0, 3.0)]
        [None, None, None]
        >>> guard.judge_loss(4.0)
        'the retain loss, 3.5 over the last 2 steps, is above 3 times its start (1)'
    """

    def __init__(
        self,
        action: Action = _DEFAULT.action,
        retain_factor: float | None = _DEFAULT.retain_factor,
        utility_floor: float | None = _DEFAULT.utility_floor,
        repetition: float | None = _DEFAULT.repetition,
        window: int = _DEFAULT.window,
    ) -> None:
        if action not in get_args(Action):
            raise InputError(f"collapse.action must be stop or warn; got {action!r}.")
        if retain_factor is not None and not 1 < retain_factor < math.inf:
            raise InputError(f"collapse.retain_factor must be > 1 or null; got {retain_factor}.")
        for name, value in (("utility_floor", utility_floor), ("repetition", repetition)):
            if value is not None and not 0 < value < 1:
                raise InputError(
                    f"collapse.{name} must be above 0 and below 1, or null; got {value}."
                )
        if window < 1:
            raise InputError(f"collapse.window must be a whole number >= 1; got {window}.")
        self.action, self.window = action, window
        self.retain_factor, self.utility_floor = retain_factor, utility_floor
        self.repetition = repetition
        self.findings: list[Finding] = []
        self.start_loss: float | None = None
        self.num_losses = 0
        self.recent: list[float] = []
        #: Before training: the probes, and the repetition of each kept set.
        self.start_probes: dict[str, float] = {}
        self.start_repetition: dict[str, float] = {}
        self._num_steps = 0
        #: Step, epoch and retain loss, on the device, of steps that are not judged yet.
        self._unread: list[tuple[int, int, Tensor]] = []

    # What is judged.

    def judge_loss(self, loss: float) -> str | None:
        """Take the retain loss of one more step; return what is wrong, if anything is.

        Args:
            loss: Mean over the effective batch.
        """
        self.recent = [*self.recent, loss][-self.window :]
        self.num_losses += 1
        mean = math.fsum(self.recent) / len(self.recent)
        if self.start_loss is None:
            self.start_loss = loss
        if self.num_losses < self.window:
            # The mean of fewer steps jumps.
            return None
        if self.num_losses == self.window:
            self.start_loss = min(self.start_loss, mean)
        assert self.retain_factor is not None
        start = max(self.start_loss, _LEAST_START)
        if mean <= self.retain_factor * start:
            return None
        counted = f", counted as {_LEAST_START}" * (start > self.start_loss)
        return (
            f"the retain loss, {mean:.3g} over the last {self.window} steps, is above "
            f"{self.retain_factor:g} times its start ({self.start_loss:.3g}{counted})"
        )

    def judge_utility(self, values: Mapping[str, float]) -> str | None:
        """Compare a probe with its value before training.

        Args:
            values: Numbers of an evaluation, by name.
        """
        name = next((name for name in _PROBES if name in self.start_probes), None)
        if name is None or name not in values or self.start_probes[name] < _PROBES[name]:
            return None
        assert self.utility_floor is not None
        start, now = self.start_probes[name], values[name]
        if now >= self.utility_floor * start:
            return None
        return (
            f"{name} is {now:.3g}, below {self.utility_floor:g} of what it was before training "
            f"({start:.3g})"
        )

    def judge_repetition(self, shares: Mapping[str, float]) -> str | None:
        """Compare how much is repeated with what was before training.

        Args:
            shares: Share of repeated 4-grams of each kept set.
        """
        starts = self.start_repetition
        rises = {name: shares[name] - starts[name] for name in shares if name in starts}
        worst = max(rises, key=rises.__getitem__, default=None)
        if worst is None:
            return None
        assert self.repetition is not None
        if rises[worst] <= self.repetition:
            return None
        return (
            f"generations on {worst!r} repeat {shares[worst]:.3g} of their 4-grams, more than "
            f"{self.repetition:g} above what it was before training ({starts[worst]:.3g})"
        )

    # In a run.

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End a resumed run that had been told to stop."""
        self._num_steps = trainer.global_step
        if self.findings and self.action == "stop":
            trainer.should_stop = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *_: Any, **__: Any
    ) -> None:
        """Judge the retain loss of the step that has been made.

        Where nothing is stopped, not at once: the device is waited for only every
        ``trainer.log_every_n_steps`` steps.
        """
        if trainer.global_step == self._num_steps:
            return
        self._num_steps = trainer.global_step
        retain = cast(UnlearningModule, pl_module).method.retain
        loss = trainer.callback_metrics.get("loss/retain")
        if self.retain_factor is None or retain is None or retain.layers or loss is None:
            return
        # Summed over the processes already.
        interval = cast(Any, trainer).log_every_n_steps
        self._unread.append((trainer.global_step, _epoch(trainer), loss))
        if self.action == "stop" or (interval and trainer.global_step % interval == 0):
            self._judge_steps()
            trainer.should_stop |= bool(self.findings) and self.action == "stop"

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Judge the steps before it."""
        self._judge_steps()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Judge the last steps."""
        self._judge_steps()

    def _judge_steps(self) -> None:
        unread, self._unread = self._unread, []
        for step, epoch, loss in unread:
            self._note("retain_loss", self.judge_loss(float(loss)), step, epoch)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Judge the evaluation that has just been made."""
        callbacks = cast(list[Any], trainer.callbacks)  # type: ignore[attr-defined]
        found = [c.latest for c in callbacks if isinstance(c, EvaluationCallback)]
        values = {name: metric.value for part in found for name, metric in part.items()}
        shares = {}
        if self.repetition is not None:
            module = cast(UnlearningModule, pl_module)
            shares = _repeated(module.gather_records(), module.datamodule.forget_sets)
        if trainer.sanity_checking:
            self.start_probes = {name: float(values[name]) for name in _PROBES if name in values}
            self.start_repetition = shares
            return
        where = (trainer.global_step, _epoch(trainer))
        if self.utility_floor is not None:
            self._note("utility", self.judge_utility(values), *where)
        if self.repetition is not None:
            self._note("repetition", self.judge_repetition(shares), *where)
        trainer.should_stop |= bool(self.findings) and self.action == "stop"

    def _note(self, kind: str, reason: str | None, step: int, epoch: int) -> None:
        """Keep a sign that is seen for the first time."""
        if reason is None or any(one.kind == kind for one in self.findings):
            return
        self.findings.append(Finding(kind, reason, step, epoch))
        rank_zero_warn(f"collapse at step {step}: {reason}")

    # What stays.

    def entries(self) -> dict[str, Any]:
        """Return what ``results.json`` says: ``stopped``, or ``warnings``; nothing if all is well.

        Example:
            >>> guard = Collapse(action="stop")
            >>> guard.findings = [Finding("utility", "model_utility is 0", step=8, epoch=1)]
            >>> guard.entries()["stopped"]["kind"]
            'utility'
        """
        if not self.findings:
            return {}
        if self.action == "stop":
            first, *others = (one.to_json() for one in self.findings)
            return {"stopped": first, **({"warnings": others} if others else {})}
        return {"warnings": [one.to_json() for one in self.findings]}

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run goes on with; plain values."""
        self._judge_steps()
        return {
            "start_loss": self.start_loss,
            "num_losses": self.num_losses,
            "recent": self.recent,
            "start_probes": self.start_probes,
            "start_repetition": self.start_repetition,
            "findings": [one.to_json() for one in self.findings],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from ``state_dict``."""
        self.start_loss, self.num_losses = state_dict["start_loss"], state_dict["num_losses"]
        self.recent = list(state_dict["recent"])
        self.start_probes = dict(state_dict["start_probes"])
        self.start_repetition = dict(state_dict["start_repetition"])
        self.findings = [Finding.from_json(one) for one in state_dict["findings"]]


def _epoch(trainer: Trainer) -> int:
    """Return the epoch that a run is in, counted from 1; after the last it is counted already."""
    return int(trainer.current_epoch) + (trainer.state.fn == "fit")


def _repeated(
    records: Mapping[str, Sequence[Record]], forget_sets: Sequence[str]
) -> dict[str, float]:
    """Return the share of repeated 4-grams of each kept set that has generations."""
    kept = {
        name: rows
        for name, rows in records.items()
        if "forget" not in name and name != "verbmem" and name not in forget_sets
    }
    return {
        name: float(repetition(rows, words="unicode").value)
        for name, rows in kept.items()
        if rows and all(row.generation is not None for row in rows)
    }
