"""The command line: fills in what must agree, checks everything, then trains or evaluates."""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Callable, Mapping
from functools import reduce
from operator import or_
from typing import Any, Literal, get_args

from jsonargparse import ActionYesNo, Namespace
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from etw_lightning.boards.loggers import give_defaults, place_loggers
from etw_lightning.callbacks.collapse import Collapse
from etw_lightning.callbacks.findings import TrainingStoppedError
from etw_lightning.commands.parser import Parser
from etw_lightning.commands.quiet import be_quiet
from etw_lightning.commands.refusals.messages import one_line
from etw_lightning.commands.run.check import CheckCommand
from etw_lightning.commands.run.run_checks import say
from etw_lightning.commands.run.run_trainer import RunTrainer
from etw_lightning.commands.run.weights import WeightsCommand
from etw_lightning.files.places import check_written, expand_home
from etw_lightning.files.setting_names import as_typed, options_of
from etw_lightning.notices import for_screen, printable, program
from etw_lightning.runs.checkpointing import Checkpoints
from etw_lightning.runs.companions import end_with_first
from etw_lightning.runs.cpu_precision import settle_precision
from etw_lightning.runs.folder import FinishedError, run_folder, run_label
from etw_lightning.runs.launched import is_first_to_say, is_lost_peer
from etw_lightning.runs.preemption import Preempted, StopSignals, take_for_termination
from etw_lightning.runs.trainer import UnlearningTrainer
from etw_lightning.schema import Conventions, InputError
from etw_lightning.training.datamodule import Role, UnlearningDataModule
from etw_lightning.training.module import UnlearningModule
from etw_lightning.training.strategies import is_first_process

__all__ = ["SETTINGS", "UnlearningCLI", "main"]


class UnlearningCLI(RunTrainer, CheckCommand, WeightsCommand):
    """``fit`` and ``evaluate``: what can be wrong is found before anything is written."""

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Make a parser that takes no abbreviated options: a typo could be one."""
        give_defaults()
        _read_whole_numbers_first(Trainer.__init__)
        return super().init_parser(**{**kwargs, "allow_abbrev": False})

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> Any:
        """Say in a line how a command is used: to name every option took two hundred."""
        usage = f"{program()} {subcommand} [--config FILE ...] [--KEY VALUE ...]"
        return super()._prepare_subcommand_parser(klass, subcommand, usage=usage, **kwargs)

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """``fit``, ``evaluate``, ``check`` and ``weights``, which take the same files."""
        return {
            "fit": LightningCLI.subcommands()["fit"],
            "evaluate": {"model", "datamodule"},
            "check": {"model", "datamodule"},
            "weights": {"model", "datamodule"},
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
        has_command = "subcommand" in self.config
        self._settle(self.config[self.config.subcommand] if has_command else self.config)

    def _settle(self, config: Namespace) -> None:
        """Settle what the parser leaves open, and refuse what it lets through."""
        expand_home(config)
        self.changed = {}
        found = None
        if config.get("trainer") is not None:
            # Before runs are told from each other by their settings.
            found = settle_precision(config.trainer, Parser.typed)
        if found is not None:
            self.changed["trainer.precision"] = found
        for role in get_args(Role):
            _check_typed_model(config, role)
        if not 0 <= int(config.seed_everything) < 2**32:
            raise InputError(
                f"seed_everything must be a whole number from 0 to {2**32 - 1}; "
                f"got {config.seed_everything}."
            )

    def instantiate_classes(self) -> None:
        """Build model, data and trainer; a refused value is one line."""
        config = self.config[self.subcommand]
        self.plain = config.as_dict()
        for key, change in self.changed.items():
            say(f"{key}: {change.used}, not {change.asked}: {change.why}; --{key} keeps it")
        prefix = "evaluate-" * (self.subcommand == "evaluate")
        label = "" if prefix else run_label(self.plain, config.config)
        self.folder = run_folder(
            config.output_dir, config.config, prefix, self._unfinished, label=label
        )
        if config.trainer is not None:
            place_loggers(config.trainer.logger, self.folder)
        # Loggers make their folders as soon as they are built.
        check_written((config.trainer or Namespace()).as_dict(), self.folder)
        try:
            super().instantiate_classes()
        except InputError:
            raise
        except ValueError as error:
            raise InputError(one_line(str(_root_cause(error)))) from error


def _read_whole_numbers_first(function: Callable[..., Any]) -> None:
    """Let ``function``'s arguments that take both kinds of number take a whole one as it is.

    Of two unions that differ in order alone ``typing`` keeps the one that was made first, and the
    parser goes by order: after a library that wrote ``Union[float, int]``, 1 batch is all of them.
    """
    hints = function.__annotations__
    for name, hint in hints.items():
        kinds = get_args(hint)
        if int in kinds and float in kinds:
            hints[name] = reduce(or_, sorted(kinds, key=lambda kind: kind is float))


def _check_typed_model(config: Namespace, role: Role) -> None:
    """Refuse another model that is typed where a file's records of it come first."""
    model, results = f"data.{role}_model", f"data.{role}_results"
    typed = {name for name, _ in options_of(Parser.typed)}
    records = config.get(results)
    if model in typed and results not in typed and config.get(model) and records:
        raise InputError(
            f"{model} {config.get(model)!r} would not be scored: {results} {records!r} of the "
            f"configuration comes first; give --{results} null as well."
        )


#: What is said of a run of fit that has ended where no checkpoint is made.
_WHAT_IS_KEPT = "the same command goes on from the newest checkpoint, or starts again without one"
#: How every command of a run is made.
SETTINGS: Mapping[str, Any] = {
    "model_class": UnlearningModule,
    "datamodule_class": UnlearningDataModule,
    "trainer_class": UnlearningTrainer,
    "parser_class": Parser,
    "seed_everything_default": 0,
    "auto_configure_optimizers": False,
    "save_config_kwargs": {"overwrite": True},
    "parser_kwargs": {name: {} for name in UnlearningCLI.subcommands()},
    "trainer_defaults": {
        "use_distributed_sampler": False,
        "num_sanity_val_steps": -1,
        "enable_checkpointing": False,
        "enable_model_summary": False,
        "log_every_n_steps": 1,
        "gradient_clip_val": 1.0,
    },
}


def _say_refusal(reason: str) -> None:
    """Write why a run is refused, once where all its processes find the same."""
    if is_first_to_say(reason):
        sys.stderr.write(for_screen(f"error: {printable(reason)}", is_error=True) + "\n")


def _root_cause(error: BaseException) -> BaseException:
    """Return the error a chain of errors began with."""
    cause = error.__cause__ or error.__context__
    return error if cause is None else _root_cause(cause)


def _of_setting(error: Exception) -> str | None:
    """Return what Lightning says of a setting that it finds wrong only once there are batches."""
    said = " ".join(str(error).split())
    named = re.search("`(limit_train_batches|val_check_interval)", said)
    return None if named is None else f"trainer.{named[1]} does not fit the rows: {said}"


def main(args: list[str] | None = None) -> int:
    """Run ``fit``, ``evaluate``, ``check`` or ``weights``.

    Args:
        args: Words of the command; those of the process by default.

    Returns:
        0 if all went well; with one line on the standard error 2 if the input was refused, 1 if
        training could not go on.
    """
    typed = list(sys.argv[1:] if args is None else args)
    end_with_first()
    try:
        be_quiet(typed)
        if typed[:1] == ["fit"]:
            UnlearningCLI.signals = StopSignals()
            UnlearningCLI.signals.install()
        elif typed[:1] == ["evaluate"]:
            take_for_termination()
        UnlearningCLI(args=args, **SETTINGS)
    except InputError as error:
        _say_refusal(as_typed(str(error), typed))
        return 2
    except FinishedError as finished:
        if typed[:1] == ["fit"]:
            say(f"{finished}; nothing is left to do, --overwrite runs it again")
        return 0
    except (MisconfigurationException, ValueError) as error:
        reason = _of_setting(error)
        if reason is None:
            raise
        _say_refusal(as_typed(reason, typed))
        return 2
    except TrainingStoppedError as stopped:
        if is_first_process():
            line = f"error: {as_typed(str(stopped), typed)}"
            sys.stderr.write(for_screen(line, is_error=True) + "\n")
        return 1
    except KeyboardInterrupt:
        if is_first_process():
            what = "what was scored is kept" if typed[:1] != ["fit"] else _WHAT_IS_KEPT
            sys.stderr.write(f"interrupted; {what}\n")
        return 128 + signal.SIGINT
    except Preempted as end:
        if end.name and not end.is_told and is_first_process():
            sys.stderr.write(f"stopped by {end.name}; {_WHAT_IS_KEPT}\n")
        raise
    except RuntimeError as error:
        if not is_lost_peer(error):
            raise
        sys.stderr.write(f"error: another process of this run has ended; {_WHAT_IS_KEPT}\n")
        return 1
    finally:
        while UnlearningCLI.held:
            UnlearningCLI.held.pop().release()
    return 0
