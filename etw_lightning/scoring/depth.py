"""What of the forget set each layer still carries: rows, batches and deltas of unlearning depth."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from etw_lightning.data.encode import Encoder
from etw_lightning.metrics.tokens import Marks
from etw_lightning.models.loading import LabelScorer
from etw_lightning.schema import IGNORE_INDEX, EvalSet, InputError
from etw_lightning.scoring.batches import pad_rows
from etw_lightning.scoring.patching import check_same_layers, patched_logps

__all__ = [
    "DepthBatch",
    "DepthRow",
    "build_depth_batches",
    "make_depth_rows",
    "measure_depth",
]


@dataclass(frozen=True)
class DepthRow:
    """What patching showed of one example.

    Args:
        row: Number of the example in its evaluation set.
        id: Id of the example.
        num_tokens: Marked answer tokens.
        target_logp: Their mean log-probability under the target model, nats; None without any.
        retain_deltas: How far it falls with each layer of the retain model, nats; negative where
            it rises.
        unlearned_deltas: The same with the unlearned model.
    """

    row: int
    id: str
    num_tokens: int = 0
    target_logp: float | None = None
    retain_deltas: tuple[float, ...] = ()
    unlearned_deltas: tuple[float, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return all fields, ready for ``json.dumps``."""
        return asdict(self)

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> DepthRow:
        """Rebuild a row from ``to_json``'s form.

        Example:
            >>> row = DepthRow(0, "forget10/0", 2, -0.5, (0.1,), (0.0,))
            >>> DepthRow.from_json(row.to_json()) == row
            True
        """
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in row.items()
        }
        return cls(**values)


@dataclass
class DepthBatch:
    """Rows that go through the models together.

    Args:
        rows: Number of each example in its evaluation set.
        ids: Id of each.
        input_ids: ``(B, T)``.
        attention_mask: By length, ``(B, T)``.
        labels: Marked tokens only, ``(B, T)``.
    """

    rows: list[int]
    ids: list[str]
    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor


def build_depth_batches(
    eval_set: EvalSet, encoder: Encoder, marks: Sequence[Marks], batch_size: int
) -> list[DepthBatch]:
    """Return the rows of a set that have a marked token, longest first.

    A row ends with its last marked token: what follows can't change what precedes it.

    Args:
        eval_set: The forget set.
        encoder: The one its records were scored with.
        marks: ``mark_tokens`` of these records.
        batch_size: Rows in a batch.

    Raises:
        InputError: If the marks were made with another tokenizer, template or set of rows.
    """
    if len(marks) != len(eval_set.examples):
        raise InputError(
            f"unlearning depth: marks of {len(marks)} rows for {len(eval_set.examples)} rows of "
            f"{eval_set.name!r}."
        )
    todo = []
    for number, (example, flags) in enumerate(zip(eval_set.examples, marks, strict=True)):
        row = encoder.encode(example)
        places = [place for place, label in enumerate(row.labels) if label != IGNORE_INDEX]
        if len(places) != len(flags):
            raise InputError(
                f"unlearning depth: row {example.id} has {len(places)} labelled tokens, its record "
                f"{len(flags)}; score the set again with this template and data.max_length."
            )
        wanted = {place for place, flag in zip(places, flags, strict=True) if flag}
        if wanted:
            stop = max(wanted) + 1
            labels = [row.labels[i] if i in wanted else IGNORE_INDEX for i in range(stop)]
            todo.append((number, example.id, row.input_ids[:stop], labels))
    todo.sort(key=lambda item: -len(item[2]))
    batches = []
    for start in range(0, len(todo), batch_size):
        numbers, ids, inputs, labels_of = zip(*todo[start : start + batch_size], strict=True)
        input_ids, mask = pad_rows(inputs, encoder.pad_id)
        labels_padded, _ = pad_rows(labels_of, IGNORE_INDEX)
        batches.append(DepthBatch(list(numbers), list(ids), input_ids, mask, labels_padded))
    return batches


def measure_depth(
    target: LabelScorer, retain: LabelScorer, unlearned: LabelScorer, batch: DepthBatch
) -> list[DepthRow]:
    """Patch the retain and the unlearned model into the target model, layer by layer.

    Args:
        target: The receiver, trained on forget and retain set.
        retain: First source.
        unlearned: Second source.
        batch: Rows with marked tokens.

    Returns:
        One row for each of the batch.

    Raises:
        InputError: If a source's layers don't fit the target model's.
    """
    check_same_layers(target, retain, "data.retain_model")
    check_same_layers(target, unlearned, "model.pretrained")
    own, by_source = patched_logps(
        target, [retain, unlearned], batch.input_ids, batch.attention_mask, batch.labels
    )
    counts = (batch.labels[:, 1:] != IGNORE_INDEX).sum(1).tolist()
    deltas = (own - by_source).tolist()
    return [
        DepthRow(
            row=number,
            id=batch.ids[place],
            num_tokens=counts[place],
            target_logp=own[place].item(),
            retain_deltas=tuple(layer[place] for layer in deltas[0]),
            unlearned_deltas=tuple(layer[place] for layer in deltas[1]),
        )
        for place, number in enumerate(batch.rows)
    ]


def make_depth_rows(
    eval_set: EvalSet, marks: Sequence[Marks], rows: Iterable[DepthRow]
) -> list[DepthRow]:
    """Put the rows of all batches and processes together in file order.

    Rows without marked tokens have no deltas.

    Raises:
        InputError: If a row with marked tokens is missing; names it.
    """
    found = {row.row: row for row in rows}
    for number, (example, flags) in enumerate(zip(eval_set.examples, marks, strict=True)):
        if any(flags) and number not in found:
            raise InputError(
                f"unlearning depth: row {example.id} of {eval_set.name} was not measured; run the "
                "evaluation again."
            )
        found.setdefault(number, DepthRow(number, example.id))
    return [found[number] for number in range(len(eval_set.examples))]
