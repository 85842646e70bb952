"""``unlearn``: from a loaded model and rows to a model that has forgotten some of them."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from etw_lightning.api.arguments import check_inner, check_keywords, in_own_words
from etw_lightning.api.loaded import (
    interruptible,
    make_trainer,
    quietly,
    restored,
    take_model,
    template_of,
)
from etw_lightning.api.scores import metrics_frame, metrics_html, metrics_text
from etw_lightning.benchmarks.given_rows import Rows
from etw_lightning.callbacks.collapse import Collapse
from etw_lightning.callbacks.evaluation import EvaluationCallback, SetScores, Suite
from etw_lightning.callbacks.guards import FiniteGuard
from etw_lightning.catalogue.own import OwnMetric
from etw_lightning.data.encode import Template
from etw_lightning.method import Method
from etw_lightning.metrics import Metric
from etw_lightning.schema import InputError
from etw_lightning.training.datamodule import UnlearningDataModule
from etw_lightning.training.module import UnlearningModule
from etw_lightning.training.named_methods import method_settings

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["Unlearned", "UnlearningResults", "seeded", "unlearn"]


@dataclass(frozen=True, repr=False)
class UnlearningResults:
    """What a run of ``unlearn`` came to; shows itself as a table in a notebook.

    Args:
        before: Numbers of the model it started from, by name.
        after: The same of the unlearned model.
        losses: ``forget``, ``retain`` and ``total`` of each optimiser step, as they were minimised.
        warnings: What the guards have found, in words.
    """

    before: dict[str, Metric] = field(default_factory=dict)
    after: dict[str, Metric] = field(default_factory=dict)
    losses: list[dict[str, float]] = field(default_factory=list, repr=False)
    warnings: list[str] = field(default_factory=list)

    def frame(self) -> DataFrame:
        """Return one row a number: before, after, direction, n, and the later interval's ends.

        ``low`` and ``high`` are NaN for a number of which no interval is computed, as of most.
        """
        frame = metrics_frame(self.after).rename(columns={"value": "after"})
        frame.insert(0, "before", metrics_frame(self.before)["value"])
        return frame

    def _repr_html_(self) -> str:
        return metrics_html({"before": self.before, "after": self.after})

    def __repr__(self) -> str:
        lines = [f"{len(self.losses)} step{'s' * (len(self.losses) != 1)}"]
        lines += [f"warning: {one}" for one in self.warnings]
        if self.after:
            lines.append(metrics_text({"before": self.before, "after": self.after}))
        return "\n".join(lines)


class Unlearned(NamedTuple):
    """The model that was given, unlearned, and the results of the run.

    Args:
        model: The same object, its weights trained.
        results: Losses and numbers.
    """

    model: Any
    results: UnlearningResults

    def __repr__(self) -> str:
        return f"{type(self.model).__name__}, unlearned in {self.results!r}"

    def _repr_html_(self) -> str:
        return self.results._repr_html_()


@in_own_words
def unlearn(
    model: Any,
    tokenizer: Any = None,
    forget: Rows | None = None,
    retain: Rows | None = None,
    method: str | Method = "etw",
    *,
    epochs: int = 5,
    lr: float = 1e-5,
    batch_size: int = 8,
    seed: int = 0,
    metrics: str | Sequence[str | type[OwnMetric]] | None = None,
    template: Template | None = None,
    precision: Any = "32-true",
    progress: bool = True,
    callbacks: Sequence[Callback] = (),
    data: Mapping[str, Any] | None = None,
    trainer: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Unlearned:
    """Train a model to forget some rows and keep others, in place, on the device it is on.

    What is trained is what ``python -m etw_lightning fit`` trains with the same settings, rows and
    seed, number for number. The state of all random generators is afterwards what it was.

    Args:
        model: A loaded causal language model, which is trained in place; or a name or folder.
        tokenizer: Its tokenizer; None where ``model`` is a name.
        forget: What is to be forgotten: a list of texts or of rows (``question`` and ``answer``,
            or ``text``), a ``datasets.Dataset``, or the path of a file.
        retain: What is to stay; the same. May be left out where the method reads none.
        method: Name of a method with its numbers (``etw``, ``npo``, ``rmu``, ...), or a
            ``Method(weighting, forget, retain)``.
        epochs: Passes over the forget rows.
        lr: Peak learning rate.
        batch_size: Rows of each stream in one step.
        seed: Of the order of rows and of what is drawn.
        metrics: Numbers to compute before and after, as of ``evaluate``; None for the probability
            of each set's answers; an empty list for none.
        template: ``chat`` or ``plain``; None takes the tokenizer's chat template if it has one.
        precision: As of ``lightning.Trainer``.
        progress: Draw bars.
        callbacks: Further callbacks of the trainer.
        data: Further arguments of ``UnlearningDataModule``, such as ``max_length``.
        trainer: Further arguments of ``lightning.Trainer``, such as ``accumulate_grad_batches``.
        settings: Further arguments of ``UnlearningModule``, such as ``forget_weight`` (lambda),
            ``schedule`` or ``peft``: an adapter that is trained and then merged.

    Returns:
        The model, the same object, and the results: ``model, results = unlearn(...)``.

    Raises:
        InputError: Names the argument.
        TypeError: If there is no argument of a name.
        TrainingStoppedError: If a loss or a gradient is not finite; the model is then what it was
            before that step.
    """
    check_keywords(unlearn, settings, "model")
    check_inner(unlearn, data=data, trainer=trainer)
    if forget is None:
        raise InputError("forget must be given: the rows that are to be forgotten.")
    for name, number in (("epochs", epochs), ("batch_size", batch_size)):
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise InputError(f"{name} must be a whole number >= 1; got {number!r}.")
    said, its_data = method_settings(method)
    given = take_model(model, tokenizer)
    if said.get("retain") is not None and retain is None:
        raise InputError(
            f"retain must be given: method {method if isinstance(method, str) else ''!s} holds the "
            "rows that are to stay. Give some, or a method without a retain term, such as tpo."
        )
    rows = UnlearningDataModule.from_rows(
        forget,
        retain,
        given.tokenizer,
        **{
            "batch_size": batch_size,
            "seed": seed,
            "template": template_of(given.tokenizer, template),
            **its_data,
            **(data or {}),
        },
    )
    watch = _Watch()
    watchers = _evaluations(metrics, epochs, has_retain=retain is not None)
    collapse = Collapse()
    arguments = {
        "max_epochs": epochs,
        "gradient_clip_val": 1.0,
        "log_every_n_steps": 1,
        "precision": precision,
        **(trainer or {}),
    }
    with quietly(), interruptible(), restored(given.lm), seeded(seed):
        module = UnlearningModule.from_model(
            given.lm, given.tokenizer, **{**said, "lr": lr, **settings}
        )
        guards = [FiniteGuard(), *watchers, *callbacks, collapse, watch]
        runner = make_trainer(given.lm, guards, progress=progress, **arguments)
        runner.fit(module, datamodule=rows)
        if module.adapter is not None:
            module.adapter.merge_for_good()
            # Left on the object, though nothing of the adapter is.
            vars(given.lm).pop("peft_config", None)
    found = [finding.reason for finding in collapse.findings]
    results = UnlearningResults(watch.before, watch.after, watch.losses, found)
    return Unlearned(given.lm, results)


def _evaluations(
    metrics: str | Sequence[str | type[OwnMetric]] | None, epochs: int, *, has_retain: bool
) -> list[EvaluationCallback]:
    """Return what computes the numbers before training and after the last epoch."""
    if metrics is None:
        sets = ["forget", "retain"] if has_retain else ["forget"]
        probability = SetScores(sets, every_n_epochs=epochs)
        # Generations take most of the time, and nobody has asked for them.
        probability.needs = dict.fromkeys(sets, frozenset({"answers"}))
        return [probability]
    return [Suite(cast(Any, metrics), every_n_epochs=epochs)] if metrics else []


class _Watch(Callback):
    """Keeps the losses of each optimiser step, and the numbers before and after."""

    def __init__(self) -> None:
        self.before: dict[str, Metric] = {}
        self.after: dict[str, Metric] = {}
        #: Shares of the losses of each step's micro-batches, on the device.
        self._steps: list[list[dict[str, Tensor]]] = [[]]
        self._num_steps = 0

    @property
    def losses(self) -> list[dict[str, float]]:
        """Sums of the shares, step by step."""
        return [
            {
                name: sum(part[name].item() for part in parts if name in part)
                for name in dict.fromkeys(name for part in parts for name in part)
            }
            for parts in self._steps[: self._num_steps]
        ]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep the shares of a step's micro-batches; they are read when all is done."""
        assert isinstance(pl_module, UnlearningModule)
        self._steps[-1].append(dict(pl_module.losses))
        if trainer.global_step > self._num_steps:
            self._num_steps = trainer.global_step
            self._steps.append([])

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep what has just been computed."""
        found: dict[str, Metric] = {}
        for one in getattr(trainer, "callbacks", ()):
            if isinstance(one, EvaluationCallback):
                found |= one.latest
        if trainer.sanity_checking:
            self.before = found
        elif found:
            self.after = {**self.after, **found}


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed all random generators as a run does, and give them their state back."""
    states = (random.getstate(), np.random.get_state())
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
