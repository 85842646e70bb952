"""Records of the retain and of the target model: read, and checked against this run's rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from etw_lightning.benchmarks import Benchmark
from etw_lightning.data.encode import Encoder
from etw_lightning.notices import program, warn_first
from etw_lightning.schema import Conventions, Example, InputError, Record
from etw_lightning.scoring.provenance import encoding
from etw_lightning.scoring.retain_results import RetainResults, load_retain_results

__all__ = ["Role", "checked_records", "missing_results", "read_results"]

#: Whose records a run is compared with.
Role = Literal["retain", "target"]


def read_results(path: str, role: Role, conventions: Conventions) -> RetainResults:
    """Read another model's results; warn if they may have been made in another way.

    Args:
        path: As the user gave it.
        role: The model.
        conventions: Of this run.

    Raises:
        InputError: If they can't be read.
    """
    found = load_retain_results(path, f"data.{role}_results")
    if found.is_published and conventions != Conventions.peer():
        warn_first(
            f"{found.key}: {path} is a log of open-unlearning, scored by its own "
            "conventions; this run scores by others. --conventions peer follows it."
        )
    elif not found.is_published and found.unknown():
        warn_first(
            f"{found.key}: {path} does not say with what {', '.join(found.unknown())} "
            "its records were made, as an older version wrote them; that can't be "
            "compared with this run."
        )
    return found


def missing_results(role: Role, benchmark: Benchmark) -> str:
    """Say that another model's records are missing, and how to make them."""
    if role == "target":
        return (
            "data.target_results is missing: some metrics are relative to the target model. "
            "Give the folder of a run that made or evaluated it, or data.target_model to score "
            "it now."
        )
    how = ""
    if benchmark.name == "tofu":
        how = (
            f" Or make one: {program()} fit --config tofu_finetune "
            f"--data.split {benchmark.retain_split} --data.forget_split {benchmark.forget_split}"
        )
    return (
        "data.retain_results is missing: forget quality and privleak compare with the "
        "retain model. Give the folder of a run that made one, a published TOFU_EVAL.json "
        f"or MUSE_EVAL.json, or data.retain_model to score one now.{how}"
    )


def checked_records(
    results: RetainResults, name: str, examples: Sequence[Example], encoder: Encoder
) -> list[Record]:
    """Return another model's records of a set.

    Args:
        results: Of that model.
        name: The set.
        examples: Its rows in this run.
        encoder: Of this run.

    Raises:
        InputError: If they are of other rows or tokens.
    """
    results.check_made_like(encoding(encoder))
    records = results.require(name, len(examples))
    for record, example in zip(records, examples, strict=True):
        # Published logs decode answers with other spaces; some hold none.
        said, meant = ("".join(text.split()) for text in (record.answer, example.answer))
        asked = None if results.is_published else record.question
        wrong = "answer" if said and said != meant else ""
        wrong = wrong or ("question" if asked not in (None, example.question) else "")
        if wrong:
            raise InputError(
                f"{results.key}: {results.source} holds another {wrong} in "
                f"row {example.id} than this run's data; it was made for other rows."
            )
    return records
