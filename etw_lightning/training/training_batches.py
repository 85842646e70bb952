"""Steps of the paired streams as batches, and where a resumed run goes on in them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NotRequired, Protocol, TypedDict, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from etw_lightning.data.pairing import Pairing, StepRows
from etw_lightning.data.stored_rows import sizes
from etw_lightning.data.streams import Streams
from etw_lightning.kernels.signals import Counts
from etw_lightning.metrics.words import NO_WORD
from etw_lightning.models.step_layout import StepLayout, plan_layout
from etw_lightning.schema import IGNORE_INDEX, EncodedRow
from etw_lightning.scoring.batches import pad_rows

__all__ = [
    "Batch",
    "PairedLoader",
    "PairedRows",
    "PairedSampler",
    "RowValues",
    "collate",
    "of_labels",
    "trained_batches",
]


class RowValues(Protocol):
    """What the target model says of the rows of one group, computed before training."""

    def batch(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """Return its values at the labelled tokens of these rows, one row after the other.

        Args:
            rows: Places in the stream; -1 stands for no row, which has no token.
        """


class Batch(TypedDict):
    """One micro-batch: forget rows, then retain rows, then second answers of the forget rows.

    ``sizes`` gives the rows of each group, in this order; ``counts`` what the whole effective
    batch holds of each; ``scale`` undoes the averaging over micro-batches and processes;
    ``row_ids`` names the rows. Where it is asked for: ``marked`` says which labels lie in marked
    text, ``annotated`` the same of ``data.annotations``, whatever the method reads, and ``words``
    which word each is of, -1 for none, ``(B, T)``; ``row_weights`` weighs the rows, ``(B,)``, 1 but
    for retain rows; ``reference`` holds what the target model says at the labelled tokens of each
    group. ``layout`` says where the labels stand and what of the rows is fed.
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    sizes: dict[str, int]
    counts: dict[str, Counts]
    scale: float
    row_ids: list[str]
    layout: StepLayout
    marked: NotRequired[Tensor]
    annotated: NotRequired[Tensor]
    words: NotRequired[Tensor]
    row_weights: NotRequired[Tensor]
    reference: NotRequired[dict[str, dict[str, Tensor]]]


def collate(
    groups: dict[str, list[EncodedRow]],
    counts: dict[str, Counts],
    scale: float,
    pad_id: int,
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
        layout=plan_layout(rows, labels),
    )


class PairedRows(Dataset[Batch]):
    """Rows of a step to a batch; indexed by ``StepRows``.

    Args:
        streams: The rows of each group, and what is known of them.
        scale: As in ``Batch``.
        pad_id: Id that fills padded positions.
        references: What the target model says of the rows of some groups.
        skipped_tokens: Labels at the start of each forget row that count for nothing.
    """

    def __init__(
        self,
        streams: Streams,
        scale: float,
        pad_id: int,
        references: Mapping[str, RowValues] | None = None,
        skipped_tokens: int = 0,
    ) -> None:
        self.streams, self.scale, self.pad_id = streams, scale, pad_id
        self.references = dict(references or {})
        skipped = {"forget": skipped_tokens}
        #: Labelled tokens of each row that have a term.
        self.num_terms = {
            name: (sizes(rows).num_labels - skipped.get(name, 0)).clip(0).tolist()
            for name, rows in streams.rows.items()
        }

    def __getitem__(self, step: StepRows) -> Batch:
        parts = {
            "forget": (step.forget, step.all_forget),
            "retain": (step.retain, step.all_retain),
            "alternative": (step.forget, step.all_forget),
        }
        parts = {name: part for name, part in parts.items() if name in self.streams.rows}
        here = {name: rows for name, (rows, _) in parts.items() if rows}
        groups = {
            name: [_row_or_filler(self.streams.rows[name], index) for index in rows]
            for name, rows in here.items()
        }
        counts = {name: self._counts(name, parts[name][1]) for name in here}
        batch = collate(groups, counts, self.scale, self.pad_id)
        of_labels = batch["labels"]
        if self.streams.marks:
            nothing = torch.zeros_like(of_labels, dtype=torch.bool)
            batch["marked"] = _laid_over(nothing, self.streams.marks, here)
        if self.streams.annotated:
            nothing = torch.zeros_like(of_labels, dtype=torch.bool)
            batch["annotated"] = _laid_over(nothing, self.streams.annotated, here)
        if self.streams.words:
            nothing = torch.full_like(of_labels, NO_WORD)
            batch["words"] = _laid_over(nothing, self.streams.words, here)
        if self.streams.retain_weights:
            batch["row_weights"] = self._row_weights(here)
        if self.references:
            batch["reference"] = {
                name: self.references[name].batch(rows)
                for name, rows in here.items()
                if name in self.references
            }
        return batch

    def _counts(self, name: str, rows: Sequence[int]) -> Counts:
        terms = [self.num_terms[name][index] for index in rows]
        return Counts(sum(terms), sum(num > 0 for num in terms))

    def _row_weights(self, here: Mapping[str, Sequence[int]]) -> Tensor:
        """Return the weight of each row; a filler, which has no label, weighs 1."""
        weights: list[float] = []
        for name, rows in here.items():
            given = self.streams.retain_weights if name == "retain" else ()
            weights += [given[index] if given and index >= 0 else 1.0 for index in rows]
        return torch.tensor(weights, dtype=torch.float32)


def _laid_over(
    nothing: Tensor, known: Sequence[Sequence[int]], here: Mapping[str, Sequence[int]]
) -> Tensor:
    """Put what is known of each forget row's positions, ``(B, T)``, in the place of nothing."""
    for place, index in enumerate(here.get("forget", ())):
        if index >= 0:
            nothing[place, : len(known[index])] = torch.tensor(known[index])
    return nothing


def _row_or_filler(rows: Sequence[EncodedRow], index: int) -> EncodedRow:
    """Return a row; for the index that stands for none, a row without labels."""
    if index >= 0:
        return rows[index]
    return EncodedRow("filler", rows[0].input_ids[:2], (IGNORE_INDEX,) * 2)


class PairedSampler(Sampler[StepRows]):
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
        sampler: PairedSampler,
        progress: Callable[[], tuple[int, int]],
        num_workers: int = 0,
    ) -> None:
        super().__init__(rows, batch_size=None, sampler=sampler, num_workers=num_workers)
        self.progress = progress

    def state_dict(self) -> dict[str, int]:
        """Return how far training is; an epoch that is done stands at its successor's start."""
        trained, total = self.progress()
        epochs, batches = divmod(trained, max(total, 1))
        return {"epoch": cast(PairedSampler, self.sampler).epoch + epochs, "batches": batches}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on in ``state["epoch"]`` after ``state["batches"]`` batches."""
        sampler = cast(PairedSampler, self.sampler)
        sampler.epoch, sampler.start = state["epoch"], state["batches"]


def trained_batches(trainer: Any) -> tuple[int, int]:
    """Return the batches trained on in this epoch, and those of an epoch."""
    # Not `completed`: that is one too few in a checkpoint saved at a batch's end.
    trained = trainer.fit_loop.epoch_loop.batch_progress.current.processed
    return int(trained), int(trainer.num_training_batches)


def of_labels(batch: Batch, name: str, layout: StepLayout | None) -> Tensor | None:
    """Return what a batch says of its positions, of those that hold a label; None for nothing."""
    said: Tensor | None = cast(Any, batch).get(name)
    if said is None:
        return None
    if layout is None:
        return said[:, 1:][batch["labels"][:, 1:] != IGNORE_INDEX]
    return said.flatten().index_select(0, layout.places + 1)
