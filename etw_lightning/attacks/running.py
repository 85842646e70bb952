"""One attack on one run: numbers before and under it, of the unlearned and of the retain model."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, cast

from etw_lightning.api.unlearning import seeded
from etw_lightning.attacks.asking import side_name
from etw_lightning.attacks.attacked_run import AttackedRun
from etw_lightning.attacks.heard import HeardSuite
from etw_lightning.attacks.interface import Attack, Robustness, Subject, Who
from etw_lightning.attacks.scoring import Examiner, metrics_of_run
from etw_lightning.catalogue.entries import Part
from etw_lightning.metrics import Metric
from etw_lightning.metrics.recovery import (
    quantisation_robustness,
    recovered_share,
    relearning_robustness,
)

__all__ = ["AttackOutcome", "run_attack"]

_Numbers = Mapping[str, Metric]


@dataclass(frozen=True)
class AttackOutcome:
    """What an attack came to.

    The recovered share is that of numbers which speak of the forget set, and of the attack's own.

    Args:
        target: Numbers of the target model without the attack, by name.
        before: Of the unlearned model without it.
        after: Of the unlearned model under it.
        retain_before: Of the retain model without it; empty where none is at hand.
        retain_after: Of the retain model under the same attack.
        own: Names of numbers that the attack itself has measured.
        is_asking: It has asked rows itself, and left the model and all other rows as they are: what
            is not among the numbers is as before.
        left_out: Metrics of the suite that the rows it asks do not allow, each with the reason.
        seconds: What it took.
    """

    target: _Numbers
    before: _Numbers
    after: _Numbers
    retain_before: _Numbers = field(default_factory=dict)
    retain_after: _Numbers = field(default_factory=dict)
    own: frozenset[str] = frozenset()
    is_asking: bool = False
    left_out: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    def recovered(self, name: str) -> float | None:
        """Return the share of what was forgotten that the attack has brought back, by a number."""
        return self._share(name, self.before, self.after)

    def recovered_by_retain(self, name: str) -> float | None:
        """Return the same of the retain model, which never knew it: what is learnt anew."""
        return self._share(name, self.retain_before, self.retain_after)

    def robustness(self, name: str, kind: Robustness | None) -> float | None:
        """Return R or Q of a number of the forget set; None for one that is no such.

        The number must be higher the more is known, as are AUCs of membership tests, and >= 0.
        """
        found = (self.before, self.after, self.retain_before, self.retain_after)
        was, now, retain_was, retain_now = (one.get(name) for one in found)
        is_auc = name.startswith("mia_") and not name.endswith("_relative_difference")
        is_higher = was is not None and (was.direction == "down" or is_auc)
        is_fit = was and now and is_higher and _is_of_forgetting(name)
        if not is_fit or was is None or now is None:
            return None
        if kind == "relearning" and retain_was and retain_now:
            values = (was.value, now.value, retain_was.value, retain_now.value)
            return relearning_robustness(*values)
        if kind == "quantisation" and min(was.value, now.value) >= 0:
            return quantisation_robustness(was.value, now.value)
        return None

    def _share(self, name: str, before: _Numbers, after: _Numbers) -> float | None:
        is_there = all(name in found for found in (before, after, self.target))
        if not is_there or not (name in self.own or _is_of_forgetting(name)):
            return None
        was, now, target = (found[name].value for found in (before, after, self.target))
        return recovered_share(was, now, target, before[name].direction)


def run_attack(
    attack: Attack,
    run: AttackedRun,
    metrics: Sequence[str] | None = None,
    *,
    progress: bool = False,
    say: Callable[[str], None] | None = None,
) -> AttackOutcome:
    """Attack a run's model, and its retain model in the same way.

    Args:
        attack: The attack.
        run: The run.
        metrics: Names of metrics; None for those that gave the run's own numbers.
        progress: Draw bars.
        say: Takes a line about what is done.

    Raises:
        InputError: If it can't be done.
    """
    start = time.monotonic()
    tell = say or _nothing
    attack.check(run)
    names = metrics_of_run(run, needed=attack.scores_suite) if metrics is None else list(metrics)
    plain = Examiner(run, names if attack.scores_suite else [], progress=progress)
    if metrics is not None and attack.scores_suite:
        plain.require(names)
    heard = _heard_suite(attack, names, run, is_asked=metrics is not None)
    attacked = plain
    if attack.changes_rows:
        attacked = Examiner(run, names, partial(attack.change_rows, run=run), progress=progress)
    models: tuple[Who, ...] = ("target", "unlearned")
    if run.has("retain"):
        models = (*models, "retain")
    own: frozenset[str] = frozenset()
    before: dict[Who, dict[str, Metric]] = {}
    after: dict[Who, dict[str, Metric]] = {}
    for who in models:
        tell(f"{who} model, without the attack")
        before[who] = plain.of(who)
        if attack.hears:
            subject = _subject(who, plain, run)
            before[who] |= _hear(attack, subject, heard, attacked=False)[0]
        if who == "target":
            continue
        tell(f"{who} model, under the attack")
        with seeded(run.seed):
            subject = _subject(who, attacked, run)
            lm = attack.change_model(subject)
            after[who] = attacked.of_lm(lm) if attack.scores_suite else {}
            if attack.hears:
                found, own = _hear(attack, replace(subject, lm=lm), heard, attacked=True)
                after[who] |= found
    return AttackOutcome(
        before["target"],
        before["unlearned"],
        after["unlearned"],
        before.get("retain", {}),
        after.get("retain", {}),
        own,
        heard is not None,
        {} if heard is None else heard.left_out,
        round(time.monotonic() - start, 1),
    )


def _nothing(line: str) -> None:
    """Say nothing."""


def _is_of_forgetting(name: str) -> bool:
    """Tell by its name whether a number of the suite speaks of the forget set."""
    words = ("forget", "verbmem", "privleak", "mia_", "extraction_", "exact_memor")
    return any(word in name for word in words) and not name.startswith("retain")


def _subject(who: Who, examiner: Examiner, run: AttackedRun) -> Subject:
    lm: Any = examiner.placed(run.load(who))
    sets = examiner.sets
    return Subject(who, lm, run.tokenizer, sets, examiner.data.encoder, run)


def _heard_suite(
    attack: Attack, names: Sequence[str], run: AttackedRun, *, is_asked: bool
) -> HeardSuite | None:
    """Return which of the suite's numbers are computed from what an attack asks itself."""
    if attack.scores_suite or type(attack).hear is Attack.hear:
        return None
    data = run.data()
    asked = side_name(data.offered_sets, "forget")
    parts = cast(Collection[Part], attack.heard_parts)
    found = HeardSuite(names, data, (asked,), parts, is_asked=is_asked)
    if is_asked:
        found.require(type(attack).__name__)
    return found


def _hear(
    attack: Attack, subject: Subject, heard: HeardSuite | None, *, attacked: bool
) -> tuple[dict[str, Metric], frozenset[str]]:
    """Return the numbers of what is asked, and the names of those that are the attack's own."""
    said = attack.hear(subject, attacked=attacked)
    suite = heard.of(said.records) if heard is not None else {}
    return {**suite, **said.numbers}, frozenset(said.numbers)
