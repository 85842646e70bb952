"""``fit``: goes on from where it was broken off, trains, saves the model and writes the results."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

from lightning.pytorch.utilities import rank_zero_warn

from etw_lightning.callbacks.retain_budget import RetainBudget
from etw_lightning.commands.run.run_checks import RunChecks, say
from etw_lightning.files.checkpoint_folder import remove_checkpoints, saved_checkpoints
from etw_lightning.files.safe_files import check_checkpoint, reading_safely
from etw_lightning.files.stored_weights import find_checkpoint
from etw_lightning.memory.check_memory import warning_of_memory
from etw_lightning.memory.model_checks import check_parts
from etw_lightning.models.checkpoints import check_resume
from etw_lightning.models.export import export_model
from etw_lightning.models.loading import load_config
from etw_lightning.runs.folder import finished_command, remove_run
from etw_lightning.runs.model_card import Base, find_licence, rows_fingerprint, write_card
from etw_lightning.runs.resume import (
    check_same_run,
    check_unchanged,
    is_same_run,
    lock_run,
    manifest_of,
    newest_checkpoint,
    unfinished_run,
)
from etw_lightning.runs.run_end import RunEnd
from etw_lightning.runs.state_file import StateFile
from etw_lightning.schema import InputError
from etw_lightning.scoring.cache.journals import Journal
from etw_lightning.scoring.cache.keys import model_identity, score_keys
from etw_lightning.training.references.cached import make_references
from etw_lightning.training.strategies import is_first_process

__all__ = ["FitCommand"]


class FitCommand(RunChecks):
    """Trains; what can be wrong is found before anything is written."""

    def _unfinished(self, parent: Path) -> Path | None:
        """Find a run of this command that was broken off, if this one is to go on with it."""
        if self.subcommand != "fit":
            return None
        return unfinished_run(parent, self.plain)

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
        check_same_run(self.plain, found)
        if is_first_process():
            check_checkpoint(found.state, "output_dir")
        self.resumed = found

    def _lock(self) -> None:
        if not self.held:
            lock = lock_run(self.folder)
            self.held.extend([lock] if lock is not None else [])

    def before_fit(self) -> None:
        """Check the input from beginning to end."""
        model, data = self.model, self.datamodule
        self._check_settings()
        if is_first_process():
            check_parts(model, load_config(model.pretrained))
            self._check_disk()
            warning = warning_of_memory(model, data, self.trainer)
            if warning is not None:
                rank_zero_warn(warning)
        # Broken weights are bad input too, so they are read before the first file is written, and
        # before other models are scored, which may take long.
        model.load_ahead(self.trainer)
        model.check_lengths(data)
        model.check_optimizer()
        ckpt_path = self.config["fit"].ckpt_path
        if ckpt_path and self.resumed is None:
            self._check_resume(ckpt_path)
        if ckpt_path or self.resumed is not None:
            # What is known is known of the model before training.
            model.known, model.journal_keys = {}, {}
        # Processes that were started together wait for each other here, where nothing times out.
        self._score_others()
        make_references(model, data, self.trainer)
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
            say(f"going on from {self.resumed.folder}")
            arguments["ckpt_path"] = str(self.resumed.state)
        elif arguments["ckpt_path"]:
            arguments["ckpt_path"] = str(find_checkpoint(arguments["ckpt_path"], "ckpt_path"))
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

    def after_fit(self) -> None:
        """Save the model, write the results, print the table.

        Raises:
            InputError: If there was no step at all.
        """
        if self.trainer.global_step == 0:
            limit = self.config["fit"].trainer.max_time
            if limit is None:
                raise InputError(
                    "trainer.callbacks: one of them stopped the run before its first step, so that "
                    "nothing was trained; leave it out."
                )
            raise InputError(
                f"trainer.max_time {limit} ended the run before its first step, so that nothing "
                "was trained; give it more time. The same command begins anew."
            )
        if self.model.is_stale:
            # Stopped early: the model as it is now has not been scored, or not on every set.
            self.trainer.validate(self.model, datamodule=self.datamodule, verbose=False)
        # All processes bring the model together; the first writes it.
        saved = self._save_model() if self.config["fit"].save_model else None
        if not self.trainer.is_global_zero:
            return
        card = partial(self._write_card, Path(saved)) if saved is not None else None
        RunEnd(self.report, self.trainer, self.model).write(self._provenance(saved), card)
        if saved is None:
            # Not before: without them, a run that is killed here would start from zero.
            remove_checkpoints(self.folder)
        sys.stdout.write(f"results: {self.folder / 'results.json'}\n")

    def _write_card(self, folder: Path, results: Mapping[str, Any]) -> None:
        """Write the card of the saved model; the base is named as it was typed."""
        start = self.model.pretrained
        base = Base(self.plain["model"]["pretrained"], model_identity(start), find_licence(start))
        rows = self.datamodule.streams.items()
        marks = {name: (len(found), rows_fingerprint(found)) for name, found in rows}
        write_card(folder, results, self.plain, base, marks)

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
                journal = Journal(key, of_rows=True)
                # Nothing is, where trainer.limit_val_batches 0 leaves evaluations out.
                journal.append(self.model.scored.get((name, part), ()))
                journal.close()
        sys.stdout.write(f"model: {saved}\n")
        return saved
