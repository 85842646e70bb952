"""What some metrics need after a model has been scored: other models' views of what it said.

Each pass runs only if a chosen metric reads it: generations scored by the target model, a gibberish
classifier's verdict, and hidden states patched from model to model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, get_args

import torch

from etw_lightning.callbacks.evaluation import Suite
from etw_lightning.catalogue.entries import Extra, Given, Sets
from etw_lightning.catalogue.suite import Plan
from etw_lightning.data.encode import Encoder
from etw_lightning.data.spacy_spans import Kind, spacy_spans
from etw_lightning.metrics import generations_as_examples
from etw_lightning.metrics.tokens import mark_tokens
from etw_lightning.models.loading import LabelScorer
from etw_lightning.schema import EvalSet, Record
from etw_lightning.scoring.depth import build_depth_batches, make_depth_rows, measure_depth
from etw_lightning.scoring.gibberish_classifier import clean_probabilities
from etw_lightning.training.datamodule import UnlearningDataModule
from etw_lightning.training.module import UnlearningModule
from etw_lightning.training.other_models import OtherModels

__all__ = [
    "SecondPasses",
    "depth_rows",
    "extras_of",
    "find_words",
    "judge_generations",
    "score_generations",
]

_EvalSets = Mapping[str, EvalSet]
#: Scores sets with the target model: sets to records.
ScoreWithTarget = Callable[[_EvalSets], Mapping[str, Sequence[Record]]]


def extras_of(
    data: UnlearningDataModule, classifier: str | None, spacy_model: str | None = None
) -> frozenset[Extra]:
    """Return what these passes can give with the models that are named."""
    given: set[Extra] = set()
    if data.target_model is not None:
        given.add("generations")
        if data.retain_model is not None:
            given.add("depth")
    if classifier is not None:
        given.add("classifier")
    if spacy_model is not None:
        given.add("spacy")
    return frozenset(given)


class SecondPasses:
    """Completes what metrics are computed from, once a model's records are there.

    The first process runs the passes and tells the others.

    Args:
        suite: Its plan says what is needed.
        module: The model that has been scored.
        others: The retain and the target model.
        classifier: Folder or hub name of the gibberish classifier.
        spacy_model: Name or folder of a spaCy model.
    """

    def __init__(
        self,
        suite: Suite,
        module: UnlearningModule,
        others: OtherModels,
        classifier: str | None,
        spacy_model: str | None = None,
    ) -> None:
        self.suite, self.module, self.others = suite, module, others
        self.classifier, self.spacy_model = classifier, spacy_model
        #: What is written a row an example.
        self.rows: dict[str, list[dict[str, Any]]] = {}

    def __call__(self, given: Given) -> Given:
        """Return ``given`` with what further passes give."""
        assert self.suite.plan is not None
        plan, trainer = self.suite.plan, self.others.trainer
        if not plan.needs & {"generations", "classifier", "depth", "spacy"}:
            return given
        # Of shards a copy is made by all processes together.
        own = self.module.whole_scorer() if "depth" in plan.needs else None
        found = self._run(plan, given, own) if trainer.is_global_zero else {}
        return replace(given, **trainer.strategy.broadcast(found))

    def _run(self, plan: Plan, given: Given, own: LabelScorer | None) -> dict[str, Any]:
        data = self.others.data
        found: dict[str, Any] = {}
        if "generations" in plan.needs:
            found["generations"] = score_generations(
                plan, data.eval_sets, given.records, lambda sets: self.others.score("target", sets)
            )
        if "classifier" in plan.needs:
            assert self.classifier is not None
            records = {"run": given.records, "target": given.target or {}}
            found["clean"] = judge_generations(plan, records, self.classifier, data.eval_batch_size)
        if "spacy" in plan.needs:
            assert self.spacy_model is not None
            found["spacy_spans"] = find_words(plan, data.eval_sets, self.spacy_model)
        if "depth" in plan.needs:
            assert own is not None
            rows = self._measure_depth(given, own)
            self.rows["depth"] = rows
            found["depth"] = tuple(
                [row[f"{whose}_deltas"] for row in rows] for whose in ("retain", "unlearned")
            )
        return found

    def _measure_depth(self, given: Given, own: LabelScorer) -> list[dict[str, Any]]:
        data = self.others.data
        models = (self.others.load("target"), self.others.load("retain"), own.eval())
        with torch.no_grad(), self.others.trainer.precision_plugin.forward_context():
            return depth_rows(
                data.eval_sets["forget"],
                given.records["forget"],
                given.spans.get("forget"),
                data.encoder,
                data.eval_batch_size,
                models,
            )


def _sets_read_by(plan: Plan, need: str) -> list[str]:
    """Return the sets that metrics with this need read, in the order of the catalogue."""
    entries = [entry for entry in plan.entries.values() if need in entry.needs]
    return list(dict.fromkeys(name for entry in entries for name in entry.sets[plan.family]))


def find_words(
    plan: Plan, eval_sets: _EvalSets, model: str
) -> dict[str, dict[str, list[list[tuple[int, int]]]]]:
    """Return the characters of nouns and of entities in each answer, by kind and set.

    Args:
        plan: The metrics.
        eval_sets: Whose answers.
        model: Name or folder of a spaCy model.

    Raises:
        InputError: As ``spacy_spans``.
    """
    answers = {
        name: [example.answer for example in eval_sets[name].examples]
        for name in _sets_read_by(plan, "spacy")
    }
    return {
        kind: {
            name: spacy_spans(texts, kind, model, "spacy_model") for name, texts in answers.items()
        }
        for kind in get_args(Kind)
    }


def score_generations(
    plan: Plan, eval_sets: _EvalSets, records: Sets, score: ScoreWithTarget
) -> dict[str, Sequence[Record]]:
    """Return what the target model says of a model's generations, by the set they answer.

    A set of which every generation is empty is left out.

    Args:
        plan: The metrics.
        eval_sets: What was asked.
        records: What the model said.
        score: Scores sets with the target model.
    """
    asked = {
        name: generations_as_examples(eval_sets[name], records[name])
        for name in _sets_read_by(plan, "generations")
    }
    said = score({one.name: one for one in asked.values() if one.examples})
    return {name: said[one.name] for name, one in asked.items() if one.name in said}


def judge_generations(
    plan: Plan, records_of: Mapping[str, Sets], classifier: str, batch_size: int
) -> dict[str, dict[str, list[float]]]:
    """Return the probability of each generation being clean text, by whose it is and by set.

    Args:
        plan: The metrics.
        records_of: Records of ``run``, and of ``target`` where they are there.
        classifier: Folder or hub name.
        batch_size: Texts at a time.
    """
    names = [
        (whose, name)
        for whose, records in records_of.items()
        for name in _sets_read_by(plan, "classifier")
        if name in records and all(row.generation is not None for row in records[name])
    ]
    texts = [row.generation or "" for whose, name in names for row in records_of[whose][name]]
    verdicts = iter(clean_probabilities(texts, classifier, batch_size=batch_size))
    judged: dict[str, dict[str, list[float]]] = {whose: {} for whose in records_of}
    for whose, name in names:
        judged[whose][name] = [next(verdicts) for _ in records_of[whose][name]]
    return judged


def depth_rows(
    eval_set: EvalSet,
    records: Sequence[Record],
    spans: Sequence[Sequence[tuple[int, int]]] | None,
    encoder: Encoder,
    batch_size: int,
    models: tuple[LabelScorer, LabelScorer, LabelScorer],
) -> list[dict[str, Any]]:
    """Patch the retain and the unlearned model into the target model; return a row an example.

    Args:
        eval_set: The forget set.
        records: What the unlearned model said of it.
        spans: Marked characters of each answer; None for the whole answer.
        encoder: How text becomes tokens.
        batch_size: Rows at a time.
        models: The target, the retain and the unlearned model.

    Raises:
        InputError: If the models don't fit each other.
    """
    from rich.progress import track

    marks = mark_tokens(records, spans)
    batches = build_depth_batches(eval_set, encoder, marks, batch_size)
    measured = [
        row for batch in track(batches, "Patching layers") for row in measure_depth(*models, batch)
    ]
    return [row.to_json() for row in make_depth_rows(eval_set, marks, measured)]
