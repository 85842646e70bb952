"""Quickstart: the generated corpus, read like TOFU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from etw_lightning.benchmarks.quickstart import SPLITS, build_corpus
from etw_lightning.benchmarks.quickstart_alternatives import alternative_answers
from etw_lightning.benchmarks.tofu import TOFU

__all__ = ["REQUESTS", "Quickstart"]

#: The forget rows cut into requests that come one after the other: two people, two, and one.
REQUESTS: Mapping[str, slice] = {
    "request1": slice(0, 16),
    "request2": slice(16, 32),
    "request3": slice(32, 40),
}


@dataclass(frozen=True)
class Quickstart(TOFU):
    """Reads the quickstart corpus, which is generated and needs no file.

    Forget rows also get a second answer, which no model is trained on before unlearning.

    Args:
        source: Its limits are used; with a root, rows come from the files of ``write_corpus``.
        forget_split: ``forget``, or a part of it: ``request1``, ``request2``, ``request3``.
        retain_split: ``retain``; a part that has not been asked for yet may be added to it, as in
            ``retain+request2+request3``, which is what ``request1`` leaves.
        max_new_tokens: Greedy tokens after each question of an evaluation set.
    """

    forget_split: str = "forget"

    name: ClassVar[str] = "quickstart"
    hub: ClassVar[str | None] = None
    retain_of: ClassVar[Mapping[str, str]] = {
        "forget": "retain",
        "request1": "retain+request2+request3",
        "request2": "retain+request3",
        "request3": "retain",
    }
    holdout_of: ClassVar[Mapping[str, str]] = dict.fromkeys(retain_of, "holdout")
    split_names: ClassVar[tuple[str, ...]] = (*SPLITS, *REQUESTS)

    def _rows(self, split: str) -> list[dict[str, Any]]:
        part = split.removesuffix("_perturbed")
        if part in REQUESTS:
            rows = self._whole(f"forget{split.removeprefix(part)}")[REQUESTS[part]]
            rows = list(self.source.cut(split, rows))
        else:
            rows = self._whole(split)
        return self._with_second(split, rows)

    def _whole(self, split: str) -> list[dict[str, Any]]:
        if self.source.root is not None:
            return self.source.rows(split)
        return list(self.source.cut(split, build_corpus()[split]))

    def _with_second(self, split: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return rows to forget with their second answers; others as they are."""
        if split != self.forget_split:
            return rows
        second = alternative_answers(build_corpus())
        places = [(row.get("question"), row.get("answer")) for row in rows]
        return [
            {"alternative_answer": second[place], **row} if place in second else row
            for place, row in zip(places, rows, strict=True)
        ]
