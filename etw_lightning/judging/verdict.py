"""The verdict in words: what moved, what broke, and which number says so."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from etw_lightning.judging.numbers import Group, Numbers

__all__ = ["BOUNDS", "Finding", "findings", "headline"]

#: From where on a number speaks for or against a run; p-value, points, shares and percent.
BOUNDS: Mapping[str, float] = {
    "forget_quality": 0.05,
    "utility_points": 5.0,
    "repetition": 0.05,
    "share_of_answers": 0.05,
    "share_of_items": 0.05,
    "privleak": 5.0,
    "percent_points": 5.0,
}


@dataclass(frozen=True)
class Finding:
    """One thing that a number says of a run.

    Args:
        group: What it speaks of.
        is_good: Whether it speaks for the run; None for what is only told.
        short: A few words with the number, for the headline.
        text: The whole sentence.
    """

    group: Group
    is_good: bool | None
    short: str
    text: str

    def to_json(self) -> dict[str, Any]:
        """Return it ready for JSON."""
        return {"group": self.group, "is_good": self.is_good, "text": self.text}


def findings(
    after: Numbers, before: Numbers | None = None, retain: Numbers | None = None
) -> list[Finding]:
    """Return what the numbers of a model say, next to those of the target and the retain model.

    Args:
        after: Of the model that is judged.
        before: Of the model before training, or the target model; None where it is not known.
        retain: Of the retain model; None where it is not known.

    Example:
        >>> [one] = findings({"privleak": 71.5})
        >>> one.text
        'over-forgotten: privleak +71.5 % (0 is the retain model; past it is not better)'
    """
    start, gold = before or {}, retain or {}
    return [
        *_forgetting(after, start, gold),
        *_memory(after, gold),
        *_items(after, gold),
        *_keeping(after, start),
        *_answers(after, start, gold),
        *_privacy(after),
    ]


def headline(found: list[Finding]) -> str:
    """Return the verdict in one line.

    Example:
        >>> headline(findings({"privleak": 71.5}))
        'verdict: bad: over-forgotten (privleak +71.5 %)'
    """
    good = [one.short for one in found if one.is_good]
    bad = [one.short for one in found if one.is_good is False]
    parts = [f"good: {', '.join(good)}"] * bool(good) + [f"bad: {', '.join(bad)}"] * bool(bad)
    return f"verdict: {'; '.join(parts) or 'no number that says so'}"


def _forgetting(after: Numbers, before: Numbers, retain: Numbers) -> Iterator[Finding]:
    quality, bound = after.get("forget_quality"), BOUNDS["forget_quality"]
    mine, theirs = after.get("forget_probability"), retain.get("forget_probability")
    is_past = mine is not None and theirs is not None and mine < theirs
    if quality is None:
        yield from _forgetting_without_quality(after, before, retain)
        return
    fq = f"FQ {quality:.3g}"
    counts = f"KS distance {after.get('d_times_n')}/{after.get('n')}"
    pair = "" if mine is None or theirs is None else f"{mine:.3g}, the retain model's {theirs:.3g}"
    if (floor := after.get("forget_quality_floor") or 0.0) >= bound:
        text = f"{fq}, which {after.get('n')} rows can't bring below {floor:.2g}, whatever is "
        text += "left: it says nothing; score four rows or more"
        yield Finding("forgotten", None, "", text)
    elif quality >= bound:
        text = f"forgotten: {fq} >= {bound:g} ({counts}): by truth ratios it can't be told from "
        text += "the retain model"
        if mine is not None and theirs is not None:
            side = "below " if mine < theirs else "above " if mine > theirs else ""
            text += f"; forget probability {mine:.3g}, {side}the retain model's {theirs:.3g}"
        yield Finding("forgotten", True, f"forgotten ({fq})", text)
    elif (beyond := after.get("beyond_scale") or 0.0) > BOUNDS["share_of_answers"]:
        rows = f"{round(beyond * (after.get('n') or 0))} of {after.get('n')} right answers are"
        text = (
            f"over-forgotten: {fq} < {bound:g} ({counts}): {rows} less likely than 1e-10 a token, "
            "where the truth ratio falls to 0; push less"
        )
        yield Finding("forgotten", False, f"over-forgotten ({fq})", text)
    elif is_past:
        text = (
            f"over-forgotten: {fq} < {bound:g} ({counts}) and forget probability {pair}: past the "
            "retain model, not better"
        )
        yield Finding("forgotten", False, f"over-forgotten ({fq})", text)
    else:
        more = f" and forget probability {pair}" if pair else ""
        text = f"not forgotten: {fq} < {bound:g} ({counts}){more}"
        yield Finding("forgotten", False, f"not forgotten ({fq})", text)


def _forgetting_without_quality(
    after: Numbers, before: Numbers, retain: Numbers
) -> Iterator[Finding]:
    """Compare probabilities of own rows, where there is no forget quality."""
    mine, start, theirs = (one.get("forget_probability") for one in (after, before, retain))
    if mine is None or after.get("verbmem") is not None:
        return
    if theirs is not None:
        is_past = mine < theirs
        word = "down to the retain model's" if is_past else "still above the retain model's"
        text = f"forget probability {mine:.3g}: {word} {theirs:.3g}"
        yield Finding("forgotten", is_past, f"forget probability {mine:.3g}", text)
    elif start is not None:
        text = f"forget probability {start:.3g} -> {mine:.3g}; without a retain model nothing says "
        text += "how far it should fall"
        yield Finding("forgotten", None, "", text)


def _memory(after: Numbers, retain: Numbers) -> Iterator[Finding]:
    """MUSE's two memories, next to the retain model's."""
    for key in ("verbmem", "knowmem_forget"):
        mine, theirs = after.get(key), retain.get(key)
        if mine is None or theirs is None:
            continue
        gap = mine - theirs
        is_good = abs(gap) <= BOUNDS["percent_points"]
        word = "forgotten" if is_good else "over-forgotten" if gap < 0 else "not forgotten"
        text = f"{word}: {key} {mine:.1f} %, the retain model's {theirs:.1f} %"
        yield Finding("forgotten", is_good, f"{word} ({key} {mine:.1f} %)", text)


def _items(after: Numbers, retain: Numbers) -> Iterator[Finding]:
    share, there = after.get("still_said"), after.get("items")
    if share is None or there is None:
        return
    base = retain.get("still_said")
    more = "" if base is None else f"; the retain model says {round(base * there)}"
    counts = f"{round(share * there)} of {there}"
    text = f"{counts} names, numbers and addresses of the forget answers are still said{more}"
    is_bad = share > (base or 0.0) + BOUNDS["share_of_items"]
    yield Finding("forgotten", False if is_bad else None, f"still said ({counts})", text)


def _keeping(after: Numbers, before: Numbers) -> Iterator[Finding]:
    for key, name, scale in (
        ("model_utility", "MU", 100.0),
        ("retain_rouge", "retain ROUGE-L", 100.0),
        ("knowmem_retain", "knowmem retain", 1.0),
    ):
        mine, start = after.get(key), before.get(key)
        if mine is None or start is None:
            continue
        points = scale * (mine - start)
        is_good = points >= -BOUNDS["utility_points"]
        word = "kept" if is_good else "utility lost"
        number = f"{name} {points:+.1f} points"
        text = f"{word}: {name} {mine:.3g}, the target model's {start:.3g} ({points:+.1f} points)"
        yield Finding("kept", is_good, f"{word} ({number})", text)
        return


def _answers(after: Numbers, before: Numbers, retain: Numbers) -> Iterator[Finding]:
    for name in ("forget", "retain"):
        n = after.get(f"{name}_n")
        if n is None:
            continue
        said = list(_broken(name, int(n), after, before, retain))
        if said:
            text = f"broken: {name} answers: {'; '.join(said)}"
            yield Finding("sane", False, f"broken {name} answers ({said[0]})", text)
        elif f"{name}_repetition" in retain or f"{name}_repetition" in before:
            than = "the retain model's" if f"{name}_repetition" in retain else "before"
            text = f"sane: {name} answers repeat themselves hardly more than {than}"
            yield Finding("sane", True, f"{name} answers sane", text)


def _broken(name: str, n: int, after: Numbers, before: Numbers, retain: Numbers) -> Iterator[str]:
    """Say what of the answers of a set is worse than the retain model's, else than before."""
    base = retain if retain.get(f"{name}_repetition") is not None else before
    other = "the retain model" if base is retain else "before"
    mine = after.get(f"{name}_repetition") or 0.0
    theirs = base.get(f"{name}_repetition") or 0.0
    if mine > theirs + BOUNDS["repetition"]:
        yield f"repetition {mine:.2f}, {other} {theirs:.2f}"
    shares = [("stutter", "say a word twice in a row"), ("looped", "are gibberish")]
    if name == "retain":
        shares.append(("refusals", "are refusals"))
    for key, words in shares:
        mine, theirs = (one.get(f"{name}_{key}") or 0.0 for one in (after, base))
        if mine > theirs + BOUNDS["share_of_answers"]:
            yield f"{round(mine * n)} of {n} {words}, {other} {round(theirs * n)}"


def _privacy(after: Numbers) -> Iterator[Finding]:
    leak, auc = after.get("privleak"), after.get("auc")
    if leak is not None:
        number = f"privleak {leak:+.1f} %"
        if abs(leak) <= BOUNDS["privleak"]:
            yield Finding("private", True, f"private ({number})", f"private: {number}")
        elif leak < 0:
            known = "still known by membership"
            text = f"{known}: {number} (0 is the retain model; below it the rows that were trained "
            yield Finding("private", False, f"{known} ({number})", f"{text}on still show)")
        else:
            text = f"over-forgotten: {number} (0 is the retain model; past it is not better)"
            yield Finding("private", False, f"over-forgotten ({number})", text)
    elif auc is not None:
        side = "members still show" if auc > 0.5 else "the forget set is less likely than holdout"
        text = f"Min-K AUC {auc:.3f} ({side}); only a retain model could say what it should be"
        yield Finding("private", None, "", text)
