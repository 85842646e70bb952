"""Refuses gold texts that ROUGE's published rule can't read, before anything is scored."""

from __future__ import annotations

from collections.abc import Mapping

from etw_lightning.metrics.words import LARGEST_DROPPED, dropped_share
from etw_lightning.schema import EvalSet, Example, InputError
from etw_lightning.scoring.parts import parts_of

__all__ = ["check_words"]


def check_words(eval_sets: Mapping[str, EvalSet]) -> None:
    """Refuse sets that are generated on and whose gold texts are mostly not of a-z and 0-9.

    Gold texts are what generations are compared with: answers and paraphrased ones. What a model
    generates may hold anything. A set of which only losses are wanted is not looked at.

    Args:
        eval_sets: Each with the parts that are wanted of it.

    Raises:
        InputError: If more than half of the letters and digits of one would be dropped.

    Example:
        >>> check_words({"forget": EvalSet("forget", (Example("f/0", "Да."),), max_new_tokens=2)})
        Traceback (most recent call last):
        etw_lightning.schema.InputError: set 'forget', row f/0: ROUGE's published rule reads a-z ...
    """
    for name, eval_set in eval_sets.items():
        if "generation" not in parts_of(eval_set):
            continue
        for example in eval_set.examples:
            for text in _gold(example):
                share = dropped_share(text)
                if share > LARGEST_DROPPED:
                    raise InputError(
                        f"set {name!r}, row {example.id}: ROUGE's published rule reads a-z and 0-9 "
                        f"only and would drop {share:.0%} of the letters and digits of "
                        f"{text[:40]!r}; count Unicode's words: --data.rouge_tokenizer unicode."
                    )


def _gold(example: Example) -> list[str]:
    return [text for text in (example.answer, example.paraphrased_answer) if text]
