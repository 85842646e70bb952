"""Mixed questions: what is refused alone may be answered beside a question that is not."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from etw_lightning.attacks.asking import (
    Side,
    asked,
    batch_size_of,
    question_set,
    recalls,
    row_mean,
    rows_of_side,
)
from etw_lightning.attacks.interface import Attack, Heard, Subject
from etw_lightning.metrics import Metric
from etw_lightning.metrics.sanity import refusal_values
from etw_lightning.schema import EvalSet, Example, InputError, Record
from etw_lightning.scoring.continuations import continue_prompts, prompts_of, said_records

if TYPE_CHECKING:
    from etw_lightning.attacks.attacked_run import AttackedRun

__all__ = ["Mix", "Order"]

#: Whose question stands first.
Order = Literal["forget_first", "retain_first"]


@dataclass(frozen=True)
class Mix(Attack):
    """Ask a forget and a retain question in one prompt, and look for both answers in what is said.

    Each forget row is paired with a retain row, drawn by the seed. Of each order:
    ``forget_rouge_ORDER`` and ``retain_rouge_ORDER``, ROUGE-L recall of each answer in the whole
    text; ``refusals_ORDER``, the share of texts that refuse. The suite's numbers of texts are of
    the order that brings out more of each forget row. Before the attack stand the same rows asked
    alone, of refusals the forget rows.

    Source: none; prompts of two questions, scored by part, are ours.

    Args:
        orders: Whose question stands first: ``forget_first``, ``retain_first``, or both.
        joint: What stands between the questions.

    Raises:
        InputError: If there is no order.
    """

    orders: tuple[Order, ...] = ("forget_first", "retain_first")
    joint: str = " "

    scores_suite = False
    heard_parts = frozenset({"generation"})

    def __post_init__(self) -> None:
        if not self.orders:
            raise InputError("attack.orders must name forget_first, retain_first, or both.")

    def check(self, run: AttackedRun) -> None:
        """Refuse data without questions of both sides, and prompts that are finished already."""
        rows_of_side(run, "forget", is_open=True)
        rows_of_side(run, "retain", is_open=True)

    def pairs(self, subject: Subject) -> tuple[list[Example], list[Example]]:
        """Return the forget rows, and the retain row that each is paired with."""
        rows = list(question_set(subject, "forget").examples)
        others = question_set(subject, "retain").examples
        rng = random.Random(subject.run.seed)
        return rows, [rng.choice(others) for _ in rows]

    def hear(self, subject: Subject, *, attacked: bool) -> Heard:
        """Return the numbers of mixed prompts, by part, or of rows that are asked alone."""
        rows, others = self.pairs(subject)
        name = question_set(subject, "forget").name
        if not attacked:
            records = self._alone(subject, "forget", rows)
            kept = self._alone(subject, "retain", others)
            return Heard({name: records}, self._of_alone(subject, records, kept))
        found: dict[str, Metric] = {}
        texts: list[list[Record]] = []
        for order in self.orders:
            said = self._said(subject, rows, others, order)
            texts.append(_answered(rows, said))
            kept = _answered(others, said)
            found[f"forget_rouge_{order}"] = row_mean(recalls(texts[-1], subject.run), "down")
            found[f"retain_rouge_{order}"] = row_mean(recalls(kept, subject.run), "up")
            found[f"refusals_{order}"] = row_mean(refusal_values(kept), "none")
        better = np.argmax([recalls(one, subject.run) for one in texts], axis=0).tolist()
        best = [texts[place][row] for row, place in enumerate(better)]
        return Heard({name: best}, found)

    def _of_alone(
        self, subject: Subject, records: Sequence[Record], kept: Sequence[Record]
    ) -> dict[str, Metric]:
        forgotten = row_mean(recalls(records, subject.run), "down")
        retained = row_mean(recalls(kept, subject.run), "up")
        refused = row_mean(refusal_values(records), "none")
        values = {"forget_rouge": forgotten, "retain_rouge": retained, "refusals": refused}
        return {f"{name}_{order}": value for name, value in values.items() for order in self.orders}

    def _alone(self, subject: Subject, side: Side, rows: Sequence[Example]) -> list[Record]:
        eval_set = question_set(subject, side)
        once = tuple({one.id: one for one in rows}.values())
        records = asked(subject, replace(eval_set, examples=once, losses=False))
        by_id = {record.id: record for record in records}
        return [by_id[one.id] for one in rows]

    def _said(
        self, subject: Subject, rows: Sequence[Example], others: Sequence[Example], order: Order
    ) -> list[str]:
        """Return what is said of both questions, with room for both answers."""
        both = [
            replace(one, question=self._joined(one, other, order))
            for one, other in zip(rows, others, strict=True)
        ]
        sets = [question_set(subject, side) for side in ("forget", "retain")]
        room = EvalSet(
            sets[0].name,
            tuple(both),
            max_new_tokens=sum(one.max_new_tokens for one in sets),
            stop_strings=sets[0].stop_strings,
        )
        prompts = prompts_of(both, subject.encoder)
        batch_size = batch_size_of(subject.run)
        said = continue_prompts(subject.lm, subject.encoder, prompts, room, batch_size)
        return [text for (text,) in said]

    def _joined(self, forgotten: Example, kept: Example, order: Order) -> str:
        questions = [forgotten.question or "", kept.question or ""]
        return self.joint.join(questions if order == "forget_first" else questions[::-1])


def _answered(rows: Sequence[Example], said: Sequence[str]) -> list[Record]:
    """Return texts as records of some rows."""
    return said_records(EvalSet("mixed", tuple(rows)), [[text] for text in said])
