"""The rows of a run, read and encoded: those that are trained on, and those that are scored."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from etw_lightning.benchmarks import Benchmark
from etw_lightning.benchmarks.chat import WhichTurns
from etw_lightning.benchmarks.choice import ChoicePrompt
from etw_lightning.benchmarks.formats import FORMATS
from etw_lightning.benchmarks.given_rows import GivenSource
from etw_lightning.benchmarks.r_tofu import ForgetPart
from etw_lightning.benchmarks.readers import make_reader
from etw_lightning.benchmarks.source import check_name
from etw_lightning.benchmarks.tofu import Columns
from etw_lightning.catalogue.entries import Part
from etw_lightning.data.encode import Encoder, Template, Truncation
from etw_lightning.data.lost_labels import LostLabels
from etw_lightning.data.marks import Marker
from etw_lightning.data.stored_rows import sizes
from etw_lightning.data.streams import Streams, StreamSettings, kept_reader, read_streams
from etw_lightning.method import Method
from etw_lightning.metrics.words import WordRule
from etw_lightning.models.loading import load_tokenizer
from etw_lightning.notices import warn_first
from etw_lightning.schema import EncodedRow, Example, InputError
from etw_lightning.scoring.batches import Score
from etw_lightning.scoring.gold_words import check_words
from etw_lightning.scoring.lengths import room_for, tell_lost_scored
from etw_lightning.scoring.parts import parts_of
from etw_lightning.training.comparable_rows import ComparableRows

__all__ = ["LoadedRows"]


class LoadedRows(ComparableRows):
    """The part of ``UnlearningDataModule`` that reads and encodes rows."""

    #: Of ``UnlearningDataModule``'s arguments, those that say what is read and how it is encoded.
    root: str | None
    hub: str | None
    forget_split: str | None
    retain_split: str | None
    holdout_split: str | None
    split: str | None
    leave_out: str | None
    forget_part: ForgetPart
    limits: dict[str, int]
    columns: Columns
    choice_prompt: ChoicePrompt
    which_turns: WhichTurns
    template: Template
    system_prompt: str | None
    template_kwargs: dict[str, Any] | None
    max_length: int
    eval_max_length: int | None
    truncation: Truncation
    eval_batch_size: int
    max_new_tokens: int
    tokenizer_name: str | None
    rouge_tokenizer: WordRule

    def __init__(self) -> None:
        super().__init__()
        #: Whether the streams are needed; scoring alone does without their files.
        self.trains = True
        self.uses_forget = self.uses_retain = True
        self.uses_alternative = self.uses_marks = self.uses_words = False
        #: What marks words of the forget rows; None takes ``annotations``.
        self.marker: Marker = None
        self.skipped_tokens = 0
        self._marks_reader = "the method"
        #: Rows that are in memory already, by split; None for a split that was left out.
        self.given_rows: dict[str, list[dict[str, Any]] | None] = {}
        #: A tokenizer that is in memory already; taken in place of one that is named.
        self.given_tokenizer: Any = None
        self._streams = Streams()
        self._lost_scored: dict[str, LostLabels] = {}
        #: Sets whose lengths have been looked at, with what is scored of them.
        self._measured: set[tuple[str, bool, bool]] = set()
        #: What encodes rows that are scored, and rows that are trained on.
        self._encoder: Encoder | None = None
        self._train_encoder: Encoder | None = None

    @property
    def encoder(self) -> Encoder:
        """What encodes rows that are scored, once ``load`` has run."""
        assert self._encoder is not None, "load() first"
        return self._encoder

    @property
    def train_encoder(self) -> Encoder:
        """What encodes rows that are trained on, once ``load`` has run."""
        assert self._train_encoder is not None, "load() first"
        return self._train_encoder

    @property
    def continues(self) -> bool:
        """Whether the model is to go on with prompts, as far as sets have been asked for."""
        return any("generation" in parts_of(one) for one in self.eval_sets.values())

    @property
    def streams(self) -> dict[str, Sequence[EncodedRow]]:
        """Rows of each group that is trained on: ``forget``, ``retain``, ``alternative``."""
        return self._streams.rows

    @property
    def lost_labels(self) -> dict[str, dict[str, Any]]:
        """What groups that are trained on have lost to ``max_length``, ready for JSON."""
        return {name: lost.to_json() for name, lost in self._streams.lost.items()}

    @property
    def lost_scored(self) -> dict[str, dict[str, Any]]:
        """What answers of sets that are scored have lost to the length, ready for JSON."""
        return {name: lost.to_json() for name, lost in self._lost_scored.items()}

    @property
    def repeated_rows(self) -> dict[str, Any] | None:
        """Which forget rows repeat others, ready for JSON; None if none does."""
        return None if self._streams.repeats is None else self._streams.repeats.to_json()

    def check_names(self) -> None:
        """Check what needs no file and no model, and so can be refused at once.

        Raises:
            InputError: If there is no such split or evaluation set, ``split`` meets a forget
                objective, or something is given that would not be read.
        """
        benchmark = self._benchmark()
        for name in sorted(self._rows.wanted):
            check_name("each set that trainer.callbacks score", name, benchmark.EVAL_SETS)
        if self.trains:
            StreamSettings.of(self).check()
        if self.trains and self.uses_marks and self.marker is None and self.annotations is None:
            own = ", or quickstart:annotations" if self.benchmark_name == "quickstart" else ""
            raise InputError(
                f"data.annotations is missing: {self._marks_reader} reads the words marked in it. "
                f"Give a file ({FORMATS}) with spans or target_words of each answer of "
                f"data.forget_split{own}."
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
            tokenizer = self.given_tokenizer
            if tokenizer is None:
                tokenizer = load_tokenizer(self.tokenizer_name or pretrained, key)
            self._encoder = self._encoder_of(tokenizer, "eval_max_length")
            self._train_encoder = self._encoder_of(tokenizer, "max_length")
        benchmark = self._benchmark()
        if self.trains and not self.streams:
            self._streams = read_streams(benchmark, self.train_encoder, StreamSettings.of(self))
            self._check_something_is_left()
        self._load_scored(benchmark)
        if self.rouge_tokenizer != "unicode":
            check_words(self.eval_sets)
        self._load_results()

    def _load_scored(self, benchmark: Benchmark) -> None:
        """Read what is scored, make room for long prompts, and tell what is cut off answers."""
        self._rows.load(benchmark, self.encoder, self.eval_batch_size)
        wanted = {(name, one.losses, one.gradient_norm) for name, one in self.eval_sets.items()}
        if wanted <= self._measured:
            return
        self._measured |= wanted
        if self.eval_max_length is None:
            length, longest = room_for(self.eval_sets.values(), self.encoder)
            if longest:
                warn_first(
                    f"scored rows have prompts of up to {longest} tokens, for which "
                    f"{self.encoder.length_key} = {self.encoder.max_length} leaves no answer: they "
                    f"are scored up to {length} tokens; data.eval_max_length sets another length."
                )
                self._encoder = self._encoder_of(self.encoder.tokenizer, "eval_max_length", length)
                self._rows.load(benchmark, self.encoder, self.eval_batch_size)
        for name, eval_set in self.eval_sets.items():
            lost = tell_lost_scored(eval_set, self.encoder)
            if lost is not None:
                self._lost_scored[name] = lost

    def _encoder_of(self, tokenizer: Any, key: str, room: int | None = None) -> Encoder:
        """Return what encodes rows to train on, or rows to score, which may be longer.

        Args:
            tokenizer: The run's.
            key: Which length.
            room: Length of rows to score, where they need another than ``max_length``.
        """
        given = self.eval_max_length if room is None else room
        own = given if key == "eval_max_length" else None
        return Encoder(
            tokenizer,
            self.template,
            self.max_length if own is None else own,
            self.system_prompt,
            self.template_kwargs,
            conventions=self.conventions,
            truncation=self.truncation,
            length_key="data.max_length" if own is None else f"data.{key}",
            thinks=self.benchmark_name == "r_tofu",
        )

    def _check_something_is_left(self) -> None:
        """Refuse a method that leaves no forget token to push down."""
        rows = self.streams.get("forget", ())
        if rows and sizes(rows).num_labels.max() <= self.skipped_tokens:
            raise InputError(
                f"model.forget.skip_first is {self.skipped_tokens}, but no answer of "
                "data.forget_split has more tokens; give less."
            )
        if self.uses_marks and not any(any(marks) for marks in self._streams.marks):
            raise InputError(
                f"{self._marks_reader} reads marked words, but no word of data.forget_split is "
                "marked; check data.annotations, or the model of the Spacy weighting."
            )

    def check_rows(self, known: Mapping[tuple[str, Part], Collection[Score]]) -> None:
        """Find the rows that can't be scored, before anything is.

        Args:
            known: Scores there are already; what is complete is not looked at again.

        Raises:
            InputError: On a row that can't be encoded.
        """
        self._rows.check(known)

    def _benchmark(self) -> Benchmark:
        """Return the reader, with the split names the user gave or the benchmark's own."""
        root = Path(self.root) if self.root else None
        source = GivenSource(self.hub, root, self.limits, given=self.given_rows)
        splits = {"forget_split": self.forget_split, "retain_split": self.retain_split}
        if self.benchmark_name == "jsonl":
            splits = {key: name or self.split or "" for key, name in splits.items()}
        splits["holdout_split"] = self.holdout_split
        given = {key: name for key, name in splits.items() if name is not None}
        own = {"columns": self.columns, "which_turns": self.which_turns}
        if self.holdout_split is not None and not self.is_own:
            raise InputError(
                f"data.holdout_split is {self.holdout_split!r}, but only own rows (data.benchmark "
                f"jsonl) are read by it; {self.benchmark_name} has its own. Leave it out."
            )
        how = (own, self.choice_prompt, self.max_new_tokens, self.forget_part)
        return make_reader(self._reader, source, given, *how)

    def follow(self, method: Method) -> None:
        """Read what this method uses, and nothing else."""
        self.uses_forget = method.forget is not None
        self.uses_retain = method.retain is not None
        self.uses_alternative = "alternative" in method.needs
        self.uses_marks = "marked" in method.needs
        self.uses_words = "words" in method.needs
        self.marker = method.weighting.marker
        in_weighting = "marked" in method.weighting.needs
        part = method.weighting if in_weighting else method.forget
        key = "model.weighting" if in_weighting else "model.forget"
        self._marks_reader = f"{key} {type(part).__name__}"
        self.skipped_tokens = method.forget.skipped_tokens if method.forget is not None else 0

    def forget_examples(self) -> list[Example]:
        """Return the rows of the forget split as they are read, before they are encoded.

        Raises:
            InputError: If they can't be read.
        """
        benchmark = self._benchmark()
        return benchmark.examples(benchmark.forget_split, "data.forget_split")

    def retain_examples(self) -> Iterator[Example]:
        """Give the rows of the retain split that are trained on, before they are encoded.

        Raises:
            InputError: If they can't be read, or ``leave_out`` leaves none.
        """
        benchmark = self._benchmark()
        split, key = benchmark.retain_split, "data.retain_split"
        yield from kept_reader(benchmark, split, key, self.leave_out)()
