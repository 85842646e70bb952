"""The command line: fills in what must agree, checks everything, then trains or evaluates."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import signal
import sys
import time
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Literal, cast, get_args

from jsonargparse import ActionYesNo, Namespace
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from etw_lightning import quickstart_models
from etw_lightning.callbacks import EvaluationCallback, Suite
from etw_lightning.catalogue import CATALOGUE
from etw_lightning.check import (
    check_devices,
    check_disk,
    check_layers,
    check_training,
    describe_input,
    describe_other,
)
from etw_lightning.check_memory import run_shape, sizes_of, warning_of_memory
from etw_lightning.checkpoint_folder import Saved, remove_checkpoints, saved_checkpoints
from etw_lightning.checkpointing import Checkpoints
from etw_lightning.checkpoints import check_resume
from etw_lightning.collapse import Collapse
from etw_lightning.companions import end_with_first, start_companions
from etw_lightning.data import Role, UnlearningDataModule
from etw_lightning.entries import Part
from etw_lightning.evaluate import Evaluation, UnlearningTrainer, find_known
from etw_lightning.export import export_model
from etw_lightning.export_command import export
from etw_lightning.findings import TrainingStoppedError
from etw_lightning.gibberish_classifier import check_classifier
from etw_lightning.guards import FiniteGuard
from etw_lightning.lm_eval_bridge import check_tasks, lm_eval_scores
from etw_lightning.messages import one_line
from etw_lightning.metrics import Metric
from etw_lightning.models import check_vocabulary, load_config
from etw_lightning.module import UnlearningModule
from etw_lightning.other_models import OtherModels
from etw_lightning.parser import Parser
from etw_lightning.places import check_written
from etw_lightning.preemption import Preempted, StopSignals
from etw_lightning.provenance import describe
from etw_lightning.record_cache import Journal, model_identity, precision_name, score_keys
from etw_lightning.resume import (
    check_processes,
    check_same_run,
    check_unchanged,
    has_lock,
    is_same_run,
    lock_run,
    manifest_of,
    newest_checkpoint,
    traces_of,
    unfinished_run,
)
from etw_lightning.retain_budget import RetainBudget
from etw_lightning.run_folder import (
    UNREADABLE,
    check_run,
    finished_command,
    is_of_fit,
    remove_run,
    run_folder,
)
from etw_lightning.run_key import run_key
from etw_lightning.run_report import RunReport
from etw_lightning.safe_files import check_checkpoint, reading_safely
from etw_lightning.schema import Conventions, InputError
from etw_lightning.second_passes import SecondPasses, extras_of
from etw_lightning.spacy_spans import Kind, spacy_spans
from etw_lightning.state_file import StateFile
from etw_lightning.strategies import check_layout, computing_precision, is_first_process
from etw_lightning.suite import explain
from etw_lightning.sweep import sweep

__all__ = ["UnlearningCLI", "main"]


class UnlearningCLI(LightningCLI):
    """``fit`` and ``evaluate``: what can be wrong is found before anything is written."""

    trainer: Trainer
    model: UnlearningModule
    datamodule: UnlearningDataModule
    #: What may ask the run to stop.
    signals: ClassVar[StopSignals] = StopSignals()
    #: Locks of the run's folder.
    held: ClassVar[list[Any]] = []

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Make a parser that takes no abbreviated options: a typo could be one."""
        return super().init_parser(**{**kwargs, "allow_abbrev": False})

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """``fit``, ``evaluate`` and ``check``, which take the same files."""
        return {
            "fit": LightningCLI.subcommands()["fit"],
            "evaluate": {"model", "datamodule"},
            "check": {"model", "datamodule"},
        }

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add what belongs to the run as a whole."""
        parser.add_argument(
            "--output_dir",
            type=str | None,
            default=None,
            help="Folder of the run; null makes a new one under runs/.",
        )
        parser.add_argument(
            "--conventions",
            type=Literal["definition", "peer"] | Conventions,
            default="definition",
            help="Where widely used code scores in another way than the definitions: whose way, "
            "or pairs {name: value}; see etw_lightning.schema.Conventions.",
        )
        parser.add_argument(
            "--overwrite",
            action=ActionYesNo,
            default=False,
            help="Run again in a folder that holds a finished run, another model's records, or "
            "checkpoints of other settings; a run of these settings that was broken off goes on.",
        )
        parser.add_argument(
            "--save_model",
            action=ActionYesNo(yes_prefix="", no_prefix="no_"),
            default=True,
            help="Save the trained model as a Hugging Face folder in the run's folder, and keep "
            "its checkpoints once it is finished (fit).",
        )
        parser.add_lightning_class_args(Checkpoints, "checkpoints")
        parser.add_lightning_class_args(Collapse, "collapse")

    def _parse_ckpt_path(self) -> None:
        """Leave a checkpoint's own settings alone: what is typed counts, and differences are told.

        They would be put in place of the command's without a word.
        """

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, and refuse a seed that the random generators do not take."""
        Parser.typed = list(sys.argv[1:] if args is None else args)
        try:
            super().parse_arguments(parser, args)
        except UnicodeDecodeError as error:
            parser.error(f"Problems parsing config: {error}")
        config = self.config[self.config.subcommand] if "subcommand" in self.config else self.config
        files = [Path(str(file)) for file in config.get("config") or ()]
        methods = [str(file) for file in files if file.absolute().parent.name == "method"]
        if len(methods) > 1:
            raise InputError(
                f"config must hold one file of configs/method; got {' and '.join(methods)}: what "
                "the later one leaves out would stay from the first."
            )
        if not 0 <= int(config.seed_everything) < 2**32:
            raise InputError(
                f"seed_everything must be a whole number from 0 to {2**32 - 1}; "
                f"got {config.seed_everything}."
            )

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Give the trainer the run's folder, its logger and the report."""
        config = self.config[self.subcommand]
        evaluates = self.subcommand == "evaluate"
        check_run(config, self.folder)
        if self.subcommand == "fit" and is_first_process() and has_lock(self.folder):
            # Waits for a run that is about to end, before its traces are read.
            self._lock()
        self._check_finished(config.overwrite)
        settings: dict[str, Any] = {"default_root_dir": str(self.folder)}
        if SLURMEnvironment.detect() and not config.trainer.plugins:
            # Its own handler would save inside a signal handler.
            settings["plugins"] = [SLURMEnvironment(auto_requeue=False)]
        self.resumed: Saved | None = None
        if self.subcommand == "fit":
            self._find_checkpoint()
            self.traces = traces_of(self.folder)
        if self.subcommand != "fit":
            settings["logger"] = False
        elif config.trainer.logger in (None, True):
            # What was logged behind the checkpoint is logged again.
            step = None if self.resumed is None else self.resumed.step
            where = (self.folder.parent, self.folder.name, "")
            settings["logger"] = TensorBoardLogger(*where, purge_step=step)
        self.seed = int(config.seed_everything or 0)
        try:
            trainer = super().instantiate_trainer(**{**kwargs, **settings})
        except (ValueError, RuntimeError, MisconfigurationException) as error:
            # Lightning names its arguments in backticks, some of them.
            reason = " ".join(str(error).split())
            if reason.startswith("`CUDAAccelerator` can not run"):
                raise InputError(
                    "trainer.accelerator: there is no CUDA device; give --trainer.accelerator cpu "
                    "with --config configs/strategy/single.yaml, ddp.yaml or fsdp.yaml, or run "
                    "where there is one."
                ) from error
            reason = re.sub("^`(\\w+)`", r"trainer.\1", reason)
            is_named = reason.startswith("trainer.")
            raise InputError(reason if is_named else f"trainer: {reason}") from error
        start_companions(trainer)
        callbacks = cast(Any, trainer).callbacks
        if evaluates:
            # The file's own choice is for training.
            self.suite = Suite(config.metrics)
            of_fit = (EvaluationCallback, Checkpoints, Collapse)
            callbacks[:] = [c for c in callbacks if not isinstance(c, of_fit)]
            callbacks.append(self.suite)
        else:
            label = "fine-tuned" if config.model.forget is None else "unlearned"
            self.report = RunReport(self.folder, self.plain, self.seed, label)
            # Checkpoints hold what all others have noted, so they come last.
            self.checkpoints = next(c for c in callbacks if isinstance(c, Checkpoints))
            callbacks.remove(self.checkpoints)
            callbacks += [self.report, self.checkpoints]
            if self.resumed is not None:
                check_processes(self.resumed, trainer.world_size)
            # Before all others: what they save must not be broken.
            callbacks.insert(0, FiniteGuard())
        return trainer

    def _unfinished(self, parent: Path) -> Path | None:
        """Find a run of this command that was broken off, if this one is to go on with it."""
        if self.subcommand != "fit":
            return None
        return unfinished_run(parent, run_key(self.plain))

    def _find_checkpoint(self) -> None:
        """Find the checkpoint that this command goes on from; it must be of the same run."""
        config = self.config["fit"]
        is_finished = finished_command(self.folder) is not None
        if is_finished or not saved_checkpoints(self.folder):
            return
        if is_first_process():
            self._lock()
        found = newest_checkpoint(self.folder, is_first=is_first_process())
        if found is None or (config.overwrite and not is_same_run(self.plain, found)):
            return
        if config.ckpt_path and not is_same_run(self.plain, found):
            raise InputError(
                f"ckpt_path {str(config.ckpt_path)!r} can't be given: output_dir "
                f"{str(self.folder)!r} has checkpoints of its own, of a run with other settings. "
                "Leave it out, or give another output_dir."
            )
        check_same_run(self.plain, found, " ".join(Parser.typed))
        if is_first_process():
            check_checkpoint(found.state, "output_dir")
        self.resumed = found

    def _lock(self) -> None:
        if not self.held:
            lock = lock_run(self.folder)
            self.held.extend([lock] if lock is not None else [])

    def _check_finished(self, may_overwrite: bool) -> None:
        """Refuse a folder whose results would be lost."""
        command = finished_command(self.folder)
        if self.subcommand == "evaluate":
            if command == "fit" or (command == UNREADABLE and is_of_fit(self.folder)):
                raise InputError(
                    f"output_dir {str(self.folder)!r} holds a run of fit; give another folder."
                )
            if command == UNREADABLE:
                _say(f"warning: {self.folder / 'results.json'} was cut; it is written anew")
        elif command == UNREADABLE and not may_overwrite:
            raise InputError(
                f"output_dir {str(self.folder)!r} holds a results.json that can't be read; give "
                "another folder, or --overwrite to run again."
            )
        elif command is not None and not may_overwrite:
            raise InputError(
                f"output_dir {self.folder} holds a finished run; give another folder, or "
                "--overwrite to run again."
            )

    def instantiate_classes(self) -> None:
        """Build model, data and trainer; a refused value is one line."""
        config = self.config[self.subcommand]
        self.plain = config.as_dict()
        prefix = "evaluate-" * (self.subcommand == "evaluate")
        self.folder = run_folder(config.output_dir, config.config, prefix, self._unfinished)
        # Loggers make their folders as soon as they are built.
        check_written((config.trainer or Namespace()).as_dict(), self.folder)
        try:
            super().instantiate_classes()
        except InputError:
            raise
        except ValueError as error:
            raise InputError(one_line(str(_root_cause(error)))) from error

    def before_fit(self) -> None:
        """Check the input from beginning to end."""
        model, data = self.model, self.datamodule
        self._check_settings()
        if is_first_process():
            check_layers(model, load_config(model.pretrained))
            self._check_disk()
            warning = warning_of_memory(model, data, self.trainer)
            if warning is not None:
                rank_zero_warn(warning)
        # Broken weights are bad input too, so they are read before the first file is written, and
        # before other models are scored, which may take long.
        model.load_ahead(self.trainer)
        model.check_optimizer()
        ckpt_path = self.config["fit"].ckpt_path
        if ckpt_path and self.resumed is None:
            self._check_resume(ckpt_path)
        if ckpt_path or self.resumed is not None:
            # What is known is known of the model before training.
            model.known, model.journal_keys = {}, {}
        # Processes that were started together wait for each other here, where nothing times out.
        self._score_others()
        model.make_references(data, self.trainer)
        if is_first_process():
            self._lock()
            check_unchanged(self.folder, self.traces)
            overwrites = self.config["fit"].overwrite and self.resumed is None
            if finished_command(self.folder) is not None or overwrites:
                remove_run(self.folder)
        self.checkpoints.begin(self.folder, manifest_of(self.plain), self.signals)

    def fit(self, model: Any, datamodule: Any, **arguments: Any) -> None:
        """Train, from the run's newest checkpoint if it has any."""
        if self.resumed is not None:
            _say(f"going on from {self.resumed.folder}")
            arguments["ckpt_path"] = str(self.resumed.state)
        if arguments["ckpt_path"]:
            # The target model was scored when the run began.
            cast(Any, self.trainer).num_sanity_val_steps = 0
        arguments["weights_only"] = True
        self.trainer.strategy.checkpoint_io = StateFile(
            is_mapped=self.trainer.strategy.root_device.type != "cpu"
        )
        # Strategies that restore by themselves would build whatever a file names.
        with reading_safely() if arguments["ckpt_path"] else contextlib.nullcontext():
            try:
                self.trainer.fit(model, datamodule=datamodule, **arguments)
            except SystemExit as end:
                # The trainer makes a silent error of it.
                if isinstance(end.__context__, KeyboardInterrupt):
                    raise KeyboardInterrupt from end
                raise

    def before_check(self) -> None:
        """Verify what ``fit`` would, a line each; nothing is loaded, scored or written."""
        model, data = self.model, self.datamodule
        # Takes the quickstart's model where none is trained yet.
        self._untrained = TemporaryDirectory()
        self._check_settings()
        config = load_config(model.pretrained)
        lines = describe_input(data, config)
        check_layers(model, config)
        room = [check_devices(self.trainer)]
        self._no_room: InputError | None = None
        try:
            room.append(self._check_disk())
        except InputError as error:
            # Memory is predicted all the same: the run may be meant for another machine.
            self._no_room = error
        check_training(model, config, run_shape(model, data, self.trainer))
        others, needs = self._others_needed()
        for role in get_args(Role):
            lines.append(describe_other(others, role, needs[role]) or "")
        for line in filter(None, (*lines, *room)):
            _say(line)

    def after_check(self) -> None:
        """Remove what stood for a model that is not trained yet; refuse a full disk."""
        self._untrained.cleanup()
        if self._no_room is not None:
            raise self._no_room

    def _check_settings(self) -> None:
        """Check the input as far as no weight is needed for it."""
        model, data = self.model, self.datamodule
        check_devices(self.trainer)
        self.checkpoints.rating.check()
        check_layout(self.trainer, has_adapter=model.peft is not None)
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

    def before_evaluate(self) -> None:
        """Check the input, without what only training reads."""
        model, data = self.model, self.datamodule
        check_layout(self.trainer, has_adapter=False)
        model.trains = data.trains = data.uses_forget = False
        data.split = None
        if not data.offered_sets:
            raise InputError(data.why_missing())
        config = self.config_init["evaluate"]
        data.further = extras_of(data, config.gibberish_classifier, config.spacy_model)
        if config.lm_eval is not None:
            check_tasks(config.lm_eval.tasks, config.lm_eval.num_fewshot, config.lm_eval.limit)
        self._check_input(whole=False)
        self._score_others()
        self.passes = SecondPasses(
            self.suite, model, self.others, config.gibberish_classifier, config.spacy_model
        )
        self.suite.complete = self.passes
        self.evaluation = Evaluation(self.folder, self._provenance(model.pretrained), data)
        overwrites = self.config["evaluate"].overwrite
        if is_first_process() and not overwrites:
            self.evaluation.check_folder()
        # Broken weights are bad input too, so they are read before anything is removed.
        model.load_ahead(self.trainer)
        if is_first_process() and overwrites:
            remove_run(self.folder, "evaluate")

    def _check_input(self, *, whole: bool) -> None:
        """Read all rows and other models' records, and look up what is known of the model.

        Args:
            whole: Use of what is known only parts of sets that lack no row.
        """
        model, data = self.model, self.datamodule
        given = self.config_init[self.subcommand].conventions
        named = {"definition": Conventions(), "peer": Conventions.peer()}
        data.conventions = given if isinstance(given, Conventions) else named[given]
        data.seed = self.seed if data.seed is None else data.seed
        callbacks = [c for c in self._callbacks() if isinstance(c, EvaluationCallback)]
        for callback in callbacks:
            callback.prepare(data)
            data.require(callback.needs)
        data.check_names()
        if self.subcommand == "check":
            place = Path(self._untrained.name)
            found = quickstart_models.resolve_untrained(model.pretrained, place, self.seed)
        else:
            found = quickstart_models.resolve(model.pretrained, self.seed)
        model.pretrained = found
        data.load(model.pretrained)
        name = (model.pretrained, "model.pretrained")
        if data.tokenizer_name is not None:
            name = (data.tokenizer_name, "data.tokenizer")
        check_vocabulary(data.encoder.tokenizer, load_config(model.pretrained), *name)
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
                model.pretrained, data, self._precision, whole=whole, say=_say
            )
            data.check_rows(model.known)

    def _check_resume(self, path: str) -> None:
        """Refuse to go on with another method, or without the budget it was trained under."""
        model = self.model
        held = check_resume(path, model.settings, model.state_dict())
        is_budgeted = any(isinstance(callback, RetainBudget) for callback in self._callbacks())
        if ("RetainBudget" in held) != is_budgeted:
            had, has = ("a", "no") if "RetainBudget" in held else ("no", "a")
            raise InputError(
                f"ckpt_path {path!r} is of a run with {had} RetainBudget in trainer.callbacks, "
                f"this run has {has} such callback; go on as that run began, or start anew."
            )

    def _score_others(self) -> None:
        """Score the retain and the target model, as far as callbacks read their records."""
        self.others, needs = self._others_needed()
        for role in get_args(Role):
            self.others.need(role, needs[role])

    def _others_needed(self) -> tuple[OtherModels, dict[Role, dict[str, set[Part]]]]:
        """Return the other models, and what callbacks read of each."""
        model, data = self.model, self.datamodule
        callbacks = [c for c in self._callbacks() if isinstance(c, EvaluationCallback)]
        others = OtherModels(data, self.trainer, model.dtype_name, model.attention, self.seed)
        needs: dict[Role, dict[str, set[Part]]] = {
            "retain": _joined(c.retain_needs for c in callbacks),
            "target": _joined(c.target_needs for c in callbacks),
        }
        return others, needs

    def _provenance(self, pretrained: str | None) -> dict[str, Any]:
        """Return what the run's records are made with; None for weights that are not saved."""
        known = pretrained is not None and is_first_process()
        identity = model_identity(cast(str, pretrained)) if known else None
        return describe(
            pretrained or f"{self.model.pretrained}, trained",
            identity,
            self.datamodule.eval_sets,
            self.datamodule.encoder,
            self.model.dtype_name,
            computing_precision(self.trainer),
        )

    @property
    def _precision(self) -> str:
        model = self.model
        precision = computing_precision(self.trainer)
        return precision_name(model.dtype_name, precision, model.attention)

    def _callbacks(self) -> list[Any]:
        return cast(list[Any], cast(Any, self.trainer).callbacks)

    def evaluate(self, model: Any, datamodule: Any, **arguments: Any) -> None:
        """Score what is missing; if that ends early, keep the sets that are done."""
        try:
            cast(UnlearningTrainer, self.trainer).evaluate(model, datamodule, **arguments)
        except SystemExit as end:
            self._save_finished(", the same command goes on from there")
            # Of a signal the trainer makes an exit that looks like success, or like an error.
            is_interrupt = isinstance(end.__context__, KeyboardInterrupt)
            code = 128 + signal.SIGINT if is_interrupt else end.code or 128 + signal.SIGTERM
            raise SystemExit(code) from end
        except KeyboardInterrupt:
            self._save_finished(", the same command goes on from there")
            raise
        except BaseException:
            self._save_finished("")
            raise

    def _save_finished(self, further: str) -> None:
        """Write the sets that are done, and say which."""
        if self.trainer.is_global_zero:
            names = self.evaluation.save_finished(self.model.journal_keys)
            written = ", ".join(names) or "no whole set"
            _say(f"ended early; records written of {written}{further}")

    def after_evaluate(self) -> None:
        """Write records and results, print the table."""
        records = self.model.gather_records()
        if self.trainer.is_global_zero:
            self.evaluation.save(records)
        tasks = self._lm_eval()
        if not self.trainer.is_global_zero:
            return
        details = {**self.suite.details, **self.passes.rows}
        for name in ("tokens", "depth"):
            rows = details.pop(name, None)
            if rows is not None:
                self.evaluation.save_rows(name, rows)
        self.evaluation.write(
            {**self.suite.latest, **tasks},
            self.suite.left_out,
            self.suite.others,
            {
                "histograms": details,
                "data": {
                    "benchmark": self.datamodule.benchmark_name,
                    "root": self.datamodule.root,
                    "hub": self.datamodule.hub,
                    "forget_split": self.datamodule.forget_split,
                },
                "config_hash": run_key(self.plain),
                "seed": self.seed,
                "seconds": round(time.monotonic() - _STARTED, 1),
            },
        )

    def _lm_eval(self) -> dict[str, Metric]:
        """Run the tasks of lm-evaluation-harness that are asked for."""
        given = self.config_init["evaluate"].lm_eval
        if given is None:
            return {}
        lm = self.model.whole_scorer().lm
        if not self.trainer.is_global_zero:
            return {}
        return lm_eval_scores(
            lm,
            self.datamodule.encoder.tokenizer,
            given.tasks,
            num_fewshot=given.num_fewshot,
            limit=given.limit,
            batch_size=self.datamodule.eval_batch_size,
            apply_chat_template=given.apply_chat_template,
        )

    def after_fit(self) -> None:
        """Save the model, write the results, print the table."""
        if self.model.is_stale:
            # Stopped early: the model as it is now has not been scored, or not on every set.
            self.trainer.validate(self.model, datamodule=self.datamodule, verbose=False)
        # All processes bring the model together; the first writes it.
        saved = self._save_model() if self.config["fit"].save_model else None
        if not self.trainer.is_global_zero:
            return
        if saved is None:
            remove_checkpoints(self.folder)
        self.report.write(self.trainer, self.model, self._provenance(saved))
        sys.stdout.write(f"results: {self.folder / 'results.json'}\n")

    def _save_model(self) -> str | None:
        """Save the model, with its scores where a later run that starts from it finds them.

        Returns:
            The folder, on the first process.
        """
        lm, said = self.model.whole_to_save()
        data = self.datamodule
        if lm is None:
            return None
        tokenizer = data.encoder.tokenizer
        where = self.folder / "model"
        saved = str(export_model(lm, tokenizer, where, self.model.adapter, said))
        identity = model_identity(saved)
        for name, eval_set in data.eval_sets.items():
            keys = score_keys(identity, eval_set, data.encoder, self._precision)
            for part, key in keys.items():
                journal = Journal(key)
                journal.append(self.model.scored[name, part])
                journal.close()
        sys.stdout.write(f"model: {saved}\n")
        return saved


_STARTED = time.monotonic()
#: What is said of a run of fit that has ended where no checkpoint is made.
_WHAT_IS_KEPT = "the same command goes on from the newest checkpoint, or starts again without one"
_SETTINGS: Mapping[str, Any] = {
    "model_class": UnlearningModule,
    "datamodule_class": UnlearningDataModule,
    "trainer_class": UnlearningTrainer,
    "parser_class": Parser,
    "seed_everything_default": 0,
    "auto_configure_optimizers": False,
    "save_config_kwargs": {"overwrite": True},
    "parser_kwargs": {"prog": "python -m etw_lightning", "fit": {}, "evaluate": {}, "check": {}},
    "trainer_defaults": {
        "use_distributed_sampler": False,
        "num_sanity_val_steps": -1,
        "enable_checkpointing": False,
        "enable_model_summary": False,
        "log_every_n_steps": 1,
        "gradient_clip_val": 1.0,
    },
}


class RunReader(UnlearningCLI):
    """Reads what the words of a command mean, as ``fit`` does, and runs nothing."""

    def __init__(self) -> None:
        super().__init__(args=[], **_SETTINGS)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Leave everything to ``read``; no random generator is seeded."""
        self.config = Namespace(subcommand=None, seed_everything=False)

    def instantiate_classes(self) -> None:
        """Build nothing."""

    def read(self, words: Sequence[str]) -> dict[str, Any]:
        """Return all settings of a run.

        Args:
            words: The command, from ``fit`` on.

        Raises:
            InputError: If the parser refuses them.
        """
        printed = io.StringIO()
        try:
            with warnings.catch_warnings(), contextlib.redirect_stderr(printed):
                warnings.filterwarnings("ignore", message=".*args parameter is intended.*")
                super().parse_arguments(self.parser, list(words))
        except SystemExit as error:
            raise InputError(printed.getvalue().strip().removeprefix("error: ")) from error
        return cast(dict[str, Any], self.config["fit"].as_dict())


def _say(line: str) -> None:
    if is_first_process():
        sys.stdout.write(f"{line}\n")
        # A log file is read while the run goes on.
        sys.stdout.flush()


def _joined(many: Iterable[Mapping[str, Collection[Part]]]) -> dict[str, set[Part]]:
    """Return all parts of all sets that any of several asks for."""
    joined: dict[str, set[Part]] = {}
    for needs in many:
        for name, parts in needs.items():
            joined.setdefault(name, set()).update(parts)
    return joined


def _root_cause(error: BaseException) -> BaseException:
    """Return the error a chain of errors began with."""
    cause = error.__cause__ or error.__context__
    return error if cause is None else _root_cause(cause)


def _quiet() -> None:
    """Leave out what the libraries say of themselves; warnings that matter stay, one line each."""
    cast(Any, warnings).formatwarning = _one_warning
    warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    # A frozen copy of the target model is meant to be so.
    warnings.filterwarnings("ignore", message=".*in eval mode at the start of training.*")
    warnings.filterwarnings("ignore", message=".*Checkpoint directory.*exists and is not empty.*")
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.seed"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # DeepSpeed, where it is installed, tells everybody without a GPU that there is none.
    logging.getLogger("DeepSpeed").addFilter(
        lambda record: "Setting accelerator to CPU" not in record.getMessage()
    )
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()


def _one_warning(message: Warning | str, *_: Any) -> str:
    return f"warning: {' '.join(str(message).split())}\n"


def _explain(names: list[str]) -> int:
    """Print the pages of some metrics."""
    if not names:
        raise InputError(
            "explain must be given the name of a metric: explain forget_quality. There are "
            f"{', '.join(CATALOGUE)}, and each of their numbers."
        )
    if {"-h", "--help"} & set(names):
        sys.stdout.write(
            "usage: python -m etw_lightning explain NAME [NAME ...]\n\nPrints what a metric, or a "
            f"number of results.json, is. Metrics: {', '.join(CATALOGUE)}.\n"
        )
        return 0
    for name in names:
        sys.stdout.write(f"{explain(name)}\n")
    return 0


def main(args: list[str] | None = None) -> int:
    """Run the command line.

    Returns:
        0 if all went well; with one line on the standard error 2 if the input was refused, 1 if
        training could not go on.
    """
    typed = list(sys.argv[1:] if args is None else args)
    end_with_first()
    try:
        if typed[:1] == ["explain"]:
            return _explain(typed[1:])
        _quiet()
        if typed[:1] == ["export"]:
            return export(typed[1:])
        if typed[:1] == ["sweep"]:
            return sweep(typed[1:], lambda: RunReader().read)
        if typed[:1] == ["fit"]:
            UnlearningCLI.signals = StopSignals()
            UnlearningCLI.signals.install()
        UnlearningCLI(args=args, **_SETTINGS)
    except InputError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except TrainingStoppedError as stopped:
        if is_first_process():
            sys.stderr.write(f"error: {stopped}\n")
        return 1
    except KeyboardInterrupt:
        if is_first_process():
            what = "what was scored is kept" if typed[:1] != ["fit"] else _WHAT_IS_KEPT
            sys.stderr.write(f"interrupted; {what}\n")
        return 128 + signal.SIGINT
    except Preempted as end:
        if end.name and is_first_process():
            sys.stderr.write(f"stopped by {end.name}; {_WHAT_IS_KEPT}\n")
        raise
    finally:
        while UnlearningCLI.held:
            UnlearningCLI.held.pop().release()
    return 0
