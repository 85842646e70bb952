"""The reader of a benchmark by its name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from etw_lightning.benchmarks import Benchmark
from etw_lightning.benchmarks.choice import Choice, ChoicePrompt
from etw_lightning.benchmarks.jsonl import JSONL
from etw_lightning.benchmarks.muse import MUSE
from etw_lightning.benchmarks.quickstart_reader import Quickstart
from etw_lightning.benchmarks.source import Source
from etw_lightning.benchmarks.tofu import TOFU

__all__ = ["BenchmarkName", "make_reader"]

BenchmarkName = Literal["tofu", "muse_news", "muse_books", "choice", "jsonl", "quickstart"]


def make_reader(
    name: BenchmarkName,
    source: Source,
    splits: Mapping[str, str],
    own: Mapping[str, Any],
    choice_prompt: ChoicePrompt,
    max_new_tokens: int,
) -> Benchmark:
    """Return a benchmark's reader.

    Args:
        name: Which one.
        source: Where its rows are.
        splits: ``forget_split`` and ``retain_split`` as far as the user gave them; both of
            ``jsonl``.
        own: Further arguments of ``JSONL``: ``columns`` and ``which_turns``.
        choice_prompt: Prompts of ``choice``.
        max_new_tokens: Greedy tokens after a question of ``tofu``, ``quickstart`` and ``jsonl``.

    Raises:
        InputError: If there is no such split.
    """
    if name == "tofu":
        return TOFU(source, max_new_tokens=max_new_tokens, **splits)
    if name == "quickstart":
        return Quickstart(source, max_new_tokens=max_new_tokens, **splits)
    if name == "choice":
        return Choice(source, prompt=choice_prompt, **splits)
    if name == "jsonl":
        own = {**own, **splits}
        return JSONL(source, max_new_tokens=max_new_tokens, **own)
    return MUSE(source, corpus="news" if name == "muse_news" else "books", **splits)
