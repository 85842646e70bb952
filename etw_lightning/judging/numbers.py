"""The numbers by which a run is judged, model by model: forgotten, kept, sane, private."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from etw_lightning import metrics
from etw_lightning.metrics.still_said import items_of, said_items
from etw_lightning.metrics.values import TINY
from etw_lightning.metrics.words import WordRule
from etw_lightning.schema import Conventions, InputError, Record

__all__ = [
    "LINES",
    "Group",
    "Line",
    "Numbers",
    "forget_and_retain",
    "overshoot",
    "privacy",
    "sanity",
]

#: Numbers of one model by name; None where one can't be had.
Numbers = dict[str, float | int | None]
Group = Literal["forgotten", "kept", "sane", "private"]
_Sets = Mapping[str, Sequence[Record]]


@dataclass(frozen=True)
class Line:
    """How a number is shown.

    Args:
        group: What it speaks of.
        label: Its name in words, with the direction.
        form: ``p`` for a p-value, ``count`` for ``k/n``, ``share`` for ``k/n`` of a share, else a
            format.
        metric: Name that ``explain`` knows it by.
    """

    group: Group
    label: str
    form: str
    metric: str


#: The lines of the table, in order.
LINES: Mapping[str, Line] = {
    "forget_quality": Line("forgotten", "forget quality FQ ↑", "p", "forget_quality"),
    "neg_log10_forget_quality": Line("forgotten", "-log10 FQ ↓", ".3f", "neg_log10_forget_quality"),
    "d_times_n": Line("forgotten", "KS distance D·n/n ↓", "count", "d_times_n"),
    "forget_probability": Line("forgotten", "forget probability ↓", ".4f", "probability"),
    "forget_rouge": Line("forgotten", "forget ROUGE-L ↓", ".4f", "rouge"),
    "forget_truth_ratio": Line("forgotten", "forget truth ratio ↑", ".4f", "truth_ratio"),
    "verbmem": Line("forgotten", "verbmem % ↓", ".1f", "verbmem"),
    "knowmem_forget": Line("forgotten", "knowmem forget % ↓", ".1f", "knowmem"),
    "still_said": Line("forgotten", "names, numbers, addresses said ↓", "share", "still_said"),
    "model_utility": Line("kept", "model utility MU ↑", ".4f", "model_utility"),
    "retain_rouge": Line("kept", "retain ROUGE-L ↑", ".4f", "rouge"),
    "retain_probability": Line("kept", "retain probability ↑", ".4f", "probability"),
    "knowmem_retain": Line("kept", "knowmem retain % ↑", ".1f", "knowmem"),
    **{
        f"{name}_{key}": Line("sane", f"{name}: {words}", form, metric)
        for key, words, form, metric in (
            ("repetition", "repeated 4-grams ↓", ".4f", "repetition"),
            ("stutter", "a word twice in a row ↓", "share", "sanity"),
            ("looped", "gibberish or empty ↓", "share", "sanity"),
            ("refusals", "refusals", "share", "sanity"),
        )
        for name in ("forget", "retain")
    },
    "privleak": Line("private", "privleak % → 0", "+.1f", "privleak"),
    "auc": Line("private", "Min-K AUC, .5 by chance", ".4f", "mia_min_k"),
}


def forget_and_retain(records: _Sets) -> dict[str, Sequence[Record]]:
    """Return the sets whose generations speak of forgetting and keeping, as far as they are there.

    Args:
        records: All sets of one model.
    """
    found: dict[str, Sequence[Record]] = {}
    for name in ("forget", "retain"):
        for one in (name, f"knowmem_{name}"):
            rows = records.get(one, ())
            if rows and all(row.generation is not None for row in rows):
                found.setdefault(name, rows)
    return found


def sanity(records: _Sets, words: WordRule = "published") -> Numbers:
    """Return what the generations of one model look like.

    Args:
        records: Its sets.
        words: As of ``data.rouge_tokenizer``.

    Returns:
        ``{forget,retain}_{repetition,stutter,looped,refusals}`` as shares, with ``{set}_n`` rows;
        ``still_said`` as a share of ``items`` of the forget answers. None where no generations are.

    Example:
        >>> rows = [Record("forget", "f/0", "It was Rome.", generation="Rome Rome")]
        >>> found = sanity({"forget": rows})
        >>> found["forget_stutter"], found["still_said"], found["retain_stutter"]
        (1.0, 1.0, None)
    """
    found: Numbers = {}
    sets = forget_and_retain(records)
    for name in ("forget", "retain"):
        rows = sets.get(name, ())
        found[f"{name}_n"] = len(rows) or None
        for key, value in (
            ("repetition", metrics.repetition(rows, 4, words).value if rows else None),
            ("stutter", metrics.stuttering_generations(rows, words).value if rows else None),
            ("looped", metrics.looped_generations(rows).value if rows else None),
            ("refusals", metrics.refusals(rows).value if rows else None),
        ):
            found[f"{name}_{key}"] = value
    there = sum(len(items_of(row)) for row in sets.get("forget", ()))
    said = sum(len(said_items(row)) for row in sets.get("forget", ()))
    found["still_said"] = said / there if there else None
    found["items"] = there or None
    return found


def overshoot(records: _Sets) -> Numbers:
    """Return how many forget answers are so unlikely that TOFU's truth ratio leaves its scale.

    The ratio is w / (p + 1e-10), p and w the likelihoods per token of right and wrong answers:
    once p is far below 1e-10 it falls to 0, however likely wrong answers are beside it.

    Args:
        records: Sets of one model.

    Returns:
        ``beyond_scale``, the share of forget rows with a paraphrased answer whose p is below
        1e-10, a loss above 23.03 nats a token; None without such rows.

    Example:
        >>> rows = [Record("forget", "f/0", "a", paraphrase_loss=loss) for loss in (2.0, 30.0)]
        >>> overshoot({"forget": rows})
        {'beyond_scale': 0.5}
    """
    losses = [row.paraphrase_loss for row in records.get("forget", ())]
    known = [loss for loss in losses if loss is not None]
    beyond = sum(math.exp(-loss) < TINY for loss in known)
    return {"beyond_scale": beyond / len(known) if known else None}


def privacy(
    records: _Sets,
    retain: _Sets | None = None,
    conventions: Conventions = Conventions(),  # noqa: B008
) -> Numbers:
    """Return privleak, percent, or without a retain model the AUC of Min-K.

    Args:
        records: Sets of one model.
        retain: Those of the retain model.
        conventions: As of the run.
    """
    found: Numbers = {"privleak": None, "auc": None}
    ours, theirs = _members(records), _members(retain or {})
    if ours is None:
        return found
    try:
        if theirs is not None:
            auc = metrics.min_k_auc(*theirs, conventions)
            found["privleak"] = metrics.privleak(*ours, auc, conventions).value
        else:
            found["auc"] = metrics.min_k_auc(*ours, conventions)
    except InputError:
        # Rows without a scored token, or a retain model that tells all apart: no such number.
        return {"privleak": None, "auc": None}
    return found


def _members(records: _Sets) -> tuple[Sequence[Record], Sequence[Record]] | None:
    for forget, holdout in (("privleak_forget", "privleak_holdout"), ("forget", "holdout")):
        pair = records.get(forget, ()), records.get(holdout, ())
        if all(rows and all(row.token_logps or row.min_k for row in rows) for rows in pair):
            return pair
    return None
