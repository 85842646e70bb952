"""The command line: parses, fills in what must agree, checks everything, then trains."""

from __future__ import annotations

import logging
import os
import re
import sys
import time
import warnings
from pathlib import Path
from typing import Any, cast

from jsonargparse import ActionYesNo, Namespace
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger

from etw_lightning.callbacks import EvaluationCallback
from etw_lightning.data import UnlearningDataModule
from etw_lightning.export import export_model
from etw_lightning.models import check_vocabulary, load_config
from etw_lightning.module import UnlearningModule
from etw_lightning.record_cache import cached_records, records_key, score_model, store_records
from etw_lightning.retain_results import RetainResults
from etw_lightning.run_report import RunReport, is_finished
from etw_lightning.schema import InputError

__all__ = ["Parser", "UnlearningCLI", "main"]

#: The paper calls the weight of the forget term lambda, which is no name in Python.
_LAMBDA = ("--model.lambda", "--model.forget_weight")


class Parser(LightningArgumentParser):
    """A parser whose errors are one line that names the key; exit status 2."""

    def parse_args(self, args: Any = None, **kwargs: Any) -> Any:
        """Parse; ``--model.lambda`` is read as ``--model.forget_weight``."""
        given = sys.argv[1:] if args is None else args
        if isinstance(given, list):
            given = [re.sub(rf"^{_LAMBDA[0]}(?==|$)", _LAMBDA[1], word) for word in given]
        return super().parse_args(given, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> Any:
        """Print one line and exit."""
        sys.stderr.write(f"error: {one_line(message)}\n")
        self.exit(2)


def one_line(message: str) -> str:
    """Return the parser's nested message as one line: the key's whole path and what is wrong.

    Example:
        >>> one_line('Parser key "model":\\n  Parser key "lr":\\n    Not of type PositiveFloat')
        '--model.lr: Not of type PositiveFloat'
    """
    keys = re.findall(r'Parser key "([^"]+)"', message)
    lines = [line.strip(" -") for line in message.strip().splitlines()]
    reason = re.sub(r'^.*Parser key "[^"]+":\s*', "", lines[-1])
    return f"--{'.'.join(keys)}: {reason}" if keys else " ".join(lines)


class UnlearningCLI(LightningCLI):
    """``fit``: everything that can be wrong is found before anything is written."""

    trainer: Trainer
    model: UnlearningModule
    datamodule: UnlearningDataModule

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

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Give the trainer the run's folder, its logger and the report."""
        config = self.config[self.subcommand] if self.subcommand else self.config
        self.folder = run_folder(config.output_dir, config.config)
        if is_finished(self.folder) and not config.overwrite:
            raise InputError(
                f"--output_dir {self.folder} holds a finished run; give another folder, or "
                "--overwrite to run again."
            )
        settings = {"default_root_dir": str(self.folder)}
        if config.trainer.logger in (None, True):
            settings["logger"] = TensorBoardLogger(self.folder.parent, self.folder.name, "")
        self.seed = int(config.seed_everything or 0)
        plain = {key: value for key, value in config.as_dict().items() if key not in _NOT_HASHED}
        self.report = RunReport(self.folder, plain, self.seed)
        trainer = super().instantiate_trainer(**{**kwargs, **settings})
        cast(Any, trainer).callbacks.append(self.report)
        return trainer

    def instantiate_classes(self) -> None:
        """Build model, data and trainer; a refused value is one line."""
        try:
            super().instantiate_classes()
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
        data.load(model.pretrained)
        check_vocabulary(data.encoder.tokenizer, load_config(model.pretrained), model.pretrained)
        self._retain_records({name for c in callbacks for name in c.retain_sets})
        self._target_keys = {
            name: records_key(model.pretrained, eval_set, data.encoder, self._precision)
            for name, eval_set in data.eval_sets.items()
        }
        for name, key in self._target_keys.items():
            records = cached_records(key, name)
            if records is not None:
                model.target_records[name] = records

    @property
    def _precision(self) -> str:
        return f"{self.model.dtype_name} {self.trainer.precision}"

    def _callbacks(self) -> list[Any]:
        return cast(list[Any], cast(Any, self.trainer).callbacks)

    def _retain_records(self, names: set[str]) -> None:
        """Make sure that the retain model's records are there; score ``retain_model`` if asked."""
        data = self.datamodule
        if names and data.retain_results is None and data.retain_model is not None:
            records = score_model(
                data.retain_model,
                data.eval_sets,
                data.encoder,
                data.eval_batch_size,
                dtype=self.model.dtype_name,
                precision=str(self.trainer.precision),
                context=self.trainer.precision_plugin.forward_context(),
            )
            data.retain_results = RetainResults(f"data.retain_model {data.retain_model}", records)
        for name in names:
            data.retain_records(name, len(data.eval_sets[name].examples))

    def after_fit(self) -> None:
        """Save the model, write the results, print the table."""
        if not self.trainer.is_global_zero:
            return
        for name, records in self.report.target.items():
            if name not in self.model.target_records:
                store_records(self._target_keys[name], name, records)
        config = self.config[self.subcommand] if self.subcommand else self.config
        if config.save_model:
            assert self.model.scorer is not None
            tokenizer = self.datamodule.encoder.tokenizer
            saved = export_model(self.model.scorer.lm, tokenizer, self.folder / "model")
            sys.stdout.write(f"model: {saved}\n")
        self.report.write(self.trainer, self.model)
        sys.stdout.write(f"results: {self.folder / 'results.json'}\n")


_NOT_HASHED = ("config", "output_dir", "overwrite", "save_model")


def run_folder(output_dir: str | None, config_files: Any) -> Path:
    """Return the run's folder: the one asked for, or a new one named after its first file.

    Processes of one run agree on it through the environment.
    """
    if output_dir is not None:
        return Path(output_dir)
    first = next((str(file) for file in config_files or ()), "run")
    stamp = os.environ.setdefault(
        "ETW_RUN_STAMP",
        os.environ.get("SLURM_JOB_ID")
        or os.environ.get("TORCHELASTIC_RUN_ID")
        or time.strftime("%Y%m%d-%H%M%S"),
    )
    return Path("runs") / Path(first).stem / stamp


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
