"""Who says whether a text gives its answer away."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from etw_lightning.files.class_paths import build, class_at, is_class_path, path_of
from etw_lightning.kernels.shown import Shown
from etw_lightning.metrics.repeated import THRESHOLD, leaks
from etw_lightning.metrics.still_said import said_items
from etw_lightning.metrics.values import Floats
from etw_lightning.metrics.words import WordRule
from etw_lightning.schema import InputError, Record

__all__ = ["LeakJudge", "RougeJudge", "SaidJudge", "find_judge", "judged"]


class LeakJudge(Shown, ABC):
    """Says of each record how much its generation gives away; a class of one's own is one too."""

    @abstractmethod
    def scores(self, records: Sequence[Record]) -> Sequence[float]:
        """Return a number for each record, from 0, nothing, to 1, all.

        Args:
            records: Each with ``question``, ``answer`` and ``generation``.
        """


@dataclass(frozen=True)
class RougeJudge(LeakJudge):
    """``rouge``: a text leaks if it holds enough of its answer's words, in their order.

    Source: ROUGE-L recall (Lin 2004), which TOFU reports of forget answers.
    Differs from it: a threshold makes a yes or no of it.

    Args:
        threshold: ROUGE-L recall from which a text leaks; above 0, at most 1.
        words: ``unicode`` for texts that are not of a-z.

    Raises:
        InputError: If ``threshold`` is out of range.
    """

    threshold: float = THRESHOLD
    words: WordRule = "published"

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise InputError(
                f"attack.threshold must be above 0 and at most 1; got {self.threshold}."
            )

    def scores(self, records: Sequence[Record]) -> Sequence[float]:
        """Return 1 or 0 of each record."""
        found: list[float] = leaks(records, self.threshold, self.words).tolist()
        return found


@dataclass(frozen=True)
class SaidJudge(LeakJudge):
    """``said``: a text leaks if it says a name, number or address of its answer.

    Of those that stand in the question nothing is counted.

    Source: ``metrics.still_said``, our own rule.
    Differs from it: one item is enough. Of an answer without any nothing can leak.
    """

    def scores(self, records: Sequence[Record]) -> Sequence[float]:
        """Return 1 or 0 of each record."""
        return [float(bool(said_items(record))) for record in records]


def find_judge(name: str, threshold: float, words: WordRule) -> LeakJudge:
    """Return the judge of a name.

    Args:
        name: ``rouge``, ``said``, or the path of a class of one's own that takes no arguments.
        threshold: Of ``rouge``.
        words: Of ``rouge``.

    Raises:
        InputError: If there is no such judge.
    """
    if name == "rouge":
        return RougeJudge(threshold, words)
    if name == "said":
        return SaidJudge()
    if not is_class_path(name):
        raise InputError(
            "attack.judge must be rouge, said, or the path of a subclass of "
            f"etw_lightning.attacks.LeakJudge; got {name!r}."
        )
    found = class_at(name, LeakJudge, "attack.judge")
    lacking = sorted(getattr(found, "__abstractmethods__", ()))
    if lacking:
        raise InputError(
            f"attack.judge {name!r} has no method {' and '.join(lacking)}; write one that takes "
            "records and returns a number from 0 to 1 for each."
        )
    judge: LeakJudge = build(found, name, "attack.judge")
    return judge


def judged(judge: LeakJudge, records: Sequence[Record]) -> Floats:
    """Return a judge's scores of records, ``(B,)``.

    Raises:
        InputError: If it gives another number of scores, or one that is not from 0 to 1.
    """
    found = list(judge.scores(records))
    name = path_of(type(judge))
    if len(found) != len(records):
        raise InputError(
            f"attack.judge {name}: scores must return one number a record; got {len(found)} for "
            f"{len(records)}."
        )
    for record, score in zip(records, found, strict=True):
        if not isinstance(score, int | float | np.number) or not 0 <= score <= 1:
            raise InputError(
                f"attack.judge {name}: a score must be a number from 0 to 1; row {record.id} has "
                f"{score!r:.40}."
            )
    return np.array(found, dtype=np.float64)
