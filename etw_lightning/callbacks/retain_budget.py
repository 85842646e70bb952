"""A budget for the retain loss in place of lambda: the forget term's weight as a dual variable."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from jsonargparse.typing import NonNegativeFloat, PositiveFloat, PositiveInt
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from etw_lightning.schema import IGNORE_INDEX, EncodedRow, InputError
from etw_lightning.scoring.batches import pad_rows
from etw_lightning.training.module import UnlearningModule

__all__ = ["RetainBudget"]

#: Violation, in percentage points, beyond which a step grows no further: a first step that leaps
#: must not throw the weight away.
_LARGEST = 3.0
#: The dual variable falls this much slower than it rises: what was forgotten too fast takes long to
#: mend.
_SLACK = 0.5
#: Most that a low learning rate multiplies the penalty by.
_MOST_GAIN = 4.0
#: The weight never falls below this share of where it started.
_LEAST = 1e-2


class RetainBudget(Callback):
    """Adjust the weight of the forget term so that the retain loss rises by ``budget``, no more.

    Unlearning as a constrained problem: forget as much as possible, while the mean negative
    log-likelihood L of fixed retain rows stays within ``(1 + budget)`` times its value L_0 before
    training. With the dual variable mu, the Lagrangian's direction is that of
    ``retain + (1 / mu) * forget``; so the weight of the forget term is moved, not the retain
    term's, and every objective and weighting works as it is. The constraint is approached from
    below, on a line over the first ``ramp`` of the run's T steps. Every n steps, at step t,

        rise_k   = 100 * (L_k / L_0 - 1)                                     percent
        target_k = 100 * budget * min(1, t / (ramp * T))                     percent
        x_k      = clip(rise_k + lookahead * slope_k - target_k, -3, 3)      points
        nu_k     = nu_(k-1) + n * update * x_k * (1 if x_k > 0 else 1/2)     log of mu
        q_k      = min(peak_lr / lr_t, 4)
        forget_weight = start_weight * exp(-(nu_k + penalty * q_k * x_k))

    where ``slope_k = (rise_k - rise_(k-1)) / n``, rise_0 = 0 and nu_0 = 0: mirror ascent on mu,
    with a penalty that grows as the learning rate, and with it all that a weight can do, falls. nu
    and the whole exponent are projected on weights from 1/100 to ``max_factor`` times the start.
    While the constraint is slack, the weight grows until it is active, also where further training
    on the retain rows lowers their loss. The upper bound matters: a weight that grew without end
    in such a stretch would then forget faster than the retain term can mend before the learning
    rate is spent. The learning rate must fall towards the end for the rise to come to rest; at a
    constant one its noise may exceed the budget whatever the weight.

    Source: Entesari et al. 2025, arXiv:2506.05314 (PDU: the constraint and a dual step).
    Differs from it: the step is multiplicative, looks ahead, is smaller while slack and has a
    penalty term; the constraint is relative to the start, and ramped; the weight is on the forget
    term; any method's losses.

    Args:
        budget: Share by which the retain loss may rise over its start, > 0; 0.05 is 5 %.
        update: Size of the dual step, > 0: change of the weight's logarithm per optimiser step
            and percentage point of violation.
        penalty: Immediate change of the weight's logarithm per point of violation, >= 0; damps.
        lookahead: Optimiser steps the rise is extrapolated by, >= 0; about the memory of the
            optimiser's first running mean.
        ramp: Share of the run, 0 to 1, over which the constraint rises from 0 to ``budget``; at 0
            it is whole from the first step. A leap past the budget is hard to take back.
        max_factor: Most that the weight may grow by, >= 1, as a factor of where it starts. A run
            whose weight ends at this bound, short of its budget, warns and needs a larger start
            (or a longer run) rather than a larger factor.
        num_rows: Retain rows the loss is measured on, evenly spaced over the stream; null takes
            all. What few rows say may differ from what all do by more than the budget.
        every_n_steps: Optimiser steps between measurements. One measurement is a forward pass
            over ``num_rows`` rows.

    Raises:
        ValueError: If a number is out of its range.

    Example:
        >>> budget = RetainBudget(budget=0.05, update=0.1, penalty=0.0, lookahead=0.0)
        >>> budget.begin(loss=2.0, weight=0.2)
        >>> round(budget.step(loss=2.14, step=1), 4)  # 7 %: two points too much
        0.1637
    """

    def __init__(
        self,
        budget: PositiveFloat,
        update: PositiveFloat = 0.03,
        penalty: NonNegativeFloat = 0.25,
        lookahead: NonNegativeFloat = 8.0,
        ramp: NonNegativeFloat = 0.6,
        max_factor: PositiveFloat = 4.0,
        num_rows: PositiveInt | None = None,
        every_n_steps: PositiveInt = 4,
    ) -> None:
        for name, value in (
            ("budget", budget),
            ("update", update),
            ("every_n_steps", every_n_steps),
        ):
            if not 0 < value < math.inf:
                raise InputError(f"RetainBudget.{name} must be > 0; got {value}.")
        for name, value in (("penalty", penalty), ("lookahead", lookahead)):
            if not 0 <= value < math.inf:
                raise InputError(f"RetainBudget.{name} must be >= 0; got {value}.")
        if not 0 <= ramp <= 1:
            raise InputError(f"RetainBudget.ramp must be from 0 to 1; got {ramp}.")
        if not 1 <= max_factor < math.inf:
            raise InputError(f"RetainBudget.max_factor must be >= 1; got {max_factor}.")
        if num_rows is not None and num_rows < 1:
            raise InputError(f"RetainBudget.num_rows must be > 0 or null; got {num_rows}.")
        # Plain numbers: the parser's own types would make checkpoints that can't be read safely.
        self.budget, self.update = float(budget), float(update)
        self.penalty, self.lookahead = float(penalty), float(lookahead)
        self.ramp, self.max_factor = float(ramp), float(max_factor)
        self.num_rows, self.every_n_steps = num_rows, int(every_n_steps)
        self.start_loss: float | None = None
        self.start_weight = self.weight = 0.0
        self.dual = 0.0
        #: Optimiser steps and rise in percent when last measured.
        self.measured_at, self.rise = 0, 0.0
        self._rows: list[EncodedRow] = []

    # The dual step.

    def begin(self, loss: float, weight: float) -> None:
        """Note the retain loss and the weight before the first step."""
        self.start_loss, self.start_weight, self.weight = loss, weight, weight
        self.dual, self.measured_at, self.rise = 0.0, 0, 0.0

    def step(self, loss: float, step: int, progress: float = 1.0, lr_factor: float = 1.0) -> float:
        """Make the dual step and return the new weight.

        Args:
            loss: Retain loss now, nats a token.
            step: Optimiser steps so far, more than at the last call.
            progress: Share of the run's steps that is done.
            lr_factor: Learning rate relative to its peak.
        """
        assert self.start_loss is not None
        steps, rise = step - self.measured_at, 100 * (loss / self.start_loss - 1)
        slope = (rise - self.rise) / steps
        self.measured_at, self.rise = step, rise
        target = 100 * self.budget * (min(1.0, progress / self.ramp) if self.ramp else 1.0)
        violation = min(max(rise + self.lookahead * slope - target, -_LARGEST), _LARGEST)
        size = steps * self.update * (1.0 if violation > 0 else _SLACK)
        self.dual = self._project(self.dual + size * violation)
        penalty = self.penalty / max(lr_factor, 1 / _MOST_GAIN)
        self.weight = self.start_weight * math.exp(-self._project(self.dual + penalty * violation))
        return self.weight

    def _project(self, exponent: float) -> float:
        """Keep minus the logarithm of the weight's factor in bounds."""
        return min(max(exponent, -math.log(self.max_factor)), -math.log(_LEAST))

    # In a run.

    def check(self, module: UnlearningModule, callbacks: Sequence[object]) -> None:
        """Refuse a run that has nothing to weigh or nothing to measure.

        Args:
            module: What is trained.
            callbacks: All of the trainer's.

        Raises:
            InputError: If there is no forget or no retain term, or a second budget.
        """
        if module.method.forget is None:
            raise InputError(
                "trainer.callbacks: RetainBudget weighs the forget term, but model.forget is null; "
                "leave RetainBudget out of a fine-tuning run."
            )
        if module.method.retain is None:
            raise InputError(
                "trainer.callbacks: RetainBudget measures the retain rows, but model.retain is "
                "null; set model.retain to a retain objective, or leave RetainBudget out."
            )
        if sum(isinstance(one, RetainBudget) for one in callbacks) > 1:
            raise InputError(
                "trainer.callbacks holds RetainBudget twice; a run has one weight, keep one budget."
            )

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check the run, unless the command line has done so."""
        if stage == "fit":
            callbacks = trainer.callbacks  # type: ignore[attr-defined]
            self.check(cast(UnlearningModule, pl_module), callbacks)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the target model; a resumed run takes up its weight instead."""
        module = cast(UnlearningModule, pl_module)
        rows = module.datamodule.streams["retain"]
        count = min(self.num_rows or len(rows), len(rows))
        chosen = [rows[number * len(rows) // count] for number in range(count)]
        # Rows of similar length go together.
        self._rows = sorted(chosen, key=lambda row: -len(row.input_ids))
        if self.start_loss is None:
            loss = self._measure(trainer, module)
            if not loss > 0:
                raise InputError(
                    "trainer.callbacks: RetainBudget is relative to the retain loss at the start, "
                    f"which is {loss}; use model.forget_weight instead."
                )
            self.begin(loss, float(module.forget_weight))
        module.forget_weight = self.weight

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure and make the dual step, once the optimiser has stepped often enough."""
        module, step = cast(UnlearningModule, pl_module), trainer.global_step
        assert self.start_loss is not None
        # Within an accumulation window the count stands still.
        if step % self.every_n_steps == 0 and step > self.measured_at:
            loss, total = self._measure(trainer, module), module.num_steps()
            lr = float(trainer.optimizers[0].param_groups[0]["lr"])
            module.forget_weight = self.step(loss, step, step / total, lr / module.lr)
        values = {
            "budget/forget_weight": self.weight,
            "budget/retain_loss": self.start_loss * (1 + self.rise / 100),
            "budget/rise": self.rise,
        }
        # Equal on all processes, as the sums it is made of are.
        module.log_dict(values, on_step=True, on_epoch=False)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say so if the weight's upper bound kept the run from its budget."""
        most = self.start_weight * self.max_factor
        if self.rise < 100 * self.budget - 1 and math.isclose(self.weight, most):
            rank_zero_warn(
                f"RetainBudget: the retain loss rose by {self.rise:.2f} % of the "
                f"{100 * self.budget:g} % allowed and the forget term's weight ended at its upper "
                f"bound of {most:g}; start from a larger model.forget_weight, or train longer."
            )

    @torch.no_grad()
    def _measure(self, trainer: Trainer, module: UnlearningModule) -> float:
        """Return the mean negative log-likelihood of the rows' labels, over all processes.

        Raises:
            InputError: If it is not finite.
        """
        assert module.scorer is not None
        size, world = module.datamodule.eval_batch_size, trainer.world_size
        batches = [self._rows[start : start + size] for start in range(0, len(self._rows), size)]
        mine = batches[trainer.global_rank :: world]
        # A model whose parameters are spread over processes needs all of them in every pass.
        idle = -(-len(batches) // world) - len(mine)
        was_training = module.scorer.training
        module.scorer.eval()
        total, tokens = 0.0, 0
        with trainer.precision_plugin.val_step_context():
            for number, rows in enumerate([*mine, *batches[:1] * idle]):
                loss, count = _summed(module, rows)
                if number < len(mine):
                    total, tokens = total + loss, tokens + count
        module.scorer.train(was_training)
        if world > 1:
            sums = torch.tensor([total, tokens], dtype=torch.float64, device=module.device)
            total, tokens = trainer.strategy.reduce(sums, reduce_op="sum").tolist()
        loss = total / max(tokens, 1)
        if not math.isfinite(loss):
            raise InputError(
                f"trainer.callbacks: RetainBudget found a retain loss of {loss} at step "
                f"{trainer.global_step}; the model is broken. Lower model.lr or "
                "model.forget_weight."
            )
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run goes on with; plain numbers."""
        return {
            "start_loss": self.start_loss,
            "start_weight": self.start_weight,
            "weight": self.weight,
            "dual": self.dual,
            "measured_at": self.measured_at,
            "rise": self.rise,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from ``state_dict``."""
        self.start_loss, self.dual = state_dict["start_loss"], state_dict["dual"]
        self.start_weight, self.weight = state_dict["start_weight"], state_dict["weight"]
        self.measured_at, self.rise = state_dict["measured_at"], state_dict["rise"]


def _summed(module: UnlearningModule, rows: Sequence[EncodedRow]) -> tuple[float, int]:
    """Return the summed negative log-likelihood of rows' labels, nats, and their number."""
    assert module.scorer is not None
    ids, mask = pad_rows([row.input_ids for row in rows], module.datamodule.encoder.pad_id)
    labels, _ = pad_rows([row.labels for row in rows], IGNORE_INDEX)
    device = module.device
    signals = module.scorer(ids.to(device), mask.to(device), labels.to(device))
    return -math.fsum(signals.logps.tolist()), len(signals.logps)
