"""Evaluation in the validation loop: scores give records, records metrics, metrics are logged.

Callbacks declare the evaluation sets they read; each set is scored once in a validation, and only
when a callback that reads it is due: before training (the target model), every
``every_n_epochs``, and after the last epoch.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

import numpy as np
from jsonargparse.typing import PositiveInt
from lightning.pytorch import Callback, LightningModule, Trainer

from etw_lightning import metrics
from etw_lightning.metrics import Metric
from etw_lightning.module import UnlearningModule
from etw_lightning.schema import Record

__all__ = ["EvaluationCallback", "ForgetQuality", "ModelUtility", "Muse", "PrivLeak", "SetScores"]

_IN_PROGRESS_BAR = ("eval/forget_quality", "eval/model_utility", "eval/verbmem", "eval/privleak")
_Sets = Mapping[str, Sequence[Record]]


class EvaluationCallback(Callback):
    """Computes metrics from records of the sets it names.

    Args:
        every_n_epochs: Epochs between evaluations; before training and after the last epoch there
            always is one.
    """

    #: Sets the metrics are computed from.
    eval_sets: tuple[str, ...] = ()
    #: Sets of which the retain model's records are needed too.
    retain_sets: ClassVar[tuple[str, ...]] = ()

    def __init__(self, every_n_epochs: PositiveInt = 1) -> None:
        self.every_n_epochs = every_n_epochs
        self.latest: dict[str, Metric] = {}

    @abstractmethod
    def compute(self, records: _Sets, retain: _Sets) -> dict[str, Metric]:
        """Return the metrics, by name.

        Args:
            records: What the model said, of ``eval_sets``.
            retain: What the retain model said, of ``retain_sets``.
        """

    def is_due(self, trainer: Trainer) -> bool:
        """Tell whether this validation is to compute the metrics."""
        epoch = trainer.current_epoch + 1
        is_last = epoch == trainer.max_epochs or trainer.should_stop or _out_of_steps(trainer)
        is_asked = trainer.state.fn == "validate"
        return trainer.sanity_checking or is_asked or is_last or epoch % self.every_n_epochs == 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Ask for the sets, and have them read: the data module has been set up before."""
        module = cast(UnlearningModule, pl_module)
        module.datamodule.require(self.eval_sets)
        module.datamodule.load(module.pretrained)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ask for the sets to be scored this time."""
        self.latest = {}
        if self.is_due(trainer):
            cast(UnlearningModule, pl_module).due_sets.update(self.eval_sets)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compute and log."""
        module = cast(UnlearningModule, pl_module)
        if not self.is_due(trainer):
            return
        records = module.gather_records()
        self.latest = self.compute(
            {name: records[name] for name in self.eval_sets},
            {name: module.datamodule.retain_records(name) for name in self.retain_sets},
        )
        values = {f"eval/{name}": metric.value for name, metric in self.latest.items()}
        if not trainer.sanity_checking:
            for name, value in values.items():
                # Every process has the same value; each must log it, or callbacks that wait for it
                # on another process would stop the run.
                module.log(name, value, prog_bar=name in _IN_PROGRESS_BAR, sync_dist=True)
        elif trainer.logger is not None:
            # What is logged in the sanity check is dropped; this is the target model's row.
            trainer.logger.log_metrics(values, step=0)


class ForgetQuality(EvaluationCallback):
    """TOFU's forget quality: does the model look as if it had never seen the forget set?

    Logs the p-value with its D*n, and what is said of the forget set: probability, ROUGE-L recall
    and truth ratio. See ``metrics.forget_quality``.

    Args:
        every_n_epochs: Epochs between evaluations.
    """

    eval_sets = ("forget",)
    retain_sets = ("forget",)

    def compute(self, records: _Sets, retain: _Sets) -> dict[str, Metric]:
        """Return forget quality and its parts."""
        quality = metrics.forget_quality(records["forget"], retain["forget"])
        n = quality.n
        return {
            "forget_quality": Metric(quality.p_value, "up", n),
            "neg_log10_forget_quality": Metric(quality.neg_log10, "down", n),
            "forget_d_times_n": Metric(float(quality.d_times_n), "down", n),
            **_set_scores("forget", records["forget"], "down"),
        }


class ModelUtility(EvaluationCallback):
    """TOFU's model utility and its nine parts. See ``metrics.model_utility``.

    Args:
        every_n_epochs: Epochs between evaluations.
    """

    eval_sets = ("retain", "real_authors", "world_facts")

    def compute(self, records: _Sets, retain: _Sets) -> dict[str, Metric]:
        """Return model utility and its parts."""
        utility = metrics.model_utility(records)
        parts = {name: Metric(value, "up", utility.n) for name, value in utility.parts.items()}
        return {"model_utility": Metric(utility.value, "up", utility.n), **parts}


class Muse(EvaluationCallback):
    """MUSE's verbatim memory of the forget set and knowledge of both sets, percent.

    Args:
        every_n_epochs: Epochs between evaluations.
    """

    eval_sets = ("verbmem", "knowmem_forget", "knowmem_retain")

    def compute(self, records: _Sets, retain: _Sets) -> dict[str, Metric]:
        """Return verbmem and both knowmem."""
        return {
            "verbmem": metrics.verbmem(records["verbmem"]),
            "knowmem_forget": metrics.knowmem(records["knowmem_forget"], "down"),
            "knowmem_retain": metrics.knowmem(records["knowmem_retain"], "up"),
        }


class PrivLeak(EvaluationCallback):
    """MUSE's privacy leakage: Min-K AUC of forget against holdout, relative to the retain model.

    Args:
        every_n_epochs: Epochs between evaluations.
    """

    eval_sets = ("privleak_forget", "privleak_holdout")
    retain_sets = ("privleak_forget", "privleak_holdout")

    def compute(self, records: _Sets, retain: _Sets) -> dict[str, Metric]:
        """Return privleak, percent."""
        auc = metrics.min_k_auc(retain["privleak_forget"], retain["privleak_holdout"])
        leak = metrics.privleak(records["privleak_forget"], records["privleak_holdout"], auc)
        return {"privleak": leak}


class SetScores(EvaluationCallback):
    """What a model knows of any evaluation set: probability, ROUGE-L recall, truth ratio.

    For fine-tuning and for the user's own files, where there is no retain model to compare with.

    Args:
        sets: Names of evaluation sets.
        every_n_epochs: Epochs between evaluations.
    """

    def __init__(
        self,
        sets: Sequence[str] = ("forget", "retain"),
        every_n_epochs: PositiveInt = 1,
    ) -> None:
        super().__init__(every_n_epochs)
        self.eval_sets = tuple(sets)

    def compute(self, records: _Sets, retain: _Sets) -> dict[str, Metric]:
        """Return the scores of each set."""
        found: dict[str, Metric] = {}
        for name in self.eval_sets:
            found |= _set_scores(name, records[name], "down" if name == "forget" else "up")
        return found


def _set_scores(name: str, records: Sequence[Record], direction: Any) -> dict[str, Metric]:
    """Return what can be said of a set without another model."""
    n = len(records)
    found: dict[str, Metric] = {}
    if all(record.answer_loss is not None for record in records):
        mean = float(np.mean(metrics.probabilities(records)))
        found[f"{name}_probability"] = Metric(mean, direction, n)
    if all(record.generation is not None for record in records):
        mean = float(np.mean(metrics.rouge_values(records, "rougeL_recall")))
        found[f"{name}_rouge"] = Metric(mean, direction, n)
    if all(record.perturbed_losses and record.paraphrase_loss is not None for record in records):
        ratios = metrics.truth_ratios(records)
        value = metrics.closer_to_one(ratios) if name == "forget" else metrics.true_better(ratios)
        found[f"{name}_truth_ratio"] = Metric(value, "up", n)
    return found


def _out_of_steps(trainer: Trainer) -> bool:
    return 0 < trainer.max_steps <= trainer.global_step
