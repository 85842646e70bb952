"""Quickstart: the generated corpus, read like TOFU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from etw_lightning.benchmarks.quickstart import SPLITS, build_corpus
from etw_lightning.benchmarks.quickstart_alternatives import alternative_answers
from etw_lightning.benchmarks.tofu import TOFU

__all__ = ["Quickstart"]


@dataclass(frozen=True)
class Quickstart(TOFU):
    """Reads the quickstart corpus, which is generated and needs no file.

    Forget rows also get a second answer, which no model is trained on before unlearning.

    Args:
        source: Its limits are used; with a root, rows come from the files of ``write_corpus``.
        forget_split: ``forget``.
        retain_split: ``retain``.
        max_new_tokens: Greedy tokens after each question of an evaluation set.
    """

    forget_split: str = "forget"

    name: ClassVar[str] = "quickstart"
    hub: ClassVar[str | None] = None
    retain_of: ClassVar[dict[str, str]] = {"forget": "retain"}
    holdout_of: ClassVar[dict[str, str]] = {"forget": "holdout"}
    split_names: ClassVar[tuple[str, ...]] = tuple(SPLITS)

    def _rows(self, split: str) -> list[dict[str, Any]]:
        if self.source.root is not None:
            rows = super()._rows(split)
        else:
            rows = list(self.source.cut(split, build_corpus()[split]))
        if split != self.forget_split:
            return rows
        second = alternative_answers(build_corpus())
        places = [(row.get("question"), row.get("answer")) for row in rows]
        return [
            {"alternative_answer": second[place], **row} if place in second else row
            for place, row in zip(places, rows, strict=True)
        ]
