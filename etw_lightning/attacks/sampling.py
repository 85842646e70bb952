"""Sampling: what greedy answers hide may be said by one of many samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from etw_lightning.attacks.asking import (
    asked,
    batch_size_of,
    question_set,
    recalls,
    refusal_constancy,
    row_mean,
    rows_of_side,
    words_of,
)
from etw_lightning.attacks.interface import Attack, Heard, Subject
from etw_lightning.attacks.judges import LeakJudge, RougeJudge, find_judge, judged
from etw_lightning.metrics import Metric
from etw_lightning.metrics.repeated import THRESHOLD, leakage
from etw_lightning.metrics.sanity import refusal_values
from etw_lightning.models.sampling import Sampling
from etw_lightning.schema import EvalSet, InputError, Record
from etw_lightning.scoring.continuations import continue_prompts, prompts_of, said_records

if TYPE_CHECKING:
    from etw_lightning.attacks.attacked_run import AttackedRun

__all__ = ["Sample"]


@dataclass(frozen=True)
class Sample(Attack):
    """Draw several answers to each forget question, and see how many give the row away.

    Numbers: ``forget_leak_at_k``, the probability that k samples of a row hold a leak;
    ``forget_rouge_at_k``, the highest ROUGE-L recall to be expected of k samples;
    ``forget_refusals``, the share of the samples that refuse; ``forget_refusal_stability``, the
    share of the rows of which all samples refuse or none, and ``forget_refusal_agreement``, the
    share of a row's samples that do what most of them do. The suite's numbers of texts are of the
    sample of each row that says most of its answer. Before the attack stand the same of greedy
    answers, whatever k.

    Source: leak@k, arXiv:2511.04934.
    Differs from it: an interval by bootstrap over rows.

    Args:
        num_samples: Samples of each question, n.
        ks: How many samples an attacker takes; each from 1 to n.
        temperature: What logits are divided by, above 0; 1 samples the model as it is.
        top_p: Likeliest tokens that are kept, by the mass they have together; above 0, 1 keeps all.
        judge: Says what leaks: ``rouge``, enough of the answer's words; ``said``, a name, number or
            address of it; or the path of a class of your own, a ``LeakJudge``.
        threshold: ROUGE-L recall from which ``rouge`` finds a leak; above 0, at most 1. Answers
            made to one pattern share most of their words with wrong ones: take it high there.

    Raises:
        InputError: If a number is out of range, or a k above n.
    """

    num_samples: int = 32
    ks: tuple[int, ...] = (1, 4, 16)
    temperature: float = 1.0
    top_p: float = 1.0
    judge: str = "rouge"
    threshold: float = THRESHOLD

    scores_suite = False
    heard_parts = frozenset({"generation"})

    def __post_init__(self) -> None:
        if self.num_samples < 1:
            raise InputError(f"attack.num_samples must be 1 or more; got {self.num_samples}.")
        if not self.ks:
            raise InputError("attack.ks must name at least one k, such as [1, 4]; got none.")
        for k in self.ks:
            if not 1 <= k <= self.num_samples:
                raise InputError(
                    f"attack.ks: k must be from 1 to attack.num_samples, {self.num_samples}; got "
                    f"{k}. Draw more samples, or take a smaller k."
                )
        self._sampling(0)
        RougeJudge(self.threshold)

    def _judge(self, run: AttackedRun) -> LeakJudge:
        return find_judge(self.judge, self.threshold, words_of(run))

    def _sampling(self, seed: int) -> Sampling:
        return Sampling(self.temperature, self.top_p, seed)

    def check(self, run: AttackedRun) -> None:
        """Refuse a judge that is none, and rows without questions."""
        self._judge(run)
        rows_of_side(run, "forget")

    def hear(self, subject: Subject, *, attacked: bool) -> Heard:
        """Return the numbers of samples, or of greedy answers."""
        eval_set = question_set(subject, "forget")
        if not attacked:
            records = asked(subject, replace(eval_set, losses=False))
            return Heard({eval_set.name: records}, self._of_greedy(subject, records))
        records = self.sampled(subject, eval_set)
        found = self._leaks(subject, records, self.ks)
        found["forget_refusals"] = row_mean(
            refusal_values(records).reshape(len(eval_set.examples), -1).mean(axis=1), "none"
        )
        if self.num_samples > 1:
            found |= refusal_constancy("forget", records)
        best = recalls(records, subject.run).reshape(-1, self.num_samples).argmax(axis=1)
        said = [records[row * self.num_samples + int(place)] for row, place in enumerate(best)]
        return Heard({eval_set.name: said}, found)

    def _of_greedy(self, subject: Subject, records: Sequence[Record]) -> dict[str, Metric]:
        greedy = self._leaks(subject, records, (1,))
        found = {
            f"forget_{what}_at_{k}": greedy[f"forget_{what}_at_1"]
            for what in ("leak", "rouge")
            for k in self.ks
        }
        return {**found, "forget_refusals": row_mean(refusal_values(records), "none")}

    def sampled(self, subject: Subject, eval_set: EvalSet) -> list[Record]:
        """Return a record for each sample of each row."""
        said = continue_prompts(
            subject.lm,
            subject.encoder,
            prompts_of(eval_set.examples, subject.encoder),
            eval_set,
            batch_size_of(subject.run),
            self._sampling(subject.run.seed),
            self.num_samples,
        )
        return said_records(eval_set, said)

    def _leaks(
        self, subject: Subject, records: Sequence[Record], ks: Sequence[int]
    ) -> dict[str, Metric]:
        judge = partial(judged, self._judge(subject.run))
        rouge = partial(recalls, run=subject.run)
        return {
            f"forget_{what}_at_{k}": leakage(records, k, scores)
            for what, scores in (("leak", judge), ("rouge", rouge))
            for k in ks
        }
