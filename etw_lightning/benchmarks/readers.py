"""The reader of a benchmark by its name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Literal, cast, get_args

from etw_lightning.benchmarks import Benchmark
from etw_lightning.benchmarks.choice import Choice, ChoicePrompt
from etw_lightning.benchmarks.dusk import DUSK
from etw_lightning.benchmarks.jsonl import JSONL
from etw_lightning.benchmarks.muse import MUSE
from etw_lightning.benchmarks.own import OwnBenchmark
from etw_lightning.benchmarks.quickstart_reader import Quickstart
from etw_lightning.benchmarks.r_tofu import RTOFU, ForgetPart
from etw_lightning.benchmarks.source import Source, check_name
from etw_lightning.benchmarks.tofu import TOFU, Columns
from etw_lightning.files.class_paths import build, class_at, is_class_path
from etw_lightning.schema import InputError

__all__ = ["BenchmarkName", "find_reader", "make_reader"]

BenchmarkName = Literal[
    "tofu", "muse_news", "muse_books", "dusk", "r_tofu", "choice", "jsonl", "quickstart"
]


def find_reader(benchmark: str | OwnBenchmark) -> BenchmarkName | OwnBenchmark:
    """Return the reader that is the user's own, or the name of one of ours.

    Args:
        benchmark: ``data.benchmark``: a name, the path of a class, or what that makes.

    Raises:
        InputError: If there is none of this name.
    """
    if isinstance(benchmark, str) and is_class_path(benchmark):
        kind = class_at(benchmark, OwnBenchmark, "data.benchmark")
        return cast(OwnBenchmark, build(kind, benchmark, "data.benchmark"))
    if isinstance(benchmark, str):
        check_name("data.benchmark", benchmark, get_args(BenchmarkName))
        return cast(BenchmarkName, benchmark)
    return benchmark


def make_reader(
    name: BenchmarkName | OwnBenchmark,
    source: Source,
    splits: Mapping[str, str],
    own: Mapping[str, Any],
    choice_prompt: ChoicePrompt,
    max_new_tokens: int,
    forget_part: ForgetPart = "both",
) -> Benchmark:
    """Return a benchmark's reader.

    Args:
        name: Which one, as of ``find_reader``.
        source: Where its rows are.
        splits: ``forget_split`` and ``retain_split`` as far as the user gave them; both of
            ``jsonl``.
        own: Further arguments of ``JSONL``: ``columns`` and ``which_turns``.
        choice_prompt: Prompts of ``choice``.
        max_new_tokens: Greedy tokens after a question of ``tofu``, ``r_tofu``, ``quickstart`` and
            ``jsonl``.
        forget_part: What of the forget rows of ``r_tofu`` is labelled.

    Raises:
        InputError: If there is no such split, or the benchmark is given what another one reads.
    """
    if forget_part != "both" and name != "r_tofu":
        raise InputError(
            f"data.forget_part is {forget_part!r}, but only the rows of data.benchmark r_tofu have "
            f"parts; got {name if isinstance(name, str) else name.name!r}. Leave it out."
        )
    if name != "choice":
        _check_usual("data.choice_prompt", choice_prompt, ChoicePrompt(), "choice", name)
    if isinstance(name, str) and name != "jsonl":
        _check_usual("data.columns", own["columns"], Columns(), "jsonl", name)
        if own["which_turns"] != "last":
            raise InputError(_is_unread("data.which_turns", own["which_turns"], "jsonl", name))
    if isinstance(name, OwnBenchmark):
        return name.begin(source, splits, {**own, "max_new_tokens": max_new_tokens})
    if name == "tofu":
        return TOFU(source, max_new_tokens=max_new_tokens, **splits)
    if name == "quickstart":
        return Quickstart(source, max_new_tokens=max_new_tokens, **splits)
    if name == "dusk":
        return DUSK(source, **splits)
    if name == "r_tofu":
        part, tokens = forget_part, max_new_tokens
        return RTOFU(source, forget_part=part, max_new_tokens=tokens, **splits)
    if name == "choice":
        return Choice(source, prompt=choice_prompt, **splits)
    if name == "jsonl":
        own = {**own, **splits}
        return JSONL(source, max_new_tokens=max_new_tokens, **own)
    return MUSE(source, corpus="news" if name == "muse_news" else "books", **splits)


def _check_usual(
    key: str, given: Any, usual: Any, reader: str, name: BenchmarkName | OwnBenchmark
) -> None:
    """Refuse fields of a setting that another benchmark reads."""
    for field in fields(usual):
        value = getattr(given, field.name)
        if value != getattr(usual, field.name):
            raise InputError(_is_unread(f"{key}.{field.name}", value, reader, name))


def _is_unread(key: str, value: Any, reader: str, name: BenchmarkName | OwnBenchmark) -> str:
    other = name if isinstance(name, str) else name.name
    return (
        f"{key} is {value!r}, but only rows of data.benchmark {reader} are read by it, not those "
        f"of {other}. Leave it out."
    )
