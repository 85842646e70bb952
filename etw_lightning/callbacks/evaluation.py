"""Evaluation in the validation loop: scores give records, records metrics, metrics are logged.

Callbacks declare the evaluation sets they read; each set is scored once in a validation, and only
when a callback that reads it is due: before training (the target model), every
``every_n_epochs``, and after the last epoch.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from itertools import takewhile
from types import MappingProxyType
from typing import Any, cast, get_args

from jsonargparse.typing import NonNegativeInt, PositiveInt
from lightning.pytorch import Callback, LightningModule, Trainer

from etw_lightning.callbacks.comparisons import score_others
from etw_lightning.catalogue import computations as of
from etw_lightning.catalogue import membership_numbers
from etw_lightning.catalogue.listing import CATALOGUE, Extra, Given, Part
from etw_lightning.catalogue.suite import NoMetricError, Plan, metric_names, select
from etw_lightning.metrics import Metric
from etw_lightning.schema import InputError
from etw_lightning.training.datamodule import Role, UnlearningDataModule
from etw_lightning.training.module import UnlearningModule

__all__ = [
    "EvaluationCallback",
    "ForgetQuality",
    "ModelUtility",
    "Muse",
    "PrivLeak",
    "SetScores",
    "Suite",
]

_IN_PROGRESS_BAR = ("eval/forget_quality", "eval/model_utility", "eval/verbmem", "eval/privleak")
#: Set name to what must have been scored of it.
Needs = Mapping[str, Collection[Part]]

_ANSWERS: frozenset[Part] = frozenset({"answers"})
_GENERATION: frozenset[Part] = frozenset({"generation"})


class EvaluationCallback(Callback):
    """Computes metrics from records of the sets it names.

    Args:
        every_n_epochs: Epochs between evaluations; before training and after the last epoch there
            always is one.
    """

    #: Sets the metrics are computed from, and what must have been scored of each.
    needs: Needs = MappingProxyType({})
    #: Sets of which the retain model's records are needed too, and what of them.
    retain_needs: Needs = MappingProxyType({})
    #: The same of the target model.
    target_needs: Needs = MappingProxyType({})

    def __init__(self, every_n_epochs: PositiveInt = 1) -> None:
        self.every_n_epochs = every_n_epochs
        self.latest: dict[str, Metric] = {}

    def prepare(self, data: UnlearningDataModule) -> None:
        """Settle what is needed, where that depends on the data; before ``needs`` are read."""

    @abstractmethod
    def compute(self, given: Given) -> dict[str, Metric]:
        """Return the metrics, by name, from records of what the callback needs."""

    def is_due(self, trainer: Trainer) -> bool:
        """Tell whether this validation is to compute the metrics."""
        epoch = trainer.current_epoch + 1
        every = self.every_n_epochs
        is_last = epoch == trainer.max_epochs or trainer.should_stop or _out_of_steps(trainer)
        is_asked = trainer.state.fn == "validate"
        if not every:
            return is_asked or is_last
        return trainer.sanity_checking or is_asked or is_last or epoch % every == 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Ask for the sets, and have them read: the data module has been set up before."""
        module = cast(UnlearningModule, pl_module)
        self.prepare(module.datamodule)
        module.datamodule.require(self.needs)
        module.datamodule.load(module.pretrained)
        watchers = [one for one in _callbacks(trainer) if isinstance(one, EvaluationCallback)]
        if watchers[-1] is self:
            # All have said by now what they read.
            score_others(trainer, module, watchers)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ask for the sets to be scored this time."""
        self.latest = {}
        if self.is_due(trainer):
            cast(UnlearningModule, pl_module).ask(self.needs)
        if trainer.sanity_checking:
            # The model before training is the target model of what is relative to it.
            cast(UnlearningModule, pl_module).ask(self.target_needs)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compute and log."""
        module = cast(UnlearningModule, pl_module)
        if not self.is_due(trainer):
            return
        records, data = module.gather_records(), module.datamodule
        given = Given(
            records={name: records[name] for name in self.needs},
            retain={name: data.retain_records(name) for name in self.retain_needs},
            target={name: data.target_records(name) for name in self.target_needs},
            conventions=data.conventions,
            forget_sets=data.forget_sets,
            spans=data.spans(self.needs),
            words=data.rouge_tokenizer,
        )
        self.latest = self.compute(given)
        values = {f"eval/{name}": metric.value for name, metric in self.latest.items()}
        if not trainer.sanity_checking:
            for name, value in values.items():
                # Every process has the same value; each must log it, or callbacks that wait for it
                # on another process would stop the run.
                is_beside = name in _IN_PROGRESS_BAR
                module.log(name, value, prog_bar=is_beside, logger=False, sync_dist=True)
        # What two callbacks compute is shown once.
        before = takewhile(lambda one: one is not self, _callbacks(trainer))
        others = (one.latest for one in before if isinstance(one, EvaluationCallback))
        told = {f"eval/{name}" for latest in others for name in latest}
        shown = {name: value for name, value in values.items() if name not in told}
        # Lightning would show it one step early, and drop the target model's.
        for logger in trainer.loggers:
            logger.log_metrics(shown, step=trainer.global_step)


class ForgetQuality(EvaluationCallback):
    """TOFU's forget quality: does the model look as if it had never seen the forget set?

    Logs the p-value with its D*n, and what is said of the forget set: probability, ROUGE-L recall
    and truth ratio. See ``metrics.forget_quality``.

    Args:
        every_n_epochs: Epochs between evaluations.
    """

    needs: Needs = dict.fromkeys(("forget",), _ANSWERS | _GENERATION)
    retain_needs: Needs = dict.fromkeys(("forget",), _ANSWERS)

    def compute(self, given: Given) -> dict[str, Metric]:
        """Return forget quality and its parts."""
        return {**of.forget_quality(given, ("forget",)), **of.set_scores(given, "forget")}


class ModelUtility(EvaluationCallback):
    """TOFU's model utility and its nine parts. See ``metrics.model_utility``.

    Args:
        every_n_epochs: Epochs between evaluations.
    """

    needs: Needs = dict.fromkeys(("retain", "real_authors", "world_facts"), _ANSWERS | _GENERATION)

    def compute(self, given: Given) -> dict[str, Metric]:
        """Return model utility and its parts."""
        return of.model_utility(given, ("retain", "real_authors", "world_facts"))


class Muse(EvaluationCallback):
    """MUSE's verbatim memory of the forget set and knowledge of both sets, percent.

    Args:
        every_n_epochs: Epochs between evaluations.
    """

    needs: Needs = dict.fromkeys(("verbmem", "knowmem_forget", "knowmem_retain"), _GENERATION)

    def compute(self, given: Given) -> dict[str, Metric]:
        """Return verbmem and both knowmem."""
        verbmem, *knowmem = self.needs
        return {**of.verbmem(given, (verbmem,)), **of.knowmem(given, tuple(knowmem))}


class PrivLeak(EvaluationCallback):
    """MUSE's privacy leakage: Min-K AUC of forget against holdout, relative to the retain model.

    Args:
        every_n_epochs: Epochs between evaluations.
    """

    needs: Needs = dict.fromkeys(("privleak_forget", "privleak_holdout"), _ANSWERS)
    retain_needs: Needs = needs

    def compute(self, given: Given) -> dict[str, Metric]:
        """Return privleak, percent."""
        return {"privleak": membership_numbers.privleak(given, tuple(self.needs))["privleak"]}


class SetScores(EvaluationCallback):
    """What a model knows of any evaluation set: probability, ROUGE-L recall, truth ratio.

    For fine-tuning and for the user's own rows. Of these the retain and the target model are scored
    too, if they are given, and stand in the table at the end.

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
        self.needs = dict.fromkeys(sets, _ANSWERS | _GENERATION)

    def prepare(self, data: UnlearningDataModule) -> None:
        """Ask for the same of the other models of own rows."""
        beside = data.beside
        retain, target = (
            {name: parts for name, parts in self.needs.items() if name in beside.get(role, ())}
            for role in get_args(Role)
        )
        self.retain_needs, self.target_needs = retain, target

    def compute(self, given: Given) -> dict[str, Metric]:
        """Return the scores of each set."""
        found: dict[str, Metric] = {}
        for name in given.records:
            found |= of.set_scores(given, name)
        return found


class Suite(EvaluationCallback):
    """Any metrics of the catalogue, as ``evaluate`` computes them; see ``explain NAME``.

    Args:
        metrics: Their names, separated by commas or as a list; null for the whole suite of the
            benchmark, as far as retain results and whatever else they need are there.
        every_n_epochs: Epochs between evaluations; 0 computes them after the last epoch only.
    """

    def __init__(
        self, metrics: str | list[str] | None = None, every_n_epochs: NonNegativeInt = 0
    ) -> None:
        super().__init__(every_n_epochs)
        self.metrics = metric_names(metrics)
        self.plan: Plan | None = None
        self.has_tokens = self.trains = False
        #: Adds what passes after the scoring give; ``evaluate`` sets it.
        self.complete: Callable[[Given], Given] = lambda given: given
        #: What is no single number, such as histograms, of the last evaluation.
        self.details: dict[str, Any] = {}
        #: The same numbers of the target and the retain model, where their records hold tokens.
        self.others: dict[str, dict[str, Metric]] = {}

    def prepare(self, data: UnlearningDataModule) -> None:
        """Choose the metrics that this data has the inputs of."""
        if self.plan is None:
            self.trains = data.trains
            if self.trains:
                _refuse_passes(self.metrics or ())
            extras = data.extras
            self.has_tokens = "retain_tokens" in extras
            try:
                self.plan = select(
                    self.metrics,
                    data.benchmark_name,
                    extras,
                    data.offered_sets,
                    data.retain_sets,
                    family=data.family,
                    able=data.able,
                )
            except NoMetricError as error:
                # Where all were wanted, rows that are not there are to blame.
                missing = data.why_missing() if self.metrics is None else ""
                raise InputError(missing or str(error)) from error
            if not self.trains:
                self.plan = replace(self.plan, beside=data.beside)
            self.needs = self.plan.parts
            self.retain_needs = self.plan.retain_parts
            self.target_needs = self.plan.target_parts

    def compute(self, given: Given) -> dict[str, Metric]:
        """Return all numbers of the plan."""
        assert self.plan is not None
        given = self.complete(given)
        found = self.plan.compute(given)
        self.details = self.plan.details(given)
        for role, records, parts in (
            ("target", given.target, self.target_needs),
            ("retain", given.retain if self.has_tokens else None, self.retain_needs),
        ):
            if records:
                self.others[role] = self.plan.compute_of_other(given, records, parts)
        return found

    @property
    def left_out(self) -> dict[str, str]:
        """Metrics of the suite that could not be had, each with the reason."""
        if self.plan is None:
            return {}
        left = {**self.plan.left_out, **self.plan.failed}
        return {
            name: "only evaluate computes it" if self.trains and _needs_passes(name) else reason
            for name, reason in left.items()
        }


def _needs_passes(name: str) -> bool:
    passes: set[Extra] = {"generations", "classifier", "depth", "spacy"}
    return name in CATALOGUE and bool(CATALOGUE[name].needs & passes)


def _refuse_passes(names: Sequence[str]) -> None:
    """Refuse metrics that need further passes, which training does not make."""
    for name in names:
        if _needs_passes(name):
            raise InputError(
                f"metrics: {name} can't be computed while training, only evaluate can compute it; "
                f"leave {name} out of the Suite."
            )


def _callbacks(trainer: Trainer) -> list[Callback]:
    return cast(list[Callback], cast(Any, trainer).callbacks)


def _out_of_steps(trainer: Trainer) -> bool:
    return 0 < trainer.max_steps <= trainer.global_step
