"""The numbers of one model, as its benchmark has them: a row of the table at the end of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from etw_lightning import metrics
from etw_lightning.metrics.words import WordRule
from etw_lightning.schema import Record

__all__ = ["MUSE_SETS", "Row", "model_row", "muse_row", "own_row", "tofu_row"]

#: One line of the table: column to number, None where it can't be had.
Row = dict[str, float | int | None]
#: Sets that only MUSE has.
MUSE_SETS = ("verbmem", "privleak_forget")
_Sets = Mapping[str, Sequence[Record]]
_LOSSES = ("answer_loss", "perturbed_losses")


def model_row(
    records: _Sets,
    retain: _Sets | None = None,
    *,
    is_muse: bool = False,
    is_own: bool = False,
    words: WordRule = "published",
) -> Row:
    """Return the numbers of one model, as its benchmark has them.

    Args:
        records: Its sets.
        retain: Those of the retain model.
        is_muse: MUSE's numbers.
        is_own: Those of own rows; else TOFU's.
        words: ``published`` or ``unicode``, as of ``data.rouge_tokenizer``.

    Raises:
        InputError: If a set has a field in some rows only.
    """
    if is_muse:
        return muse_row(records, retain, words)
    if is_own:
        return own_row(records, (retain or {}).get("forget"), words)
    return tofu_row(records, (retain or {}).get("forget"), words)


def tofu_row(
    records_by_set: _Sets,
    retain_records: Sequence[Record] | None = None,
    words: WordRule = "published",
) -> Row:
    """Return TOFU's numbers of one model; a number whose records are missing is None.

    Args:
        records_by_set: Any of ``forget``, ``retain``, ``real_authors``, ``world_facts``.
        retain_records: Forget set scored by the retain model; None leaves out forget quality.
        words: ``published`` or ``unicode``, as of ``data.rouge_tokenizer``.

    Raises:
        InputError: If a set has a field in some rows only, or the retain rows are other rows.

    Example:
        >>> row = tofu_row({"forget": [Record("forget", "f/0", "a", answer_loss=0.0)]})
        >>> row["forget_probability"], row["model_utility"]
        (1.0, None)
    """
    forget = records_by_set.get("forget", ())
    row: Row = dict.fromkeys(
        ["forget_quality", "neg_log10_forget_quality", "d_times_n", "n", "forget_quality_floor"]
    )
    has_ratio = _has(forget, "paraphrase_loss", "perturbed_losses")
    if has_ratio and retain_records:
        quality = metrics.forget_quality(forget, retain_records)
        row["forget_quality"], row["d_times_n"] = quality.p_value, quality.d_times_n
        row["neg_log10_forget_quality"], row["n"] = quality.neg_log10, quality.n
        row["forget_quality_floor"] = quality.floor
    row["model_utility"] = None
    if _has_utility(records_by_set):
        row["model_utility"] = metrics.model_utility(records_by_set, words=words).value
    row["forget_rouge"] = row["forget_probability"] = row["forget_truth_ratio"] = None
    if _has(forget, "generation"):
        row["forget_rouge"] = metrics.rouge(forget, words=words).value
    if _has(forget, "answer_loss"):
        row["forget_probability"] = float(np.mean(metrics.probabilities(forget)))
    if has_ratio:
        row["forget_truth_ratio"] = metrics.closer_to_one(metrics.truth_ratios(forget))
    return row


def own_row(
    records_by_set: _Sets,
    retain_records: Sequence[Record] | None = None,
    words: WordRule = "published",
) -> Row:
    """Return the numbers of one model on own rows; a number whose records are missing is None.

    Args:
        records_by_set: Any of ``forget`` and ``retain``.
        retain_records: Forget set scored by the retain model; None leaves out forget quality.
        words: ``published`` or ``unicode``, as of ``data.rouge_tokenizer``.

    Raises:
        InputError: As ``tofu_row``.

    Example:
        >>> rows = [Record("retain", "r/0", "the end", generation="the end", answer_loss=0.0)]
        >>> row = own_row({"retain": rows})
        >>> row["retain_rouge"], row["retain_probability"], row["forget_probability"]
        (1.0, 1.0, None)
    """
    row = tofu_row(records_by_set, retain_records, words)
    # The first has parts that own rows lack, the second would make the table too wide.
    del row["model_utility"], row["neg_log10_forget_quality"]
    kept = tofu_row({"forget": records_by_set.get("retain", ())}, words=words)
    for name in ("rouge", "probability"):
        row[f"retain_{name}"] = kept[f"forget_{name}"]
    return row


def muse_row(
    records_by_set: _Sets, retain_by_set: _Sets | None = None, words: WordRule = "published"
) -> Row:
    """Return MUSE's numbers of one model, percent; a number whose records are missing is None.

    Args:
        records_by_set: Any of ``verbmem``, ``knowmem_forget``, ``knowmem_retain``,
            ``privleak_forget``, ``privleak_holdout``.
        retain_by_set: The last two scored by the retain model; None leaves out privleak.
        words: ``published`` or ``unicode``, as of ``data.rouge_tokenizer``.

    Raises:
        InputError: If a set has a field in some rows only.

    Example:
        >>> rows = [Record("verbmem", "verbmem/0", "the end", generation="the end")]
        >>> muse_row({"verbmem": rows})["verbmem"]
        100.0
    """
    row: Row = dict.fromkeys(["verbmem", "knowmem_forget", "knowmem_retain", "privleak"])
    verbatim = records_by_set.get("verbmem", ())
    if _has(verbatim, "generation"):
        row["verbmem"] = metrics.verbmem(verbatim, words=words).value
    forget, retain = (records_by_set.get(f"knowmem_{part}", ()) for part in ("forget", "retain"))
    if _has(forget, "generation"):
        row["knowmem_forget"] = metrics.knowmem(forget, "down", words).value
    if _has(retain, "generation"):
        row["knowmem_retain"] = metrics.knowmem(retain, "up", words).value
    ours, theirs = _min_k_sets(records_by_set), _min_k_sets(retain_by_set or {})
    if ours and theirs:
        row["privleak"] = metrics.privleak(*ours, metrics.min_k_auc(*theirs)).value
    return row


def _has(records: Sequence[Record], *fields: str) -> bool:
    """Whether each field was scored; one that is there in some rows only is left to the metric."""
    return all(
        any(getattr(record, field) not in (None, ()) for record in records) for field in fields
    )


def _has_utility(records_by_set: _Sets) -> bool:
    retain, authors, facts = (
        records_by_set.get(name, ()) for name in ("retain", "real_authors", "world_facts")
    )
    return _has(retain, "paraphrase_loss") and all(
        _has(records, "generation", *_LOSSES) for records in (retain, authors, facts)
    )


def _min_k_sets(records_by_set: _Sets) -> tuple[Sequence[Record], Sequence[Record]] | None:
    forget, holdout = (records_by_set.get(f"privleak_{part}", ()) for part in ("forget", "holdout"))
    scored = all(_has(part, "token_logps") or _has(part, "min_k") for part in (forget, holdout))
    return (forget, holdout) if scored else None
