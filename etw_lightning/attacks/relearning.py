"""Relearning: a few steps of fine-tuning, on what was forgotten or on other rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse.typing import PositiveFloat, PositiveInt

from etw_lightning.api.loaded import interruptible, quietly
from etw_lightning.attacks.interface import Attack, Robustness, Subject
from etw_lightning.attacks.scoring import trainer_like
from etw_lightning.callbacks.guards import FiniteGuard
from etw_lightning.files.setting_names import renamed
from etw_lightning.schema import InputError
from etw_lightning.training.datamodule import UnlearningDataModule
from etw_lightning.training.module import UnlearningModule

if TYPE_CHECKING:
    from etw_lightning.attacks.attacked_run import AttackedRun

__all__ = ["Relearn"]


@dataclass(frozen=True)
class Relearn(Attack):
    """Fine-tune for some steps and see how much comes back; the retain model is trained alike.

    What comes back in the unlearned model and not in the retain model had not been forgotten.
    Trained is all of the model on the answers of the rows, by AdamW at a constant rate, with
    gradients clipped as ``fit`` clips them: the same steps on the same rows in the same order for
    both models.

    Source: Lynch et al. 2024, arXiv:2402.16835; Hu et al. 2024, arXiv:2406.13356 (other rows).
    Differs from it: the numbers; there is no common protocol.

    Args:
        rows: What is trained on: ``forget``, ``retain``, or a file of rows of one's own.
        num_rows: The first so many of them; null takes all.
        steps: Optimiser steps, each on a batch.
        batch_size: Rows of a step.
        lr: Learning rate; null takes the run's.

    Raises:
        InputError: If a number is out of range.
    """

    rows: str = "forget"
    num_rows: PositiveInt | None = None
    steps: PositiveInt = 20
    batch_size: PositiveInt = 8
    lr: PositiveFloat | None = None

    def __post_init__(self) -> None:
        for name in ("num_rows", "steps", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"attack.{name} must be a whole number > 0; got {value}.")
        if self.lr is not None and not 0 < self.lr < float("inf"):
            raise InputError(f"attack.lr must be a finite number > 0; got {self.lr}.")

    @property
    def read_too(self) -> frozenset[str]:
        """What says which rows are trained on, and how they are read."""
        own = {"forget": {"data.forget_part"}, "retain": {"data.leave_out"}}
        return frozenset({"data.num_workers", *own.get(self.rows, ())})

    @property
    def robustness(self) -> Robustness | None:
        """R, of relearning what was forgotten."""
        return "relearning" if self.rows == "forget" else None

    def check(self, run: AttackedRun) -> None:
        """Refuse rows that can't be read."""
        if self.rows not in ("forget", "retain") and not Path(self.rows).expanduser().is_file():
            raise InputError(
                "attack.rows must be forget, retain or a file of rows; there is no file "
                f"{self.rows!r}."
            )
        try:
            self._data(run).load(run.name("unlearned"))
        except InputError as error:
            if self.rows not in ("forget", "retain"):
                raise InputError(renamed(str(error), {"data.split": "attack.rows"})) from error
            # The limit is put where a run's own stands.
            if self.num_rows is None or not str(error).startswith("data.rows"):
                raise
            raise InputError(
                f"attack.num_rows is {self.num_rows}, but there are fewer rows: {error}"
            ) from error

    def change_model(self, subject: Subject) -> Any:
        """Return the model, trained in place."""
        run = subject.run
        module = UnlearningModule.from_model(
            subject.lm,
            run.tokenizer,
            forget=None,
            lr=self.lr or run.model["lr"],
            weight_decay=0.0,
            schedule="constant",
            gradient_checkpointing=run.model.get("gradient_checkpointing", False),
        )
        with quietly(), interruptible():
            trainer = trainer_like(
                run,
                progress=False,
                max_steps=self.steps,
                max_epochs=-1,
                gradient_clip_val=1.0,
                limit_val_batches=0,
                callbacks=[FiniteGuard()],
            )
            trainer.fit(module, datamodule=self._data(run))
        return subject.lm.eval()

    def _data(self, run: AttackedRun) -> UnlearningDataModule:
        if self.rows in ("forget", "retain"):
            data = run.make_data()
            data.split = data.split_of("forget" if self.rows == "forget" else "retain")
            if self.rows == "forget":
                data.leave_out = None  # the rows to relearn are among them
        else:
            data = self._own(run)
        data.given_tokenizer = run.tokenizer
        data.uses_forget, data.retain_weights = False, {}
        data.batch_size, data.seed = self.batch_size, run.seed
        if self.num_rows is not None and data.split is not None:
            if "+" in data.split:
                raise InputError(
                    f"attack.num_rows takes the first rows of one split; {data.split!r} are "
                    "several. Leave it out, or give a file as attack.rows."
                )
            data.limits[data.split] = self.num_rows
        return data

    def _own(self, run: AttackedRun) -> UnlearningDataModule:
        """Return rows of a file, told as the run tells its own."""
        same: Mapping[str, Any] = run.data_settings
        kept = ("template", "system_prompt", "template_kwargs", "max_length", "truncation")
        return UnlearningDataModule(
            "jsonl", split=self.rows, **{key: same[key] for key in kept if key in same}
        )
