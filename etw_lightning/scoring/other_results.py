"""Records of the retain and of the target model: read, and checked against this run's rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from etw_lightning.benchmarks import Benchmark
from etw_lightning.data.encode import Encoder
from etw_lightning.notices import program, warn_first
from etw_lightning.schema import Conventions, EvalSet, Example, InputError, Record
from etw_lightning.scoring.cache.keys import rows_hash
from etw_lightning.scoring.provenance import encoding, texts_hashes
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
        if not wrong and not results.is_published:
            wrong = _differing(record, example)
        if wrong:
            raise InputError(
                f"{results.key}: {results.source} holds another {wrong} in "
                f"row {example.id} than this run's data; it was made for other rows."
            )
    _check_texts(results, name, examples, records)
    return records


def _check_texts(
    results: RetainResults, name: str, examples: Sequence[Example], records: Sequence[Record]
) -> None:
    """Refuse records of other texts; warn of older ones that do not tell.

    Records hold of a row's wrong answers, and of the turns before it, no text: what they were made
    with holds a hash of each kind. Older ones hold one of whole rows, in which more may differ than
    was scored, and published logs hold none.
    """
    made = results.provenance.get("sets", {}).get(name, {})
    then, now = made.get("texts"), texts_hashes(EvalSet(name, tuple(examples)))
    scored = {
        "questions": True,
        "answers": True,
        "paraphrased answers": any(record.paraphrase_loss is not None for record in records),
        "wrong answers": any(record.perturbed_losses for record in records),
        "options": any(record.choice_logps for record in records),
    }
    if then is not None:
        kinds = [kind for kind in scored if scored[kind] and then.get(kind) != now.get(kind)]
        if kinds:
            raise InputError(
                f"{results.key}: {results.source} holds scores of other {kinds[0]} of {name!r} "
                "than this run's data; it was made for other rows. Evaluate that model on this "
                "run's."
            )
    elif scored["wrong answers"] and made.get("hash") not in _hashes(examples, records):
        warn_first(
            f"{results.key}: {results.source} scored {name!r} from rows that are not all this "
            "run's: questions and answers are the same, wrong answers may be others, and with them "
            "truth ratios. An older version made it, which does not tell; evaluate that model on "
            "this run's rows."
        )


def _hashes(examples: Sequence[Example], records: Sequence[Record]) -> set[str | None]:
    """Return what other records of these rows may name as their hash.

    Rows that were read from another place have other ids, and second answers are not scored.
    """
    pairs = list(zip(examples, records, strict=True))
    named = [replace(example, id=record.id) for example, record in pairs]
    rows = [examples, named]
    rows += [[replace(one, alternative_answer=None) for one in some] for some in rows]
    return {None, *(rows_hash(EvalSet("", tuple(some))) for some in rows)}


def _differing(record: Record, example: Example) -> str:
    """Return what else of a row was scored otherwise; empty for nothing that records tell."""
    if record.paraphrase not in (None, example.paraphrased_answer):
        return "paraphrased answer"
    if len(record.perturbed_losses) not in (0, len(example.perturbed_answers)):
        return "number of wrong answers"
    if record.choices not in ((), example.choices):
        return "list of options"
    return "right option" if record.right_choice not in (None, example.right_choice) else ""
