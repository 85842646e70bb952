"""What every command of a run checks before it begins, and what its records are made with."""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, cast, get_args

from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningCLI

from etw_lightning.callbacks.comparisons import needs_of_others
from etw_lightning.callbacks.evaluation import EvaluationCallback, Suite
from etw_lightning.callbacks.retain_budget import RetainBudget
from etw_lightning.catalogue.entries import Part
from etw_lightning.data.spacy_spans import Kind, spacy_spans
from etw_lightning.files.checkpoint_folder import Saved
from etw_lightning.memory.check_memory import sizes_of
from etw_lightning.memory.model_checks import check_devices, check_disk
from etw_lightning.models.loading import check_stored, check_vocabulary, load_config
from etw_lightning.models.weight_fit import refuse_training
from etw_lightning.notices import for_screen, printable
from etw_lightning.runs.checkpointing import Checkpoints
from etw_lightning.runs.cpu_precision import Changed
from etw_lightning.runs.preemption import StopSignals
from etw_lightning.runs.run_report import RunReport
from etw_lightning.schema import Conventions
from etw_lightning.scoring.cache.keys import model_identity, precision_name
from etw_lightning.scoring.gibberish_classifier import check_classifier
from etw_lightning.scoring.provenance import describe
from etw_lightning.training import quickstart_models
from etw_lightning.training.datamodule import Role, UnlearningDataModule
from etw_lightning.training.known_scores import find_known
from etw_lightning.training.module import UnlearningModule
from etw_lightning.training.other_models import OtherModels
from etw_lightning.training.references.model import check_tokens
from etw_lightning.training.strategies import check_layout, computing_precision, is_first_process

__all__ = ["RunChecks", "say"]


class RunChecks(LightningCLI):
    """The parts of a run, and what of them is checked."""

    trainer: Trainer
    model: UnlearningModule
    datamodule: UnlearningDataModule
    #: The run's folder, its settings as plain values, and its seed.
    folder: Path
    plain: dict[str, Any]
    seed: int
    #: The callbacks that the command line adds.
    suite: Suite
    report: RunReport
    checkpoints: Checkpoints
    #: Settings that were taken in place of what files say, by key.
    changed: dict[str, Changed]
    #: The checkpoint that ``fit`` goes on from, if any, and how far its folder had come.
    resumed: Saved | None
    traces: tuple[str | None, list[tuple[int, int]]]
    #: Holds what stands for the quickstart's model while ``check`` looks at it.
    untrained: TemporaryDirectory[str] | None = None
    #: What may ask the run to stop.
    signals: ClassVar[StopSignals] = StopSignals()
    #: Locks of the run's folder.
    held: ClassVar[list[Any]] = []

    def _check_settings(self) -> None:
        """Check the input as far as no weight is needed for it."""
        model, data = self.model, self.datamodule
        check_devices(self.trainer)
        self.checkpoints.rating.check()
        check_layout(self.trainer, has_adapter=model.peft is not None)
        model.check_gradients(self.trainer)
        data.follow(model.method)
        for callback in self._callbacks():
            if isinstance(callback, RetainBudget):
                callback.check(model, self._callbacks())
        has_target = data.results_paths["target"] is not None or data.target_model is not None
        data.starts_from_target = data.uses_forget and not has_target
        self._check_input(whole=True)

    def _check_disk(self) -> str:
        """Check the room for checkpoints and the model; return what was found."""
        config = self.config[self.subcommand]
        return check_disk(
            self.folder,
            sizes_of(self.model, self.datamodule, self.trainer),
            config.get("checkpoints.keep") or 0,
            saves_model=config.save_model,
            keeps_best=config.get("checkpoints.best") is not None,
        )

    def _check_input(self, *, whole: bool) -> None:
        """Read all rows and other models' records, and look up what is known of the model.

        Args:
            whole: Use of what is known only parts of sets that lack no row.
        """
        model, data = self.model, self.datamodule
        data.conventions = self._conventions
        data.seed = self.seed if data.seed is None else data.seed
        callbacks = [c for c in self._callbacks() if isinstance(c, EvaluationCallback)]
        for callback in callbacks:
            callback.prepare(data)
            data.require(callback.needs)
        data.check_names()
        model.pretrained = self._resolved(model.pretrained)
        data.load(model.pretrained)
        model.continues = data.continues
        name = (model.pretrained, "model.pretrained")
        if data.tokenizer_name is not None:
            name = (data.tokenizer_name, "data.tokenizer")
        config = load_config(model.pretrained)
        if self.subcommand in ("fit", "check"):
            refuse_training(config, "model.pretrained")
        check_vocabulary(data.encoder.tokenizer, config, *name)
        if model.entropy_model is not None and self.subcommand != "evaluate":
            self._check_entropy_model(model.entropy_model)
        for callback in callbacks:
            # Read again once there are scores: what is wrong with them is to be said before.
            data.spans(callback.needs)
            plan = callback.plan if isinstance(callback, Suite) else None
            if plan is not None and "classifier" in plan.needs:
                check_classifier(self.config_init[self.subcommand].gibberish_classifier)
            if plan is not None and "spacy" in plan.needs:
                model_name = self.config_init[self.subcommand].spacy_model
                for kind in get_args(Kind):
                    spacy_spans([], kind, model_name, "spacy_model")
        if self.subcommand == "check":
            # What is known is found by the weights.
            data.check_rows({})
        elif is_first_process():
            model.known, model.journal_keys = find_known(
                model.pretrained, data, self._precision, whole=whole, say=say
            )
            data.check_rows(model.known)

    def _check_entropy_model(self, given: str) -> None:
        """Find the model whose entropies are asked for, or refuse it before anything is scored."""
        found = self._resolved(given, "model.entropy_model")
        check_stored(found, "model.entropy_model")
        check_tokens(found, self.datamodule.train_encoder.tokenizer)
        self.model.entropy_model = found

    def _resolved(self, pretrained: str, key: str = "model.pretrained") -> str:
        """Return where a model is; ``check`` trains none of the quickstart's."""
        if self.untrained is None:
            return quickstart_models.resolve(pretrained, self.seed, key)
        place = Path(self.untrained.name)
        return quickstart_models.resolve_untrained(pretrained, place, self.seed, key)

    def _score_others(self) -> None:
        """Score the retain and the target model, as far as callbacks read their records."""
        self.others, needs = self._others_needed()
        for role in get_args(Role):
            self.others.need(role, needs[role])
            self.others.check_rest(role, needs[role])

    def _others_needed(self) -> tuple[OtherModels, dict[Role, dict[str, set[Part]]]]:
        """Return the other models, and what callbacks read of each."""
        model, data = self.model, self.datamodule
        callbacks = [c for c in self._callbacks() if isinstance(c, EvaluationCallback)]
        others = OtherModels(data, self.trainer, model.dtype_name, model.attention, self.seed)
        needs = needs_of_others(callbacks)
        return others, needs

    def _provenance(self, pretrained: str | None) -> dict[str, Any]:
        """Return what the run's records are made with; None for weights that are not saved."""
        known = pretrained is not None and is_first_process()
        identity = model_identity(cast(str, pretrained)) if known else None
        made = describe(
            pretrained or f"{self.model.pretrained}, trained",
            identity,
            self.datamodule.eval_sets,
            self.datamodule.encoder,
            self.model.dtype_name,
            computing_precision(self.trainer),
        )
        return {**made, "rouge_tokenizer": self.datamodule.rouge_tokenizer}

    @property
    def _conventions(self) -> Conventions:
        """Whose way of scoring the run takes."""
        given = self.config_init[self.subcommand].conventions
        named = {"definition": Conventions(), "peer": Conventions.peer()}
        return given if isinstance(given, Conventions) else named[given]

    @property
    def _precision(self) -> str:
        model = self.model
        precision = computing_precision(self.trainer)
        return precision_name(model.dtype_name, precision, model.attention)

    def _changes(self) -> dict[str, dict[str, str]]:
        """Return what was changed, as ``results.json`` holds it."""
        return {key: change._asdict() for key, change in self.changed.items()}

    def _callbacks(self) -> list[Any]:
        return cast(list[Any], cast(Any, self.trainer).callbacks)


def say(line: str) -> None:
    """Write a line from the first process; a log file is read while the run goes on."""
    if is_first_process():
        sys.stdout.write(f"{for_screen(printable(line))}\n")
        sys.stdout.flush()
