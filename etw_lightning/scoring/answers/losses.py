"""What a model says of answers: their losses, and what is kept of a gold answer's tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from etw_lightning.kernels.head import LinearStatistics
from etw_lightning.models.loading import LabelScorer
from etw_lightning.models.packed_attention import moved
from etw_lightning.models.packing import pack_rows
from etw_lightning.models.step_layout import cost_of_a_part, pack
from etw_lightning.schema import IGNORE_INDEX, Numbers
from etw_lightning.scoring.answers.batches import AnswerBatch
from etw_lightning.scoring.answers.rows import last_label
from etw_lightning.scoring.scores import TOKEN_FIELDS, Score, Slot

__all__ = ["score_answers"]

#: Of each answer its labels among those that are scored; their log-probabilities; gold answers'
#: statistics.
_Found = tuple[list[list[int]], Tensor, LinearStatistics]


def score_answers(scorer: LabelScorer, batch: AnswerBatch, device: torch.device) -> list[Score]:
    """Return losses, log-probabilities of options, and what is kept of a gold answer's tokens."""
    is_packed = not scorer.in_shards and not batch.hides_tokens and scorer.takes_packed
    score = _score_packed if is_packed else _score_trees
    picks, logps, statistics = score(scorer, batch, device)
    logps = logps.cpu()
    found = [part.cpu() for part in statistics[1:]]
    scores = list(batch.known)
    for slot, pick in zip(batch.slots, picks, strict=True):
        scores.append(slot.score(_value(slot, logps[pick])))
        if slot.field == "answer_loss":
            parts = [part[: len(pick)] for part in found]
            found = [part[len(pick) :] for part in found]
            for name, part in zip(TOKEN_FIELDS, (logps[pick], *parts), strict=True):
                scores.append(slot.score(_plain(part), name))
    return scores


def _score_packed(scorer: LabelScorer, batch: AnswerBatch, device: torch.device) -> _Found:
    """Score all answers in one row, in which what any of them begin with alike is fed once."""
    rows = [answer.row for group in batch.groups for answer in group]
    fed = [row.input_ids[: last_label(row)] for row in rows]
    packed, places = pack(fed, cost_of_a_part())
    where = iter(places.tolist())
    sources: list[int] = []
    labels: list[int] = []
    picks: list[list[int]] = []
    for group in batch.groups:
        # Two answers to a question that go on alike are predicted once.
        numbers: dict[tuple[int, int], int] = {}
        first = len(labels)
        for answer, at in zip(group, where, strict=False):
            edges = [
                (at[place - 1], label)
                for place, label in enumerate(answer.row.labels)
                if label != IGNORE_INDEX
            ]
            picks.append([first + numbers.setdefault(edge, len(numbers)) for edge in edges])
        sources += (source for source, _ in numbers)
        labels += (label for _, label in numbers)
    packed = moved(packed._replace(sources=torch.tensor(sources)), device)
    is_detailed = _detailed(batch, picks, len(labels)).to(device)
    return picks, *scorer.score_packed(packed, torch.tensor(labels, device=device), is_detailed)


def _score_trees(scorer: LabelScorer, batch: AnswerBatch, device: torch.device) -> _Found:
    """Score the answers to each question in one row; of models that can't, each in its own."""
    trees = batch.trees(shared=True)
    if not all(tree.is_chain for tree in trees) and not scorer.takes_trees:
        trees = batch.trees(shared=False)
    rows = pack_rows(trees, batch.pad_id, batch.hidden_id).to(device)
    first, picks = 0, []
    for tree in trees:
        picks += [[first + edge for edge in edges] for edges in tree.edges]
        first += len(tree.labels)
    return picks, *scorer.score_edges(rows, _detailed(batch, picks, first).to(device))


def _detailed(batch: AnswerBatch, picks: list[list[int]], count: int) -> Tensor:
    """Tell which labels are gold answers', bool, ``(count,)``."""
    is_detailed = torch.zeros(count, dtype=torch.bool)
    for slot, pick in zip(batch.slots, picks, strict=True):
        if slot.field == "answer_loss":
            is_detailed[pick] = True
    return is_detailed


def _value(slot: Slot, logps: Tensor) -> float:
    """Return a row's value; in float64, as the sum of many float32 numbers is not one."""
    wide = logps.double()
    return float(wide.sum() if slot.field == "choice_logps" else -wide.mean())


def _plain(values: Tensor) -> Numbers:
    """Return numbers as short as they can be written without changing them."""
    if values.dtype == torch.bool:
        return Numbers(values.int().tolist())
    if values.dtype == torch.float64:
        return Numbers(values.tolist())
    return Numbers(float(f"{value:.9g}") for value in values.tolist())
