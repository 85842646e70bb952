"""What each request asks for, counted before anything is trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from etw_lightning.data.lost_labels import said_by
from etw_lightning.schema import InputError
from etw_lightning.sequences.request_file import Request
from etw_lightning.sequences.steps import Step
from etw_lightning.training.datamodule import UnlearningDataModule

__all__ = ["RowCounts", "count_rows"]


@dataclass(frozen=True)
class RowCounts:
    """Rows of one request.

    Args:
        forget: That are to be forgotten.
        asked_before: Of these, that an earlier request has asked for as well.
        retain: That stay, without those of this request and of earlier ones.
        left_out: That stand in the retain split, and were left out as requests ask for them.
    """

    forget: int
    asked_before: int
    retain: int
    left_out: int

    def __str__(self) -> str:
        again = f", {self.asked_before} of them asked for before" if self.asked_before else ""
        gone = f", {self.left_out} left out as they are asked for" if self.left_out else ""
        return f"{self.forget} rows{again}; {self.retain} retain rows{gone}"


def count_rows(
    requests: Sequence[Request],
    steps: Sequence[Step],
    make_data: Callable[[Mapping[str, Any]], UnlearningDataModule],
) -> list[RowCounts]:
    """Count the rows of each request.

    Args:
        requests: The requests.
        steps: What is done for each.
        make_data: Makes what reads rows from its settings.

    Raises:
        InputError: If rows or retain results can't be read, a request asks for nothing
            new, or leaves no retain row.
    """
    asked: set[tuple[object, ...]] = set()
    counts = []
    for request, step in zip(requests, steps, strict=True):
        try:
            data = make_data(step.data)
            forget = [said_by(example) for example in data.forget_examples()]
            retain = sum(1 for _ in data.retain_examples())
            # Retain results that can't be read are told now, not once earlier requests are done.
            _ = data.retain_sets
            data.leave_out = None
            whole = sum(1 for _ in data.retain_examples())
        except InputError as error:
            raise InputError(request.told(step.number, str(error))) from error
        before = sum(said in asked for said in forget)
        if before == len(forget):
            raise InputError(
                f"requests.{step.number}.forget {data.forget_split!r} asks for nothing new: all of "
                f"its {before} rows were asked for by earlier requests. Put the smaller split "
                "first."
            )
        asked.update(forget)
        counts.append(RowCounts(len(forget), before, retain, whole - retain))
    return counts
