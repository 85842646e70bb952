"""``evaluate`` on the command line: what is done is kept if it ends early."""

from __future__ import annotations

import signal
import time
from typing import Any, cast

from etw_lightning.commands.run.run_checks import RunChecks, say
from etw_lightning.metrics import Metric
from etw_lightning.runs.evaluate import Evaluation
from etw_lightning.runs.folder import remove_run
from etw_lightning.runs.key import run_key
from etw_lightning.runs.second_passes import SecondPasses, extras_of
from etw_lightning.runs.trainer import UnlearningTrainer
from etw_lightning.schema import InputError
from etw_lightning.scoring.lm_eval_bridge import check_tasks, lm_eval_scores
from etw_lightning.training.strategies import check_layout, is_first_process

__all__ = ["EvaluateCommand"]

_STARTED = time.monotonic()


class EvaluateCommand(RunChecks):
    """Scores a model without training it."""

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
            say(f"ended early; records written of {written}{further}")

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
        told = {
            "precision_of_others": self.datamodule.precision_of_others,
            "lost_labels": self.datamodule.lost_scored,
            "changed": self._changes(),
        }
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
                **{name: found for name, found in told.items() if found},
                "config_hash": run_key(self.plain),
                "seed": self.seed,
                "seconds": round(time.monotonic() - _STARTED, 1),
            },
            self.evaluation.judged(records),
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
            further_ends=self.datamodule.encoder.end_ids,
        )
