"""The retain and the target model of a run: scored or loaded when something needs them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn

from etw_lightning import metrics
from etw_lightning.catalogue.entries import Part
from etw_lightning.models.loading import (
    DType,
    LabelScorer,
    check_vocabulary,
    load_config,
    load_model,
)
from etw_lightning.schema import EvalSet, InputError, Record
from etw_lightning.scoring.other_results import checked_records
from etw_lightning.scoring.parts import with_parts
from etw_lightning.scoring.provenance import encoding, generating
from etw_lightning.scoring.record_cache import score_model
from etw_lightning.scoring.retain_results import RetainResults, made_of
from etw_lightning.training import quickstart_models
from etw_lightning.training.datamodule import Role, UnlearningDataModule
from etw_lightning.training.strategies import computing_precision, place_whole

__all__ = ["OtherModels"]


class OtherModels:
    """Scores and loads ``data.retain_model`` and ``data.target_model`` as the run's own model.

    Args:
        data: Names them; takes their records.
        trainer: Where and in what precision they run.
        dtype: Precision of their weights.
        attention: Implementation, as of ``load_model``.
        seed: Of the quickstart's models.
    """

    def __init__(
        self,
        data: UnlearningDataModule,
        trainer: Trainer,
        dtype: DType,
        attention: str | None,
        seed: int,
    ) -> None:
        self.data, self.trainer, self.dtype, self.seed = data, trainer, dtype, seed
        self.attention = attention

    def pretrained(self, role: Role) -> str | None:
        """Return where a model comes from, once it is known to fit the tokenizer."""
        data = self.data
        given = data.retain_model if role == "retain" else data.target_model
        if given is None:
            return None
        key = f"data.{role}_model"
        found = quickstart_models.resolve(given, self.seed, key)
        check_vocabulary(data.encoder.tokenizer, load_config(found, key), found, key)
        return found

    def score(self, role: Role, eval_sets: Mapping[str, EvalSet]) -> dict[str, list[Record]]:
        """Return a model's records of some sets; what is known is read."""
        pretrained = self.pretrained(role)
        assert pretrained is not None
        return score_model(
            pretrained,
            eval_sets,
            self.data.encoder,
            self.data.eval_batch_size,
            key=f"data.{role}_model",
            dtype=self.dtype,
            precision=computing_precision(self.trainer),
            attention=self.attention,
            context=self.trainer.precision_plugin.forward_context,
            place=self.place,
        )

    def load(self, role: Role) -> LabelScorer:
        """Return a model, ready to be run."""
        pretrained = self.pretrained(role)
        assert pretrained is not None
        key = f"data.{role}_model"
        scorer = LabelScorer(load_model(pretrained, self.dtype, self.attention, key)).eval()
        scorer.check_head(key)
        return self.place(scorer)

    def place(self, scorer: LabelScorer) -> LabelScorer:
        """Put a model where the run's own is, in the run's precision."""
        return place_whole(self.trainer, scorer)

    def need(self, role: Role, needs: Mapping[str, Collection[Part]]) -> None:
        """Make sure that a model's records are there; score it if asked to.

        Raises:
            InputError: If there are none, or of other rows.
        """
        data = self.data
        if role == "target" and data.starts_from_target:
            return
        if needs and role not in data.results and self.pretrained(role) is not None:
            wanted = {n: with_parts(data.eval_sets[n], parts) for n, parts in needs.items()}
            key = f"data.{role}_model"
            source = f"{key} {self.pretrained(role)}"
            data.results[role] = RetainResults(source, self.score(role, wanted), key=key)
        read = data.retain_records if role == "retain" else data.target_records
        for name in sorted(needs):
            read(name)
        if role in data.results:
            self._check_made_like(role, needs)
        # Other benchmarks have no wrong answers, so no metric of theirs reads truth ratios.
        if role == "retain" and "forget" in needs and data.family == "tofu":
            metrics.truth_ratios(read("forget"))
        if role == "retain" and "privleak_forget" in needs:
            metrics.min_k_auc(read("privleak_forget"), read("privleak_holdout"))
        data.note_of_other(role, needs)

    def check_rest(self, role: Role, needs: Collection[str]) -> None:
        """Check what no metric needs, but stands in the table; leave out sets of other rows.

        Args:
            role: The model.
            needs: Sets that have been checked.

        Raises:
            InputError: If its records were made of other tokens or under other conventions.
        """
        data = self.data
        if role not in data.results:
            return
        results = data.results[role]
        results.check_made_like(encoding(data.encoder))
        for name in sorted(set(data.eval_sets) & set(results.records) - set(needs)):
            try:
                checked_records(results, name, data.eval_sets[name].examples, data.encoder)
            except InputError as error:
                del results.records[name]
                rank_zero_warn(f"{str(error).rstrip('.')}. {name} of that model is left out.")

    def _check_made_like(self, role: Role, needs: Mapping[str, Collection[Part]]) -> None:
        """Refuse generations that end elsewhere, or leave them out where none needs them.

        What was made in another precision is told, and marked.

        Raises:
            InputError: If a part that is needed was generated with other settings.
        """
        results = self.data.results[role]
        said = f"{results.key}: {results.source}"
        aside = {}
        for name, eval_set in self.data.eval_sets.items():
            if not eval_set.max_new_tokens:
                continue
            other = results.made_another_way(name, "generation", generating(eval_set))
            if other and "generation" in needs.get(name, ()):
                raise InputError(
                    f"{said} generated {name!r} with {other}; evaluate that model with this run's "
                    "settings, or set this run's to those."
                )
            if other:
                aside[name] = other
        told = [name for name in aside if name in results.records]
        for name in told:
            rows = results.records[name]
            results.records[name] = [replace(row, generation=None) for row in rows]
        if told:
            rank_zero_warn(
                f"{said} generated {', '.join(told)} with {aside[told[0]]}: that model's "
                "generations end elsewhere than the run's and are left out of the table."
            )
        other = self._other_precision(results)
        if other:
            self.data.precision_of_others[role] = other
            rank_zero_warn(f"{said} was made with {other}: rounding differs.")

    def _other_precision(self, results: RetainResults) -> str:
        """Say in what other precision any records were made that may be shown; empty if in none."""
        numeric = {"dtype": self.dtype, "precision": computing_precision(self.trainer)}
        found = (
            results.made_another_way(name, part, numeric)
            for name in self.data.eval_sets
            if name in results.records
            for part in made_of(results.provenance, name)
        )
        return next(filter(None, found), "")
