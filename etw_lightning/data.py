"""``UnlearningDataModule``: pairs a forget with a retain stream, and holds what is scored."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, Literal, TypedDict, cast

from jsonargparse.typing import NonNegativeInt, PositiveInt
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from etw_lightning.benchmarks import Benchmark
from etw_lightning.benchmarks.jsonl import JSONL
from etw_lightning.benchmarks.muse import MUSE
from etw_lightning.benchmarks.quickstart_reader import Quickstart
from etw_lightning.benchmarks.source import Source, check_name
from etw_lightning.benchmarks.tofu import TOFU, Columns
from etw_lightning.encode import Encoder, Template
from etw_lightning.models import load_tokenizer
from etw_lightning.pairing import Anchor, Pairing, StepRows
from etw_lightning.retain_results import RetainResults, load_retain_results
from etw_lightning.schema import IGNORE_INDEX, EncodedRow, EvalSet, Example, InputError, Record
from etw_lightning.scoring import ScoreBatch, build_batches, pad_rows
from etw_lightning.signals import Counts

__all__ = ["Batch", "BenchmarkName", "PairedLoader", "UnlearningDataModule", "collate"]

BenchmarkName = Literal["tofu", "muse_news", "muse_books", "jsonl", "quickstart"]


class Batch(TypedDict):
    """One micro-batch: forget rows, then retain rows, then second answers of the forget rows.

    ``sizes`` gives the rows of each group, in this order; ``counts`` what the whole effective
    batch holds of each; ``scale`` undoes the averaging over micro-batches and processes;
    ``row_ids`` names the rows.
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    sizes: dict[str, int]
    counts: dict[str, Counts]
    scale: float
    row_ids: list[str]


def collate(
    groups: dict[str, list[EncodedRow]], counts: dict[str, Counts], scale: float, pad_id: int
) -> Batch:
    """Put the rows of all groups into one right-padded batch."""
    rows = [row for group in groups.values() for row in group]
    ids, mask = pad_rows([row.input_ids for row in rows], pad_id)
    labels, _ = pad_rows([row.labels for row in rows], IGNORE_INDEX)
    return Batch(
        input_ids=ids,
        attention_mask=mask,
        labels=labels,
        sizes={name: len(group) for name, group in groups.items()},
        counts=counts,
        scale=scale,
        row_ids=[row.id for row in rows],
    )


class _PairedRows(Dataset[Batch]):
    """Rows of a step to a batch; indexed by ``StepRows``."""

    def __init__(
        self,
        streams: dict[str, list[EncodedRow]],
        alternatives: list[EncodedRow],
        scale: float,
        pad_id: int,
    ) -> None:
        self.streams, self.alternatives = streams, alternatives
        self.num_labels = {name: [row.num_labels for row in rows] for name, rows in streams.items()}
        self.scale, self.pad_id = scale, pad_id

    def __getitem__(self, step: StepRows) -> Batch:
        groups, counts = {}, {}
        parts = {
            "forget": (step.forget, step.all_forget),
            "retain": (step.retain, step.all_retain),
        }
        for name, (here, everywhere) in parts.items():
            if not here:
                continue
            groups[name] = [_row_or_filler(self.streams[name], index) for index in here]
            labels = self.num_labels[name]
            counts[name] = Counts(sum(labels[index] for index in everywhere), len(everywhere))
        if self.alternatives:
            groups["alternative"] = [
                _row_or_filler(self.alternatives, index) for index in step.forget
            ]
        return collate(groups, counts, self.scale, self.pad_id)


def _row_or_filler(rows: list[EncodedRow], index: int) -> EncodedRow:
    """Return a row; for the index that stands for none, a row without labels."""
    if index >= 0:
        return rows[index]
    return EncodedRow("filler", rows[0].input_ids[:2], (IGNORE_INDEX,) * 2)


class _PairedSampler(Sampler[StepRows]):
    """Yields the steps of one epoch of one process, from where the loader was told to start."""

    def __init__(self, pairing: Pairing, rank: int, epoch: int) -> None:
        self.pairing, self.rank = pairing, rank
        self.epoch, self.start = epoch, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; Lightning calls it before each."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.pairing.num_batches

    def __iter__(self) -> Iterator[StepRows]:
        start, self.start = self.start, 0
        for batch in range(start, len(self)):
            yield self.pairing.step_rows(self.epoch, batch, self.rank)


class PairedLoader(DataLoader[Batch]):
    """Loader of one process; its state is the epoch and the number of batches trained on in it.

    Args:
        rows: What is indexed.
        sampler: Order.
        progress: Gives the batches trained on in this epoch, and the batches of an epoch.
            Batches that were fetched but not trained on must come again after a resume, so
            yields are not counted.
        num_workers: Processes that collate; 0 does it in this one.
    """

    def __init__(
        self,
        rows: Dataset[Batch],
        sampler: _PairedSampler,
        progress: Callable[[], tuple[int, int]],
        num_workers: int = 0,
    ) -> None:
        super().__init__(rows, batch_size=None, sampler=sampler, num_workers=num_workers)
        self.progress = progress

    def state_dict(self) -> dict[str, int]:
        """Return how far training is; an epoch that is done stands at its successor's start."""
        trained, total = self.progress()
        epochs, batches = divmod(trained, max(total, 1))
        return {"epoch": cast(_PairedSampler, self.sampler).epoch + epochs, "batches": batches}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on in ``state["epoch"]`` after ``state["batches"]`` batches."""
        sampler = cast(_PairedSampler, self.sampler)
        sampler.epoch, sampler.start = state["epoch"], state["batches"]


def _warn_of_overlap(forget: list[Example], retain: list[Example]) -> None:
    """Say so if the same text is to be forgotten and to be kept."""
    kept = {(example.question, example.answer) for example in retain}
    shared = sum((example.question, example.answer) in kept for example in forget)
    if shared:
        rank_zero_warn(
            f"{shared} of {len(forget)} forget rows also stand in data.retain_split: "
            "they are pushed down and held at once."
        )


class UnlearningDataModule(LightningDataModule):
    """Forget and retain rows for training, evaluation sets for scoring.

    Args:
        benchmark: Reader of the rows.
        root: Folder with ``.jsonl`` or ``.jsonl.gz`` files, itself or one folder for each
            benchmark; null reads from the hub.
        hub: Data set on the hub, if not the benchmark's own.
        forget_split: What is to be forgotten; for ``jsonl`` a file.
        retain_split: What is to stay; null for TOFU means all but the forget split.
        split: Fine-tune on this split alone; several are joined by ``+``. ``forget_split`` then
            only says what is scored as the forget set.
        rows: Keep only the first rows of a split: ``{forget10: 100}``.
        columns: Column names of the user's own files.
        template: How questions are put to the model.
        system_prompt: System turn of the chat template; null sends none.
        template_kwargs: Further variables of the chat template (Llama 3: ``date_string``).
        max_length: Tokens kept of a row; raw text is cut into rows of this many.
        batch_size: Rows of each stream in one micro-batch of one process.
        eval_batch_size: Rows that are scored together.
        max_new_tokens: Greedy tokens after a question in question-answer benchmarks.
        anchor: Whose length an epoch has.
        seed: Of the order of rows; null takes ``seed_everything``.
        num_workers: Processes that build batches.
        retain_results: Records of the retain model: a results folder or ``results.json`` of ours,
            or a published ``TOFU_EVAL.json`` / ``MUSE_EVAL.json``, plain or gzipped.
        retain_model: Retain model to score once, if there are no ``retain_results``.
        tokenizer: Where the tokenizer comes from; null takes ``model.pretrained``.
    """

    def __init__(
        self,
        benchmark: BenchmarkName,
        root: str | None = None,
        hub: str | None = None,
        forget_split: str | None = None,
        retain_split: str | None = None,
        split: str | None = None,
        rows: dict[str, PositiveInt] | None = None,
        columns: Columns = Columns(),
        template: Template = "chat",
        system_prompt: str | None = None,
        template_kwargs: dict[str, Any] | None = None,
        max_length: PositiveInt = 512,
        batch_size: PositiveInt = 8,
        eval_batch_size: PositiveInt = 32,
        max_new_tokens: PositiveInt = 200,
        anchor: Anchor = "forget",
        seed: NonNegativeInt | None = None,
        num_workers: NonNegativeInt = 0,
        retain_results: str | None = None,
        retain_model: str | None = None,
        tokenizer: str | None = None,
    ) -> None:
        super().__init__()
        self.benchmark_name, self.root, self.hub = benchmark, root, hub
        self.forget_split, self.retain_split, self.split = forget_split, retain_split, split
        self.limits, self.columns = dict(rows or {}), columns
        self.template, self.system_prompt = template, system_prompt
        self.template_kwargs, self.max_length = template_kwargs, max_length
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.max_new_tokens, self.anchor, self.seed = max_new_tokens, anchor, seed
        self.num_workers, self.tokenizer_name = num_workers, tokenizer
        self.retain_results_path, self.retain_model = retain_results, retain_model
        self.uses_forget = self.uses_retain = True
        self.uses_alternative = False
        self.wanted_sets: set[str] = set()
        self.streams: dict[str, list[EncodedRow]] = {}
        self.alternatives: list[EncodedRow] = []
        self.eval_sets: dict[str, EvalSet] = {}
        self.retain_results: RetainResults | None = None
        self._encoder: Encoder | None = None
        self._eval_batches: dict[str, list[ScoreBatch]] = {}

    @property
    def encoder(self) -> Encoder:
        """The run's encoder, once ``load`` has run."""
        assert self._encoder is not None, "load() first"
        return self._encoder

    def require(self, names: Collection[str]) -> None:
        """Score these evaluation sets in the validation loop."""
        self.wanted_sets.update(names)

    def check_names(self) -> None:
        """Check what needs no file and no model, and so can be refused at once.

        Raises:
            InputError: If there is no such split or evaluation set, or ``split`` meets a forget
                objective.
        """
        benchmark = self._benchmark()
        for name in sorted(self.wanted_sets):
            check_name("each set that trainer.callbacks score", name, benchmark.EVAL_SETS)
        if self.split is not None and (self.uses_forget or not self.uses_retain):
            raise InputError(
                f"data.split is {self.split!r}: fine-tuning on one split needs model.forget null "
                "and model.retain a class; leave data.split out to unlearn data.forget_split."
            )

    def load(self, pretrained: str) -> None:
        """Read and encode all rows that training and scoring need, and check them.

        Args:
            pretrained: Where the tokenizer comes from, unless ``tokenizer`` says otherwise.

        Raises:
            InputError: On anything that would stop or falsify the run later.
        """
        if self._encoder is None:
            key = "data.tokenizer" if self.tokenizer_name else "model.pretrained"
            tokenizer = load_tokenizer(self.tokenizer_name or pretrained, key)
            self._encoder = Encoder(
                tokenizer, self.template, self.max_length, self.system_prompt, self.template_kwargs
            )
        benchmark = self._benchmark()
        if self.split is not None:
            if not self.streams:
                rows = benchmark.examples(self.split, "data.split")
                self.streams = {"retain": self._encode(rows, "data.split", self.split)}
        elif not self.streams:
            self._load_streams(benchmark)
        missing = self.wanted_sets - set(self.eval_sets)
        if missing:
            self.eval_sets |= benchmark.eval_sets(sorted(missing))
            for name in missing:
                self._eval_batches[name] = build_batches(
                    self.eval_sets[name], self.encoder, self.eval_batch_size
                )
        if self.retain_results is None and self.retain_results_path is not None:
            self.retain_results = load_retain_results(self.retain_results_path)

    def retain_records(self, name: str) -> list[Record]:
        """Return the retain model's records of a set.

        Raises:
            InputError: If there are none, or of other rows; says how to make them.
        """
        examples = self.eval_sets[name].examples
        if self.retain_results is None:
            benchmark, how = self._benchmark(), ""
            if self.benchmark_name == "tofu":
                how = (
                    " Or make one: python -m etw_lightning fit --config configs/tofu_finetune.yaml "
                    f"--data.split {benchmark.retain_split} "
                    f"--data.forget_split {benchmark.forget_split}"
                )
            raise InputError(
                "data.retain_results is missing: forget quality and privleak compare with the "
                "retain model. Give the folder of a run that made one, a published TOFU_EVAL.json "
                f"or MUSE_EVAL.json, or data.retain_model to score one now.{how}"
            )
        records = self.retain_results.require(name, len(examples))
        for record, example in zip(records, examples, strict=True):
            # Published logs decode answers with other spaces; some hold none.
            said, meant = ("".join(text.split()) for text in (record.answer, example.answer))
            if said and said != meant:
                raise InputError(
                    f"data.retain_results: {self.retain_results.source} holds another answer in "
                    f"row {example.id} than this run's data; it was made for other rows."
                )
        return records

    def _load_streams(self, benchmark: Benchmark) -> None:
        """Read the forget and the retain stream, as far as the objectives use them."""
        if self.uses_forget:
            key, split = "data.forget_split", benchmark.forget_split
            examples = benchmark.examples(split, key)
            self.streams["forget"] = self._encode(examples, key, split)
            if self.uses_alternative:
                self.alternatives = [self._alternative(example) for example in examples]
        if self.uses_retain:
            key, split = "data.retain_split", benchmark.retain_split
            kept = benchmark.examples(split, key)
            self.streams["retain"] = self._encode(kept, key, split)
            if self.uses_forget:
                _warn_of_overlap(examples, kept)

    def _encode(self, examples: list[Example], key: str, split: str) -> list[EncodedRow]:
        if all(example.question is None for example in examples):
            rows = self.encoder.chunk(examples, split)
        else:
            rows = [self.encoder.encode(example) for example in examples]
        if not rows:
            raise InputError(f"{key} is {split!r}, which has no rows to train on.")
        return rows

    def _alternative(self, example: Example) -> EncodedRow:
        if example.alternative_answer is None:
            raise InputError(
                f"Row {example.id} has no second answer, which model.forget needs; name its "
                "column in data.columns."
            )
        return self.encoder.encode(example, example.alternative_answer)

    def _benchmark(self) -> Benchmark:
        """Return the reader, with the split names the user gave or the benchmark's own."""
        source = Source(self.hub, Path(self.root) if self.root else None, self.limits)
        splits = {"forget_split": self.forget_split, "retain_split": self.retain_split}
        given = {key: value for key, value in splits.items() if value is not None}
        if self.benchmark_name == "tofu":
            return TOFU(source, max_new_tokens=self.max_new_tokens, **given)
        if self.benchmark_name == "quickstart":
            return Quickstart(source, max_new_tokens=self.max_new_tokens, **given)
        if self.benchmark_name == "jsonl":
            files = {key: given.get(key) or self.split or "" for key in splits}
            return JSONL(source, columns=self.columns, max_new_tokens=self.max_new_tokens, **files)
        corpus: Literal["news", "books"] = "news" if self.benchmark_name == "muse_news" else "books"
        return MUSE(source, corpus=corpus, **given)

    def setup(self, stage: str) -> None:
        """Load what the model's objectives use, unless the command line has done so."""
        module = cast(Any, self.trainer).lightning_module
        self.uses_forget = module.forget is not None
        self.uses_retain = module.retain is not None
        self.uses_alternative = "alternative" in module.needs
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
        )

    def train_dataloader(self) -> PairedLoader:
        """Return the paired loader of this process."""
        pairing, trainer = self.pairing(), cast(Any, self.trainer)
        scale = float(pairing.accumulate * pairing.world_size)
        rows = _PairedRows(self.streams, self.alternatives, scale, self.encoder.pad_id)
        rank = trainer.global_rank if trainer else 0

        def progress() -> tuple[int, int]:
            # Not `completed`: that is one too few in a checkpoint saved at a batch's end.
            trained = trainer.fit_loop.epoch_loop.batch_progress.current.processed
            return int(trained), int(trainer.num_training_batches)

        # Workers fetch before the trainer tells the epoch; `current_epoch` lags after a resume.
        epoch = trainer.fit_loop.epoch_progress.current.processed if trainer else 0
        sampler = _PairedSampler(pairing, rank, epoch)
        return PairedLoader(rows, sampler, progress, self.num_workers)

    def val_dataloader(self) -> list[DataLoader[ScoreBatch]]:
        """Return one loader for each evaluation set, with this process's share of its batches.

        A process that none is left for scores the first one again, which changes nothing: the
        trainer takes no empty loader, and would leave the process out of what all must join.
        """
        rank = self.trainer.global_rank if self.trainer else 0
        world = self.trainer.world_size if self.trainer else 1
        batches = (self._eval_batches[name] for name in self.eval_sets)
        return [
            DataLoader(part[rank::world] or part[:1], batch_size=None)  # type: ignore[arg-type]
            for part in batches
        ]

    def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
        """Move training batches; scoring moves its own."""
        if isinstance(batch, ScoreBatch):
            return batch
        return super().transfer_batch_to_device(batch, device, dataloader_idx)
