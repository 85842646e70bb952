"""What an attack is: it changes a model, or its questions, or asks it in a way of its own."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from etw_lightning.kernels.shown import Shown
from etw_lightning.metrics import Metric
from etw_lightning.schema import EvalSet, Record

if TYPE_CHECKING:
    from etw_lightning.attacks.attacked_run import AttackedRun
    from etw_lightning.data.encode import Encoder

__all__ = ["Attack", "Heard", "Robustness", "Subject", "Who"]

#: Whose model it is: the run's own, the one it began with, or the one that never saw the data.
Who = Literal["unlearned", "target", "retain"]
#: The meta-evaluation's R and Q.
Robustness = Literal["relearning", "quantisation"]


@dataclass(frozen=True)
class Subject:
    """A model that is attacked, and what the attacker has.

    Args:
        who: Whose model it is. An attack must not treat one otherwise than another: the retain
            model's answer is what its number is compared with.
        lm: The ``transformers`` model, on its device, in evaluation mode. It is the attack's own
            copy and may be changed in place.
        tokenizer: Its tokenizer.
        sets: The evaluation sets by name, as the attack's ``change_rows`` has left them.
        encoder: How a question becomes tokens, as in the run.
        run: The run, with its settings and other models.
    """

    who: Who
    lm: Any
    tokenizer: Any
    sets: Mapping[str, EvalSet]
    encoder: Encoder
    run: AttackedRun


@dataclass(frozen=True)
class Heard:
    """What a model has said to an attack that asks it itself, or to the same rows without it.

    Args:
        records: One a row, by evaluation set: the suite's numbers are computed from them, as far
            as they go.
        numbers: Numbers of the attack's own, by name.
    """

    records: Mapping[str, Sequence[Record]] = field(default_factory=dict)
    numbers: Mapping[str, Metric] = field(default_factory=dict)


class Attack(Shown, ABC):
    """One attack. Each of its methods may be left as it is; one of them must be overridden.

    An attack on weights overrides ``change_model``; one by other questions ``change_rows``; one
    that neither the suite nor greedy decoding can measure, such as samples, overrides ``hear`` with
    ``scores_suite`` false; ``measure`` is for numbers beside the suite's. All are called for the
    unlearned and for the retain model alike, with the same seed.
    """

    #: Whether the run's metrics are computed of the attacked model on the run's rows; else from
    #: ``hear``'s records alone. Without a type: the parser would look its name up in the modules of
    #: subclasses, and then know no type.
    scores_suite = True
    #: What ``hear``'s records of the forget questions hold, before and under the attack.
    heard_parts = frozenset({"answers", "generation"})

    @property
    def robustness(self) -> Robustness | None:
        """Which robustness of the meta-evaluation the attack measures; None for neither."""
        return None

    @property
    def read_too(self) -> frozenset[str]:
        """Settings of the run's rows that it reads and scoring does not: ``data.num_workers``."""
        return frozenset()

    def check(self, run: AttackedRun) -> None:
        """Refuse what can't be done, before anything is loaded or scored.

        Args:
            run: The run that is attacked.

        Raises:
            InputError: Names the key, what it was, what is allowed, and the way out.
        """

    def change_model(self, subject: Subject) -> Any:
        """Return the attacked model: ``subject.lm``, changed in place, or another."""
        return subject.lm

    def change_rows(self, eval_set: EvalSet, run: AttackedRun) -> EvalSet:
        """Return an evaluation set as the attacker asks it; ids, answers and their order stay.

        Args:
            eval_set: The set as the benchmark has it.
            run: The run; ``run.examples(name)`` are the rows of another set.
        """
        return eval_set

    def measure(self, subject: Subject) -> dict[str, Metric]:
        """Return numbers of the attack's own by name, of a model under attack."""
        return {}

    def measure_before(self, subject: Subject) -> dict[str, Metric]:
        """Return what stands for ``measure``'s numbers without the attack, by the same names.

        It is asked of the unlearned, the retain and the target model. A number that has no such
        counterpart is left out: it has then no recovered share.
        """
        return {}

    def hear(self, subject: Subject, *, attacked: bool) -> Heard:
        """Return what a model says of rows: asked by the attack, or the same rows without it.

        Args:
            subject: The model.
            attacked: Whether it is asked as the attack does.
        """
        return Heard({}, self.measure(subject) if attacked else self.measure_before(subject))

    @property
    def changes_rows(self) -> bool:
        """Whether other questions are asked than the benchmark's."""
        return type(self).change_rows is not Attack.change_rows

    @property
    def hears(self) -> bool:
        """Whether it asks a model itself, or has numbers of its own."""
        kind = type(self)
        return kind.hear is not Attack.hear or kind.measure is not Attack.measure
