"""A module whose validation scores sets row by row: what callbacks compute metrics from."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from etw_lightning.catalogue.entries import Part
from etw_lightning.models.fixed_text import text_logps
from etw_lightning.models.loading import LabelScorer
from etw_lightning.models.shards import move_buffers, whole_copy
from etw_lightning.schema import Record
from etw_lightning.scoring.batches import Score, make_records, score_in_turn
from etw_lightning.scoring.cache.journals import Journal, note_progress
from etw_lightning.scoring.evaluation_rows import ScoreWork
from etw_lightning.scoring.parts import parts_of, with_parts
from etw_lightning.scoring.retain_results import RetainResults
from etw_lightning.scoring.scores import is_finite, not_finite
from etw_lightning.training.datamodule import UnlearningDataModule
from etw_lightning.training.plain_trainer import keep_order, score_whole
from etw_lightning.training.step_seed import seed_batch
from etw_lightning.training.strategies import Layout, layout_of, make_ready, settle_shards
from etw_lightning.training.training_batches import Batch
from etw_lightning.tuning.adapters import Adapter

__all__ = ["Scores", "ScoringModule"]

#: Scores by set and part.
Scores = dict[tuple[str, Part], list[Score]]


class ScoringModule(LightningModule):
    """Scores what is due in the validation loop and gathers it from all processes."""

    def __init__(self) -> None:
        super().__init__()
        self.scorer: LabelScorer | None = None
        #: Whether the model will be asked to go on with prompts, as far as is known when it is
        #: loaded.
        self.continues = False
        self.adapter: Adapter | None = None
        self._merging = ExitStack()
        #: The model whole, while a validation needs it; in a list, so that it is no part of this
        #: module.
        self._whole: list[LabelScorer] = []
        self._scores: Scores = defaultdict(list)
        self._records: dict[str, list[Record]] | None = None
        self._due: dict[str, set[Part]] = {}
        self._journals: dict[tuple[str, Part], Journal] = {}
        #: What is known of the model as it was loaded: complete rows of each part of a set.
        self.known: Scores = {}
        #: Keys under which further scores of the model as it was loaded are kept.
        self.journal_keys: dict[tuple[str, Part], str] = {}
        #: What all processes have scored of the model as it is now.
        self.scored: Scores = {}

    @property
    def datamodule(self) -> UnlearningDataModule:
        """The run's data."""
        return cast(UnlearningDataModule, self.trainer.datamodule)  # type: ignore[attr-defined]

    @property
    def layout(self) -> Layout:
        """How the model is laid out."""
        return layout_of(self._trainer)

    def setup(self, stage: str) -> None:
        """Agree on what is known of the model: a process alone must not skip a batch."""
        make_ready(self.trainer)
        keep_order(self.trainer)
        if self.datamodule.eval_sets:
            score_whole(self.trainer)
        self.continues |= self.datamodule.continues
        found = (self.known, self.journal_keys)
        self.known, self.journal_keys = self.trainer.strategy.broadcast(found)

    def on_train_start(self) -> None:
        """Forget what is known of the model as it was loaded."""
        self._close_journals()
        self.known, self.journal_keys = {}, {}

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Forget what the model said before this step; seed what is drawn in it.

        So a run that goes on from a checkpoint draws what it would have drawn, and no state of a
        random generator has to be kept.
        """
        self.scored = {}
        seed_batch(self.datamodule.seed or 0, self.current_epoch, batch_idx, self.global_rank)

    def ask(self, needs: Mapping[str, Collection[Part]]) -> None:
        """Have parts of sets scored in the validation that is about to run."""
        for name, parts in needs.items():
            self._due.setdefault(name, set()).update(parts)

    def on_validation_epoch_start(self) -> None:
        """Forget the scores of the last validation; score the model that would be exported."""
        self._scores.clear()
        self._records = None
        if self.adapter is not None:
            self._merging.enter_context(self.adapter.merged())
        due = {(name, part) for name, parts in self._due.items() for part in parts}
        if self.trainer.sanity_checking:
            due -= set(self.known)
        if self.layout != "whole" and any(part != "answers" for _, part in due):
            self._whole = [self.whole_scorer()]

    def on_validation_epoch_end(self) -> None:
        """Go on with the adapter beside the weights; before a callback saves them."""
        self._merging.close()
        self._whole = []

    def whole_scorer(self) -> LabelScorer:
        """Return the model, of shards a whole copy; all processes must call it."""
        assert self.scorer is not None
        if self.layout == "whole":
            return self.scorer
        if self._whole:
            return self._whole[0]
        settle_shards(self.trainer)
        copied: LabelScorer = whole_copy(self.scorer, self.trainer.strategy.root_device)
        return copied

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Never save merged weights beside their adapter, as after a broken-off validation."""
        if self.adapter is not None and self.adapter.is_merged:
            self._merging.close()
            checkpoint["state_dict"] = self.state_dict()

    def on_validation_end(self) -> None:
        """Let callbacks say anew next time what is due."""
        self._due.clear()
        if self.trainer.sanity_checking and self._journals:
            note_progress()
        self._close_journals()

    def whole_to_save(self) -> tuple[Any, Tensor | None]:
        """Return the model whole on the first process; all processes must call it.

        Returns:
            The ``transformers`` model, None on other processes; of a model in shards a copy on the
            CPU, and what the shards say of a fixed text, as ``export_model`` compares it.
        """
        assert self.scorer is not None
        first = self.trainer.is_global_zero
        if self.layout == "whole":
            return (self.scorer.lm if first else None), None
        device = self.trainer.strategy.root_device
        settle_shards(self.trainer)
        # At the end of a run a strategy may have moved what is not in shards.
        move_buffers(self.scorer, device)
        said = text_logps(self.scorer, device)
        settle_shards(self.trainer)
        copied = whole_copy(self.scorer, torch.device("cpu"), keep=first)
        return (copied.lm, said) if first else (None, None)

    def validation_step(self, work: ScoreWork, batch_idx: int) -> None:
        """Score one batch of a part of a set, if that is due and not known already."""
        place = (work.dataset, work.part)
        is_known = self.trainer.sanity_checking and place in self.known
        if work.batch is None or is_known or work.part not in self._due.get(work.dataset, ()):
            return
        for some in self._score(work):
            scores = work.in_set(some)
            if self.trainer.world_size == 1:
                # Several processes find out together, when they gather: one alone would keep the
                # others waiting.
                self._check_finite(work.dataset, scores)
            self._scores[place] += scores
            if place in self.journal_keys:
                self._journal(place).append(scores)

    def _journal(self, place: tuple[str, Part]) -> Journal:
        """Return what keeps the scores of a part of a set."""
        if place not in self._journals:
            # Batches come part by part, and fit goes on from whole parts alone.
            is_fit = self.trainer.sanity_checking
            if is_fit and self._journals:
                note_progress()
            self._journals[place] = Journal(self.journal_keys[place], of_rows=not is_fit)
        return self._journals[place]

    def _score(self, work: ScoreWork) -> Iterator[list[Score]]:
        """Run the model on one batch; give what is found as it is found.

        Shards answer by teacher forcing, all processes at once; what takes many passes, or one
        that differs from row to row, is done with a whole copy.
        """
        assert self.scorer is not None
        assert work.batch is not None
        scorer = self.scorer
        if self.layout != "whole" and work.part == "answers":
            # Found out by all together, whichever of them has a tree first.
            _ = scorer.takes_trees
        elif self.layout != "whole":
            if work.is_repeated:
                return
            scorer = self._whole[0]
        found = score_in_turn(scorer, work.batch, self.datamodule.encoder.tokenizer)
        if work.is_repeated:
            _ = [*found]
        else:
            yield from found

    def _check_finite(self, name: str, scores: Sequence[Score]) -> None:
        """Refuse a broken model at once, not at the end of a long validation."""
        bad = next((score for score in scores if not is_finite(score.value)), None)
        if bad is not None:
            raise not_finite(name, self.datamodule.eval_sets[name].examples[bad.row].id)

    def _close_journals(self) -> None:
        for journal in self._journals.values():
            journal.close()
        self._journals = {}

    def gather_records(self) -> dict[str, list[Record]]:
        """Return the records of the validation that has just run, from all processes.

        Every process must call it, and gets the same.
        """
        if self._records is None:
            shares = [dict(self._scores)]
            if self.trainer.world_size > 1:
                shares = [{}] * self.trainer.world_size
                torch.distributed.all_gather_object(shares, dict(self._scores))
            self._records = {}
            for name in sorted(self._due):
                eval_set = with_parts(self.datamodule.eval_sets[name], self._due[name])
                found: list[Score] = []
                for part in parts_of(eval_set):
                    place = (name, part)
                    self.scored[place] = [*self.known.get(place, ())]
                    self.scored[place] += (one for share in shares for one in share.get(place, ()))
                    found += self.scored[place]
                self._records[name] = make_records(eval_set, found)
            if self.trainer.sanity_checking and self.datamodule.starts_from_target:
                self.datamodule.results["target"] = RetainResults(
                    "the model before training", self._records, key="data.target_results"
                )
        return self._records

    @property
    def is_stale(self) -> bool:
        """Whether a part of a set has not been scored of the model as it is now."""
        sets = self.datamodule.eval_sets
        return any(
            (name, part) not in self.scored for name in sets for part in parts_of(sets[name])
        )
