"""``UnlearningDataModule``: pairs a forget with a retain stream, and holds what is scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from jsonargparse.typing import NonNegativeFloat, NonNegativeInt, PositiveInt
from torch.utils.data import DataLoader

from etw_lightning.benchmarks.chat import WhichTurns
from etw_lightning.benchmarks.choice import ChoicePrompt
from etw_lightning.benchmarks.given_rows import Rows, as_rows, is_path
from etw_lightning.benchmarks.own import OwnBenchmark
from etw_lightning.benchmarks.r_tofu import ForgetPart
from etw_lightning.benchmarks.readers import find_reader
from etw_lightning.benchmarks.tofu import Columns
from etw_lightning.catalogue.entries import Part
from etw_lightning.data.encode import Template, Truncation
from etw_lightning.data.pairing import Anchor, Pairing
from etw_lightning.data.streams import Alternative
from etw_lightning.files.class_paths import path_of
from etw_lightning.metrics.words import WordRule
from etw_lightning.scoring.batches import Score
from etw_lightning.scoring.evaluation_rows import IDLE, ScoreWork, deal, join_works
from etw_lightning.scoring.parts import parts_of
from etw_lightning.training.comparable_rows import Role, Spans
from etw_lightning.training.loaded_rows import LoadedRows
from etw_lightning.training.strategies import layout_of, steps_by_count
from etw_lightning.training.training_batches import (
    PairedLoader,
    PairedRows,
    PairedSampler,
    RowValues,
    trained_batches,
)
from etw_lightning.value_checks import check_arguments

__all__ = ["Role", "Spans", "UnlearningDataModule"]


class UnlearningDataModule(LoadedRows):
    """Forget and retain rows for training, evaluation sets for scoring.

    Args:
        benchmark: Reader of the rows: ``tofu``, ``muse_news``, ``muse_books``, ``dusk``,
            ``r_tofu``, ``choice``, ``jsonl`` (the user's own files), ``quickstart``, or the class
            path of an ``OwnBenchmark``.
        root: Folder with ``.jsonl`` or ``.jsonl.gz`` files, itself or one folder for each
            benchmark; null reads from the hub.
        hub: Data set on the hub, if not the benchmark's own.
        forget_split: What is to be forgotten; for ``jsonl`` a file.
        retain_split: What is to stay, sets joined by ``+``; null for TOFU means all but the
            forget split.
        forget_part: Of the forget rows of ``r_tofu``: push down ``both`` what is thought and what
            is answered, the ``trace`` alone, or the ``answer`` alone, given the trace.
        holdout_split: Of own rows: rows like the forget set's that no model was trained on, for
            membership.
        retain_weights: Weight of each retain set, >= 0: ``{retain90: 0.5}``; others weigh 1. The
            terms of its rows are multiplied by it, and not divided by the sum of weights.
        leave_out: Rows that are not trained on where they stand in ``retain_split`` or ``split``,
            as earlier requests had them forgotten: a split, or several joined by ``+``. What is
            scored stays whole.
        split: Fine-tune on this split alone; several are joined by ``+``. ``forget_split`` then
            only says what is scored as the forget set.
        rows: Keep only the first rows of a split: ``{forget10: 100}``.
        columns: Column names of the user's own files.
        which_turns: Of own rows of chat: label the assistant's ``last`` turn, or ``all`` of them.
        choice_prompt: How the questions of ``choice`` are put to the model.
        template: How questions are put to the model.
        system_prompt: System turn of the chat template; null sends none.
        template_kwargs: Further variables of the chat template (Llama 3: ``date_string``).
        max_length: Tokens kept of a row; raw text is cut into rows of this many.
        eval_max_length: The same of rows that are scored; null takes ``max_length``, doubled as
            often as scored rows need whose prompt alone is as long.
        truncation: What becomes of a row of a question beyond ``max_length``: ``warn`` cuts it and
            says what is lost, ``error`` refuses it.
        batch_size: Rows of each stream in one micro-batch of one process.
        eval_batch_size: Rows that are scored together.
        max_new_tokens: Greedy tokens after a question in question-answer benchmarks.
        anchor: Whose length an epoch has.
        seed: Of the order of rows; null takes ``seed_everything``.
        num_workers: Processes that build batches.
        retain_results: Records of the retain model: a results folder or ``results.json`` of ours,
            or a published ``TOFU_EVAL.json`` / ``MUSE_EVAL.json``, plain or gzipped.
        retain_model: Retain model to score once, if there are no ``retain_results``.
        target_results: Records of the target model, for what is reported relative to it; as
            ``retain_results``. A run that unlearns takes those of the model it starts from.
        target_model: Target model to score once, if there are no ``target_results``.
        annotations: Marked answers of the forget set: a file with ``answer`` and ``spans``, or a
            published one as docs/annotations.md says; for metrics of marked tokens, and for methods
            that read the marks. ``quickstart:annotations`` stands for the quickstart corpus's.
        alternative: Where second answers come from, for objectives that read them: the ``column``
            ``alternative_answer`` of the forget rows, or a ``refusal`` for each, chosen by the
            seed; null is ``column``.
        alternatives: File of second answers by ``question`` and ``answer``, in the column's place;
            the command ``alternatives`` writes one.
        refusals: File of refusals, one a line; null takes about 20 of our own.
        tokenizer: Where the tokenizer comes from; null takes ``model.pretrained``.
        rouge_tokenizer: What words ROUGE, VerbMem, KnowMem and repetition count: those of the
            ``published`` code, which reads a-z and 0-9 only; the same ``unstemmed``, as the authors
            of MUSE and DUSK do; or ``unicode`` for other scripts.
    """

    def __init__(
        self,
        benchmark: str | OwnBenchmark,
        root: str | None = None,
        hub: str | None = None,
        forget_split: str | None = None,
        retain_split: str | None = None,
        forget_part: ForgetPart = "both",
        holdout_split: str | None = None,
        retain_weights: dict[str, NonNegativeFloat] | None = None,
        split: str | None = None,
        rows: dict[str, PositiveInt] | None = None,
        columns: Columns = Columns(),
        which_turns: WhichTurns = "last",
        choice_prompt: ChoicePrompt = ChoicePrompt(),
        template: Template = "chat",
        system_prompt: str | None = None,
        template_kwargs: dict[str, Any] | None = None,
        max_length: PositiveInt = 512,
        eval_max_length: PositiveInt | None = None,
        truncation: Truncation = "warn",
        batch_size: PositiveInt = 8,
        eval_batch_size: PositiveInt = 32,
        max_new_tokens: PositiveInt = 200,
        anchor: Anchor = "forget",
        seed: NonNegativeInt | None = None,
        num_workers: NonNegativeInt = 0,
        retain_results: str | None = None,
        retain_model: str | None = None,
        target_results: str | None = None,
        target_model: str | None = None,
        annotations: str | None = None,
        alternative: Alternative | None = None,
        alternatives: str | None = None,
        refusals: str | None = None,
        tokenizer: str | None = None,
        rouge_tokenizer: WordRule = "published",
        leave_out: str | None = None,
    ) -> None:
        check_arguments("data", UnlearningDataModule.__init__, locals())
        super().__init__()
        self.rouge_tokenizer = rouge_tokenizer
        self._reader = find_reader(benchmark)
        is_own = isinstance(self._reader, OwnBenchmark)
        self.benchmark_name = path_of(type(self._reader)) if is_own else str(benchmark)
        self.root, self.hub = root, hub
        self.forget_split, self.retain_split, self.split = forget_split, retain_split, split
        self.holdout_split, self.leave_out = holdout_split, leave_out
        self.forget_part = forget_part
        self.limits, self.columns = dict(rows or {}), columns
        self.choice_prompt, self.which_turns = choice_prompt, which_turns
        self.template, self.system_prompt = template, system_prompt
        self.template_kwargs, self.max_length = template_kwargs, max_length
        self.eval_max_length, self.truncation = eval_max_length, truncation
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.max_new_tokens, self.anchor, self.seed = max_new_tokens, anchor, seed
        self.num_workers, self.tokenizer_name = num_workers, tokenizer
        self.retain_model, self.target_model = retain_model, target_model
        self.annotations, self.retain_weights = annotations, dict(retain_weights or {})
        self.alternative, self.alternatives, self.refusals = alternative, alternatives, refusals
        self.results_paths: dict[Role, str | None] = {
            "retain": retain_results,
            "target": target_results,
        }
        #: What the target model says of the rows of some groups, to be put into batches.
        self.references: Mapping[str, RowValues] = {}

    @classmethod
    def from_rows(
        cls,
        forget: Rows | None,
        retain: Rows | None = None,
        tokenizer: Any = None,
        *,
        holdout: Rows | None = None,
        **settings: Any,
    ) -> UnlearningDataModule:
        """Make a data module of rows that are in memory already, or of any file of rows.

        Args:
            forget: What is to be forgotten: texts, rows by column, a ``datasets.Dataset``, or a
                path; None for nothing.
            retain: What is to stay; None for nothing.
            tokenizer: Of the model; None takes the one that its module has or names.
            holdout: Rows like the forget set's that no model was trained on, for membership.
            settings: Arguments of this class, without ``benchmark`` and the splits.

        Raises:
            InputError: If something is neither rows nor a path.
        """
        text = settings.get("columns", Columns()).text
        given: dict[str, list[dict[str, Any]] | None] = {}
        splits: dict[str, Any] = {}
        for name, rows in (("forget", forget), ("retain", retain), ("holdout", holdout)):
            if rows is None and name == "holdout":
                continue
            if rows is not None and is_path(rows):
                splits[f"{name}_split"] = str(rows)
            else:
                splits[f"{name}_split"] = name
                given[name] = None if rows is None else as_rows(rows, name, text)
        data = cls("jsonl", **splits, **settings)
        data.given_rows, data.given_tokenizer = given, tokenizer
        return data

    def setup(self, stage: str) -> None:
        """Load what the model's objectives use, unless the command line has done so."""
        module = cast(Any, self.trainer).lightning_module
        self.follow(module.method)
        self.trains = stage == "fit"
        has_target = self.results_paths["target"] is not None or self.target_model is not None
        if self.trains and self.uses_forget and cast(Any, self.trainer).num_sanity_val_steps:
            self.starts_from_target = not has_target
        if self.given_tokenizer is None and module.given is not None:
            self.given_tokenizer = module.given.tokenizer
        self.load(module.pretrained)

    def pairing(self) -> Pairing:
        """Return the order of rows for this run's devices and accumulation."""
        trainer = self.trainer
        return Pairing(
            num_forget=len(self.streams.get("forget", ())),
            num_retain=len(self.streams.get("retain", ())),
            batch_size=self.batch_size,
            accumulate=trainer.accumulate_grad_batches if trainer else 1,
            world_size=trainer.world_size if trainer else 1,
            anchor=self.anchor,
            seed=self.seed or 0,
            whole_steps=steps_by_count(trainer),
        )

    def paired_rows(self) -> PairedRows:
        """Return the training rows as the steps of this run take them."""
        pairing = self.pairing()
        scale = float(pairing.accumulate * pairing.world_size)
        if steps_by_count(self.trainer):
            # DeepSpeed divides by the micro-batches of a step, and the trainer has done so before.
            scale *= pairing.accumulate
        return PairedRows(
            self._streams, scale, self.encoder.pad_id, self.references, self.skipped_tokens
        )

    def train_dataloader(self) -> PairedLoader:
        """Return the paired loader of this process."""
        pairing, trainer = self.pairing(), cast(Any, self.trainer)
        rows = self.paired_rows()
        rank = trainer.global_rank if trainer else 0

        # Workers fetch before the trainer tells the epoch; `current_epoch` lags after a resume.
        epoch = trainer.fit_loop.epoch_progress.current.processed if trainer else 0
        sampler = PairedSampler(pairing, rank, epoch)
        return PairedLoader(rows, sampler, lambda: trained_batches(trainer), self.num_workers)

    def val_dataloader(self) -> DataLoader[ScoreWork]:
        """Return this process's share of all batches that are to be scored.

        In training every part of every set is there, and the module leaves out what is not due;
        a validation alone leaves out the rows that the module knows already. Of a model in shards
        all processes get equally many batches of each part: each pass needs all of them.
        """
        trainer = cast(Any, self.trainer)
        rank, world = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
        parts = [
            self._rows.works(name, part, self._known(name, part))
            for name, eval_set in self.eval_sets.items()
            for part in parts_of(eval_set)
        ]
        if layout_of(trainer) == "whole":
            works = join_works([work for part in parts for work in part][rank::world])
        else:
            works = [work for part in parts for work in deal(part, rank, world)]
        return DataLoader(works or [IDLE], batch_size=None)  # type: ignore[arg-type]

    def _known(self, name: str, part: Part) -> Sequence[Score]:
        trainer = cast(Any, self.trainer)
        if trainer is None or trainer.state.fn != "validate":
            return ()
        found: Sequence[Score] = trainer.lightning_module.known.get((name, part), ())
        return found

    def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
        """Move training batches; scoring moves its own."""
        # On a processor they are where they belong; to go through them takes a share of a step.
        if isinstance(batch, ScoreWork) or device.type == "cpu":
            return batch
        return super().transfer_batch_to_device(batch, device, dataloader_idx)
