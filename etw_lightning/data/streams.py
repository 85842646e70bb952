"""The rows that are trained on, read and encoded, with their second answers, marks and weights."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from etw_lightning.benchmarks import Benchmark
from etw_lightning.benchmarks.jsonl import JSONL
from etw_lightning.benchmarks.own import OwnBenchmark
from etw_lightning.benchmarks.r_tofu import without_knowing
from etw_lightning.data.encode import Encoder, is_raw
from etw_lightning.data.encode_many import encode_each
from etw_lightning.data.kept_rows import encode_split
from etw_lightning.data.lost_labels import LostLabels, Repeats, said_by, tell_lost, tell_repeats
from etw_lightning.data.marks import Marker, mark_rows, number_words
from etw_lightning.data.refusals import REFUSALS, pick_refusal, read_refusals
from etw_lightning.data.second_answers import SecondAnswers, pair_of, read_second_answers
from etw_lightning.notices import program, warn_first
from etw_lightning.schema import EncodedRow, Example, InputError

__all__ = [
    "Alternative",
    "StreamSettings",
    "Streams",
    "kept_reader",
    "read_streams",
    "second_answers",
]

#: Where second answers come from: a column of the forget rows, or a list of refusals.
Alternative = Literal["column", "refusal"]


@dataclass
class Streams:
    """Encoded rows of each group, and what is known of them row by row.

    Args:
        rows: ``forget``, ``retain`` and ``alternative``, as far as they are used; the second
            answer of forget row i is alternative row i.
        marks: For each forget row, which of its positions hold a label in marked text; empty if
            nothing is marked.
        annotated: As ``marks``, of the words that ``annotations`` marks, which weights are compared
            with whatever the method reads; empty without.
        words: For each forget row, which word the label at each of its positions belongs to, -1
            for none; empty if nothing reads them.
        retain_weights: Weight of each retain row; empty if none were given.
        lost: What groups have lost to ``max_length``, by group.
        repeats: Forget rows that repeat others; None if none does.
    """

    rows: dict[str, Sequence[EncodedRow]] = field(default_factory=dict)
    marks: list[tuple[bool, ...]] = field(default_factory=list)
    annotated: list[tuple[bool, ...]] = field(default_factory=list)
    words: list[tuple[int, ...]] = field(default_factory=list)
    retain_weights: list[float] = field(default_factory=list)
    lost: dict[str, LostLabels] = field(default_factory=dict)
    repeats: Repeats | None = None


@dataclass(frozen=True)
class StreamSettings:
    """What is read, and from where.

    Args:
        uses_forget: A forget objective reads the forget stream.
        uses_retain: A retain objective reads the retain stream.
        uses_alternative: The forget objective reads second answers.
        uses_marks: The weighting or the forget objective reads marked words.
        uses_words: The weighting reads which word a label belongs to.
        split: Fine-tune on this split; the streams are not read then.
        leave_out: Split whose rows are neither kept nor learnt.
        alternative: Source of the second answers; None is ``column``.
        refusals: File of refusals; None takes our own.
        alternatives: File of second answers; None reads the column.
        annotations: File of marked answers.
        marker: What marks words.
        retain_weights: Weight of each retain set by its name; one that is not named weighs 1.
        seed: Of the choice of refusals; None is 0.
    """

    uses_forget: bool = True
    uses_retain: bool = True
    uses_alternative: bool = False
    uses_marks: bool = False
    uses_words: bool = False
    split: str | None = None
    leave_out: str | None = None
    alternative: Alternative | None = None
    refusals: str | None = None
    alternatives: str | None = None
    annotations: str | None = None
    marker: Marker = None
    retain_weights: Mapping[str, float] | None = None
    seed: int | None = None

    @classmethod
    def of(cls, data: Any) -> StreamSettings:
        """Return the settings that something else has as attributes of the same names."""
        return cls(**{one.name: getattr(data, one.name) for one in fields(cls)})

    def check(self) -> None:
        """Refuse what contradicts itself, before any file is read.

        Raises:
            InputError: If ``split`` meets a forget objective, or something is given that would
                not be read.
        """
        if self.split is not None and (self.uses_forget or not self.uses_retain):
            raise InputError(
                f"data.split is {self.split!r}: fine-tuning on one split needs model.forget null "
                "and model.retain a class; leave data.split out to unlearn data.forget_split."
            )
        if self.refusals is not None and self.alternative != "refusal":
            raise InputError(
                f"data.refusals is {self.refusals!r}, but data.alternative is not refusal, so it "
                "would not be read; give --data.alternative refusal, or leave data.refusals out."
            )
        if self.alternatives is not None and self.alternative == "refusal":
            raise InputError(
                f"data.alternatives is {self.alternatives!r}, but data.alternative is refusal, so "
                "it would not be read; leave one of them out."
            )
        if self.retain_weights and (self.split is not None or not self.uses_retain):
            why = "data.split takes their place" if self.split else "model.retain is null"
            raise InputError(
                "data.retain_weights weighs the sets of data.retain_split, which are not read: "
                f"{why}. Leave data.retain_weights out."
            )
        if self.leave_out is not None and not self.uses_retain:
            raise InputError(
                f"data.leave_out is {self.leave_out!r}, but data.retain_split is not read: "
                "model.retain is null. Leave data.leave_out out."
            )


def read_streams(benchmark: Benchmark, encoder: Encoder, settings: StreamSettings) -> Streams:
    """Read all streams that the objectives use, or the one of fine-tuning.

    A row of raw text never holds text of two retain sets. Labels that are lost to ``max_length``,
    and forget rows that repeat others, are told.

    Raises:
        InputError: On anything that would stop or falsify training later.
    """
    streams = _read(benchmark, encoder, settings)
    for name, rows in streams.rows.items():
        lost = tell_lost(name, rows, encoder.max_length)
        if lost is not None:
            streams.lost[name] = lost
    return streams


def _read(benchmark: Benchmark, encoder: Encoder, settings: StreamSettings) -> Streams:
    if settings.split is not None:
        read = kept_reader(benchmark, settings.split, "data.split", settings.leave_out)
        split = encode_split(read, encoder, "data.split", whole=settings.split)
        return Streams({"retain": split.rows})
    streams, forget = Streams(), list[Example]()
    if settings.uses_forget:
        key, name = "data.forget_split", benchmark.forget_split
        forget = benchmark.examples(name, key)
        streams.rows["forget"] = encode_split(lambda: forget, encoder, key, whole=name).rows
        streams.repeats = tell_repeats(forget)
        if settings.uses_alternative:
            streams.rows["alternative"] = second_answers(forget, encoder, settings)
        if settings.uses_marks:
            streams.marks = mark_rows(
                forget, streams.rows["forget"], encoder, settings.marker, settings.annotations
            )
        streams.annotated = _annotated(forget, streams, encoder, settings)
        if settings.uses_words:
            streams.words = number_words(forget, streams.rows["forget"], encoder)
    if settings.uses_retain:
        key = "data.retain_split"
        read = kept_reader(benchmark, benchmark.retain_split, key, settings.leave_out)
        pushed = {said_by(example) for example in forget}
        held = set[tuple[object, ...]]()

        def look(example: Example) -> None:
            said = said_by(example)
            if said in pushed:
                held.add(said)

        split = encode_split(read, encoder, key, look=look)
        streams.rows["retain"] = split.rows
        if settings.retain_weights:
            weights = _checked_weights(settings.retain_weights, [name for name, _ in split.sets])
            streams.retain_weights = [weights[name] for name, num in split.sets for _ in range(num)]
        _warn_of_overlap(sum(said_by(example) in held for example in forget), len(forget))
    return streams


def _annotated(
    forget: Sequence[Example], streams: Streams, encoder: Encoder, settings: StreamSettings
) -> list[tuple[bool, ...]]:
    """Return which labels lie in annotated words, where there are annotations of such rows."""
    if settings.annotations is None or is_raw(forget) or any(one.labels_turns for one in forget):
        return []
    if settings.uses_marks and settings.marker is None:
        return streams.marks
    return mark_rows(forget, streams.rows["forget"], encoder, annotations=settings.annotations)


def _reader(benchmark: Benchmark, split: str, key: str) -> Callable[[], Iterable[Example]]:
    """Return what gives the rows of a split, one by one where the benchmark can."""
    if isinstance(benchmark, JSONL | OwnBenchmark):
        return functools.partial(benchmark.stream, split, key)
    return functools.partial(benchmark.examples, split, key)


def kept_reader(
    benchmark: Benchmark, split: str, key: str, leave_out: str | None = None
) -> Callable[[], Iterable[Example]]:
    """Return what gives rows that are to be learnt or kept, one by one where the benchmark can.

    Args:
        benchmark: The reader.
        split: Their split, or several joined by ``+``.
        key: Configuration key that errors name.
        leave_out: Split whose rows are none of them, or several joined by ``+``.

    Raises:
        InputError: If there is no such split; of the reading, if no row is left.
    """
    read = _reader(benchmark, split, key)
    if leave_out is None:
        return read
    gone = {said_by(one) for one in benchmark.examples(leave_out, "data.leave_out")}

    def rest() -> Iterator[Example]:
        is_empty = True
        for example in read():
            if said_by(example) not in gone:
                is_empty = False
                yield example
        if is_empty:
            raise InputError(
                f"data.leave_out {leave_out!r} leaves no row of {key} {split!r}; give another "
                "split."
            )

    return rest


def second_answers(
    examples: Sequence[Example], encoder: Encoder, settings: StreamSettings
) -> list[EncodedRow]:
    """Return the question of each example with its second answer.

    Args:
        examples: Forget rows, in the order of their stream.
        encoder: Of the run.
        settings: ``alternative``, ``alternatives``, ``refusals`` and ``seed`` are read.

    Raises:
        InputError: If a row has no question, or no second answer.
    """
    raw = next((example for example in examples if example.question is None), None)
    if raw is not None:
        raise InputError(
            f"Row {raw.id} is raw text, which has no question to give a second answer to, as "
            "model.forget needs; use rows with questions, or another model.forget."
        )
    chat = next((example for example in examples if example.labels_turns), None)
    if chat is not None:
        raise InputError(
            f"data.which_turns is 'all', but model.forget needs a second answer to row {chat.id}, "
            "which is there for the last turn alone; set it to 'last'."
        )
    if settings.alternative == "refusal":
        given = REFUSALS if settings.refusals is None else read_refusals(settings.refusals)
        seed = settings.seed or 0
        answers = [
            without_knowing(example, pick_refusal(given, seed, place))
            for place, example in enumerate(examples)
        ]
    elif settings.alternatives is not None:
        found = read_second_answers(settings.alternatives)
        answers = [_in_file(example, found, settings.alternatives) for example in examples]
    else:
        answers = [_column(example) for example in examples]
    return encode_each(examples, encoder, answers)


def _column(example: Example) -> str:
    if example.alternative_answer is None:
        raise InputError(
            f"Row {example.id} has no second answer, which model.forget needs: no column "
            "'alternative_answer', or another one named by data.columns.alternative_answer. Fill "
            f"it, have a model write some ({program()} alternatives --help), or take refusals: "
            "--data.alternative refusal"
        )
    return example.alternative_answer


def _in_file(example: Example, found: SecondAnswers, path: str) -> str:
    second = found.get(pair_of(example.question, example.answer))
    if second is None:
        raise InputError(
            f"Row {example.id} has no second answer, which model.forget needs: data.alternatives "
            f"{path!r} holds none for its question and answer. {program()} alternatives asks again "
            "for those that are missing, with another --seed; or add a row of your own."
        )
    return second


def _checked_weights(given: Mapping[str, float], names: list[str]) -> dict[str, float]:
    """Return the weight of each retain set; 1 for one that is not named."""
    for name, weight in given.items():
        if name not in names:
            raise InputError(
                f"data.retain_weights names {name!r}, which is no set of data.retain_split; there "
                f"are {', '.join(names)}."
            )
        if not weight >= 0 or math.isinf(weight):
            must = "finite" if weight > 0 else ">= 0"
            raise InputError(f"data.retain_weights.{name} must be {must}; got {weight}.")
    weights = {name: float(given.get(name, 1.0)) for name in names}
    if not any(weights.values()):
        raise InputError(
            f"data.retain_weights are 0 for {', '.join(names)}, so nothing would be kept; give one "
            "of them a weight > 0, or set model.retain to null."
        )
    return weights


def _warn_of_overlap(shared: int, num_forget: int) -> None:
    """Say so if the same text is to be forgotten and to be kept."""
    if shared:
        warn_first(
            f"{shared} of {num_forget} forget rows also stand in data.retain_split: "
            "they are pushed down and held at once."
        )
