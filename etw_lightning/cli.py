"""The command line: parses, fills in what must agree, checks everything, then trains."""

from __future__ import annotations

import inspect
import json
import logging
import os
import re
import shutil
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, cast

from jsonargparse import ActionYesNo
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from etw_lightning import callbacks as evaluation
from etw_lightning import forget, metrics, quickstart_models, retain, weighting
from etw_lightning.callbacks import EvaluationCallback
from etw_lightning.data import UnlearningDataModule
from etw_lightning.export import export_model
from etw_lightning.messages import one_line
from etw_lightning.models import check_vocabulary, load_config
from etw_lightning.module import UnlearningModule
from etw_lightning.record_cache import cached_records, records_key, score_model, store_records
from etw_lightning.retain_results import RetainResults
from etw_lightning.run_report import RunReport, is_finished
from etw_lightning.schema import InputError

__all__ = ["Parser", "UnlearningCLI", "main"]

#: The paper calls the weight of the forget term lambda, which is no name in Python.
_LAMBDA = ("--model.lambda", "--model.forget_weight")


def _classes(module: ModuleType, parent: type) -> dict[str, type]:
    """Return a module's public classes of one kind, without the kind itself."""
    found = {name: getattr(module, name) for name in module.__all__ if name != parent.__name__}
    return {name: item for name, item in found.items() if isinstance(item, type)}


#: What a message says may stand for a class.
_CLASSES = {
    "model.weighting": _classes(weighting, weighting.TokenWeighting),
    "model.forget": _classes(forget, forget.ForgetObjective),
    "model.retain": _classes(retain, retain.RetainObjective),
    "trainer.callbacks": _classes(evaluation, EvaluationCallback),
}


class Parser(LightningArgumentParser):
    """A parser whose errors are one line that names the key; exit status 2."""

    #: Words of the command line, for messages.
    typed: ClassVar[Sequence[str]] = ()

    def parse_args(self, args: Any = None, *rest: Any, **kwargs: Any) -> Any:
        """Parse; ``--model.lambda`` is read as ``--model.forget_weight``."""
        given = list(sys.argv[1:] if args is None else args)
        given = [re.sub(rf"^{_LAMBDA[0]}(?==|$)", _LAMBDA[1], word) for word in given]
        return super().parse_args(given, *rest, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> Any:
        """Print one line and exit; a parser inside another one raises what the outer one prints."""
        if not self.exit_on_error:
            return super().error(message, ex)
        short, plain = (name.lstrip("-") for name in _LAMBDA)
        line = one_line(message, [short, *_known_keys(self)], _CLASSES, self.typed)
        if any(word.startswith("--model.la") for word in self.typed):  # mistyped too
            line = line.replace(plain, short)
        else:  # a file takes the plain name only
            line = line.replace(f"mean {short!r}", f"mean {plain!r}")
        sys.stderr.write(f"error: {line}\n")
        self.exit(2)


def _known_keys(parser: Any) -> list[str]:
    """Return the keys of a parser, of its subcommands and of the classes that may be named."""
    keys = [
        f"{key}.{name}"
        for key, classes in _CLASSES.items()
        for kind in classes.values()
        for name in inspect.signature(kind).parameters
    ]
    for action in parser._actions:
        options = [option.lstrip("-") for option in action.option_strings]
        keys += [option for option in options if not option.endswith(".help")]
        for child in (getattr(action, "_name_parser_map", None) or {}).values():
            keys += _known_keys(child)
    return keys


class UnlearningCLI(LightningCLI):
    """``fit``: everything that can be wrong is found before anything is written."""

    trainer: Trainer
    model: UnlearningModule
    datamodule: UnlearningDataModule

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Make a parser that takes no abbreviated options: a typo could be one."""
        return super().init_parser(**{**kwargs, "allow_abbrev": False})

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Only ``fit``."""
        return {"fit": LightningCLI.subcommands()["fit"]}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add what belongs to the run as a whole."""
        parser.add_argument(
            "--output_dir",
            type=str | None,
            default=None,
            help="Folder of the run; null makes a new one under runs/.",
        )
        parser.add_argument(
            "--overwrite",
            action=ActionYesNo,
            default=False,
            help="Run again in a folder that holds a finished run.",
        )
        parser.add_argument(
            "--save_model",
            action=ActionYesNo(yes_prefix="", no_prefix="no_"),
            default=True,
            help="Save the trained model as a Hugging Face folder in the run's folder.",
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, and refuse a seed that the random generators do not take."""
        Parser.typed = list(sys.argv[1:] if args is None else args)
        try:
            super().parse_arguments(parser, args)
        except UnicodeDecodeError as error:
            parser.error(f"Problems parsing config: {error}")
        config = self.config[self.config.subcommand] if "subcommand" in self.config else self.config
        if not 0 <= int(config.seed_everything) < 2**32:
            raise InputError(
                f"seed_everything must be a whole number from 0 to {2**32 - 1}; "
                f"got {config.seed_everything}."
            )

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Give the trainer the run's folder, its logger and the report."""
        config = self.config[self.subcommand] if self.subcommand else self.config
        self.folder = run_folder(config.output_dir, config.config)
        _check_run(config, self.folder)
        if is_finished(self.folder) and not config.overwrite:
            raise InputError(
                f"output_dir {self.folder} holds a finished run; give another folder, or "
                "--overwrite to run again."
            )
        settings: dict[str, Any] = {"default_root_dir": str(self.folder)}
        if config.trainer.logger in (None, True):
            settings["logger"] = TensorBoardLogger(self.folder.parent, self.folder.name, "")
        self.seed = int(config.seed_everything or 0)
        plain = {key: value for key, value in config.as_dict().items() if key not in _NOT_HASHED}
        label = "fine-tuned" if config.model.forget is None else "unlearned"
        self.report = RunReport(self.folder, plain, self.seed, label)
        try:
            trainer = super().instantiate_trainer(**{**kwargs, **settings})
        except (ValueError, MisconfigurationException) as error:
            # Lightning names its arguments in backticks, some of them.
            reason = re.sub("^`(\\w+)`", r"trainer.\1", " ".join(str(error).split()))
            is_named = reason.startswith("trainer.")
            raise InputError(reason if is_named else f"trainer: {reason}") from error
        cast(Any, trainer).callbacks.append(self.report)
        return trainer

    def instantiate_classes(self) -> None:
        """Build model, data and trainer; a refused value is one line."""
        try:
            super().instantiate_classes()
        except InputError:
            raise
        except ValueError as error:
            raise InputError(one_line(str(_root_cause(error)))) from error

    def before_fit(self) -> None:
        """Check the input from beginning to end."""
        model, data = self.model, self.datamodule
        callbacks = [c for c in self._callbacks() if isinstance(c, EvaluationCallback)]
        data.seed = self.seed if data.seed is None else data.seed
        data.uses_forget = model.forget is not None
        data.uses_retain = model.retain is not None
        data.uses_alternative = "alternative" in model.needs
        for callback in callbacks:
            data.require(callback.eval_sets)
        data.check_names()
        model.pretrained = quickstart_models.resolve(model.pretrained, self.seed)
        if data.retain_model is not None and data.retain_results_path is None:
            data.retain_model = quickstart_models.resolve(data.retain_model, self.seed)
        data.load(model.pretrained)
        given = (model.pretrained, "model.pretrained")
        if data.tokenizer_name is not None:
            given = (data.tokenizer_name, "data.tokenizer")
        check_vocabulary(data.encoder.tokenizer, load_config(model.pretrained), *given)
        self._retain_records({name for c in callbacks for name in c.retain_sets})
        self._target_keys = {
            name: records_key(model.pretrained, eval_set, data.encoder, self._precision)
            for name, eval_set in data.eval_sets.items()
        }
        for name, key in self._target_keys.items():
            records = cached_records(key, name)
            if records is not None:
                model.target_records[name] = records
        # Broken weights are bad input too, so they are read before the first file is written.
        model.configure_model()
        if cast(Any, rank_zero_only).rank == 0 and is_finished(self.folder):
            remove_run(self.folder)

    @property
    def _precision(self) -> str:
        return f"{self.model.dtype_name} {self.trainer.precision}"

    def _callbacks(self) -> list[Any]:
        return cast(list[Any], cast(Any, self.trainer).callbacks)

    def _retain_records(self, names: set[str]) -> None:
        """Make sure that the retain model's records are there; score ``retain_model`` if asked."""
        data = self.datamodule
        if names and data.retain_results is None and data.retain_model is not None:
            key = "data.retain_model"
            config = load_config(data.retain_model, key)
            check_vocabulary(data.encoder.tokenizer, config, data.retain_model, key)
            records = score_model(
                data.retain_model,
                data.eval_sets,
                data.encoder,
                data.eval_batch_size,
                dtype=self.model.dtype_name,
                precision=str(self.trainer.precision),
                context=self.trainer.precision_plugin.forward_context,
                place=self._place,
            )
            data.retain_results = RetainResults(f"data.retain_model {data.retain_model}", records)
        for name in sorted(names):
            data.retain_records(name)
        if "forget" in names:
            metrics.truth_ratios(data.retain_records("forget"))
        if "privleak_forget" in names:
            pair = (data.retain_records(f"privleak_{part}") for part in ("forget", "holdout"))
            metrics.min_k_auc(*pair)

    def _place(self, scorer: Any) -> Any:
        """Put a model where the run's own is, in the run's precision."""
        module = self.trainer.precision_plugin.convert_module(scorer)
        return module.to(self.trainer.strategy.root_device)

    def after_fit(self) -> None:
        """Save the model, write the results, print the table."""
        if self.report.is_stale(self.datamodule.eval_sets, self.trainer.global_step):
            # Stopped early: the model as it is now has not been scored, or not on every set.
            self.trainer.validate(self.model, datamodule=self.datamodule, verbose=False)
        if not self.trainer.is_global_zero:
            return
        for name, records in self.report.target.items():
            if name not in self.model.target_records:
                store_records(self._target_keys[name], name, records)
        config = self.config[self.subcommand] if self.subcommand else self.config
        if config.save_model:
            self._save_model()
        self.report.write(self.trainer, self.model)
        sys.stdout.write(f"results: {self.folder / 'results.json'}\n")

    def _save_model(self) -> None:
        """Save the model, with its records where a later run that starts from it finds them."""
        assert self.model.scorer is not None
        data = self.datamodule
        saved = export_model(self.model.scorer.lm, data.encoder.tokenizer, self.folder / "model")
        for name, records in self.report.unlearned.items():
            key = records_key(str(saved), data.eval_sets[name], data.encoder, self._precision)
            store_records(key, name, records)
        sys.stdout.write(f"model: {saved}\n")


_NOT_HASHED = ("config", "output_dir", "overwrite", "save_model")


def run_folder(output_dir: str | None, config_files: Any) -> Path:
    """Return the run's folder: the one asked for, or a new one named after its first file.

    Processes that this one starts take its name from the environment; of others, only the first
    writes.
    """
    if output_dir is not None:
        return Path(output_dir)
    first = next((str(file) for file in config_files or ()), "run")
    stamp = os.environ.setdefault("ETW_RUN_STAMP", time.strftime("%Y%m%d-%H%M%S"))
    return Path("runs") / Path(first).stem / stamp


#: Settings of the trainer by which an evaluation set could be scored in part: what they may be.
_WHOLE: dict[str, tuple[Any, ...]] = {
    "fast_dev_run": (False,),
    "limit_val_batches": (1.0, 0, None),
    "num_sanity_val_steps": (-1, 0),
    "overfit_batches": (0.0, 0),
}


def _check_run(config: Any, folder: Path) -> None:
    """Refuse what the trainer would take, and fail over or measure wrongly later."""
    trainer = config.trainer
    if trainer is None:
        raise InputError("trainer must be pairs {name: value}; got null.")
    if trainer.accumulate_grad_batches < 1:
        raise InputError(
            "trainer.accumulate_grad_batches must be a whole number > 0; "
            f"got {trainer.accumulate_grad_batches}."
        )
    for key, allowed in _WHOLE.items():
        value = getattr(trainer, key)
        # 1 is one batch, 1.0 is all of them.
        if not any(value == one and type(value) is type(one) for one in allowed):
            raise InputError(
                f"trainer.{key} must be {' or '.join(map(json.dumps, allowed))}; got "
                f"{json.dumps(value)}: sets are scored whole. data.rows takes fewer rows of them."
            )
    if config.ckpt_path and not Path(config.ckpt_path).exists():
        raise InputError(f"ckpt_path must be a checkpoint; there is no file {config.ckpt_path!r}.")
    file = next((path for path in (folder, *folder.parents) if path.is_file()), None)
    if file is not None:
        raise InputError(f"output_dir must be a folder; {str(file)!r} is a file.")


def remove_run(folder: Path) -> None:
    """Remove what an earlier run left in its folder, and nothing else."""
    for pattern in ("results.json", "records", "model", "config.yaml", "hparams.yaml", "events.*"):
        for path in folder.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _root_cause(error: BaseException) -> BaseException:
    """Return the error a chain of errors began with."""
    cause = error.__cause__ or error.__context__
    return error if cause is None else _root_cause(cause)


def _quiet() -> None:
    """Leave out what the libraries say of themselves; warnings that matter stay."""
    warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*Checkpoint directory.*exists and is not empty.*")
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.seed"):
        logging.getLogger(name).setLevel(logging.WARNING)
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()


def main(args: list[str] | None = None) -> int:
    """Run the command line.

    Returns:
        0 if all went well, 2 if the input was refused, with one line on the standard error.
    """
    _quiet()
    try:
        UnlearningCLI(
            UnlearningModule,
            UnlearningDataModule,
            args=args,
            parser_class=Parser,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            save_config_kwargs={"overwrite": True},
            parser_kwargs={"prog": "python -m etw_lightning", "fit": {}},
            trainer_defaults={
                "use_distributed_sampler": False,
                "num_sanity_val_steps": -1,
                "enable_checkpointing": False,
                "enable_model_summary": False,
                "log_every_n_steps": 1,
                "gradient_clip_val": 1.0,
            },
        )
    except InputError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0
