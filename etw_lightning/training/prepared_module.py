"""The model of a run on its devices, and the frozen one beside it that it is compared with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info

from etw_lightning.data.stored_rows import longest
from etw_lightning.kernels.head_choice import HeadKernel, HeadWay, check_way, faster_way
from etw_lightning.kernels.signals import TokenSignals
from etw_lightning.method import Method, Reference
from etw_lightning.models.head_probe import vocabulary_size
from etw_lightning.models.loading import DType, LabelScorer, load_model
from etw_lightning.models.noise import Dropout, settle_noise
from etw_lightning.models.positions import check_extents, row_extents
from etw_lightning.models.shards import Sharding, plain_modules, read_outside, spread
from etw_lightning.models.step_layout import StepLayout
from etw_lightning.models.weight_fit import refuse_training
from etw_lightning.schema import InputError
from etw_lightning.training.datamodule import UnlearningDataModule
from etw_lightning.training.given import GivenModel
from etw_lightning.training.scoring_module import ScoringModule
from etw_lightning.training.strategies import check_layout, is_first_process, layout_of
from etw_lightning.training.training_batches import Batch
from etw_lightning.tuning.adapters import add_adapter
from etw_lightning.tuning.trainable import choose_trained, recompute_activations

__all__ = ["PreparedModule"]


class PreparedModule(ScoringModule):
    """Holds the model that trains, whole or in shards, and knows where the target model speaks."""

    #: Of ``UnlearningModule``'s arguments, those that say what is loaded and what of it trains.
    pretrained: str
    method: Method
    reference: Reference | None
    reference_top_k: int
    reference_cache: str | None
    entropy_model: str | None
    peft: dict[str, Any] | None
    train_only: list[str] | None
    freeze_embeddings: bool
    dtype_name: DType
    attention: str | None
    gradient_checkpointing: bool
    dropout: Dropout | None
    chunk_size: int
    head_kernel: HeadKernel
    share_beginnings: bool

    def __init__(self) -> None:
        super().__init__()
        self.reference_model: LabelScorer | None = None
        #: The model as the first process has loaded it, until it is dealt out to shards; in a
        #: list, so that it is no part of this module.
        self._loaded: list[LabelScorer] = []
        #: Whether the run trains; one that does not needs no reference and no adapter.
        self.trains = True
        #: The model, where it is in memory already; nothing is loaded by name then. No part of
        #: this module until it is prepared.
        self.given: GivenModel | None = None
        #: Which way logits are gone over; None until that is chosen.
        self.head_way: HeadWay | None = None

    def load_ahead(self, trainer: Trainer) -> None:
        """Find what is wrong with the model before the processes of a run meet.

        A model that will be in shards is loaded by the first process alone, which keeps it for
        ``configure_model``.

        Args:
            trainer: Of the run that is to come.

        Raises:
            InputError: If the model can't be loaded, or not be trained as asked.
        """
        if self.trains and self.head_kernel != "fastest":
            check_way(self.head_kernel, trainer.strategy.root_device)
        if layout_of(trainer) == "whole":
            self.configure_model()
        elif is_first_process():
            self._loaded = [self._load()]

    @property
    def loaded_ahead(self) -> LabelScorer | None:
        """The model that this process has loaded for all and not yet dealt out to shards."""
        return self._loaded[0] if self._loaded else None

    def configure_model(self) -> None:
        """Load the target model, and make ready what trains and what is compared with."""
        if self.scorer is not None:
            return
        if self._trainer is not None:
            check_layout(self._trainer, has_adapter=self.trains and self.peft is not None)
        if self.layout != "whole":
            self._spread()
            return
        scorer = self._load()
        if self.trains and self._compares_live:
            self.reference_model = scorer.frozen_copy()
        if self.trains and self.gradient_checkpointing:
            recompute_activations(scorer.lm)
        self.scorer = scorer.train()

    @property
    def _compares_live(self) -> bool:
        return self.reference == "live" and bool(self.method.reference_needs)

    def _load(self) -> LabelScorer:
        """Return the model whole, with what trains in it."""
        if self.given is not None:
            lm = self.given.lm
        else:
            lm = load_model(self.pretrained, self.dtype_name, self.attention)
        if self.trains and getattr(lm, "is_quantized", False):
            key = "model.pretrained" if self.given is None else "model"
            refuse_training(lm.config, key, is_loaded=True)
        scorer = LabelScorer(lm, self.chunk_size)
        scorer.check_head(continues=self.continues)
        if any(layer >= 0 for layer in self.method.layers):
            self.method.check_layers(len(scorer.layer_stack))
        if self.trains:
            reads_cache = self.reference == "cache" and bool(self.method.reference_needs)
            scorer.is_quiet = settle_noise(lm, self.dropout, reads_cache=reads_cache)
            if self.peft is not None:
                self.adapter = add_adapter(lm, self.peft)
            self._choose(scorer)
        return scorer

    def _choose(self, scorer: LabelScorer) -> None:
        """Freeze what does not train."""
        choose_trained(scorer.lm, self.train_only, freeze=self.freeze_embeddings)
        if self.method.layers:
            self.check_reach(scorer)

    def _spread(self) -> None:
        """Lay the model out in shards, and with it the frozen one that it is compared with."""
        if not self._loaded and is_first_process():
            with plain_modules(cast(Sharding, self.layout)):
                self._loaded = [self._load()]
        source = self._loaded.pop() if self._loaded else None
        how = (cast(Sharding, self.layout), self.trainer.strategy.root_device)
        if self.trains and self._compares_live:
            frozen = spread(source, *how, lambda scorer: scorer.requires_grad_(False), keep=True)
            self.reference_model = frozen.eval()
        self.scorer = spread(source, *how, self._prepare_shards)
        for scorer in filter(None, (self.scorer, self.reference_model)):
            if self.layout == "zero3":
                # A step's forward is this module's: there objectives read the head's weights.
                read_outside(self, scorer)
                read_outside(scorer, scorer)

    def _prepare_shards(self, scorer: LabelScorer) -> None:
        if not self.trains:
            return
        if self.gradient_checkpointing:
            recompute_activations(scorer.lm)
        self._choose(scorer)

    def on_train_start(self) -> None:
        """Have all processes go over logits one way, after a checkpoint the way of before it."""
        super().on_train_start()
        assert self.scorer is not None
        came = "" if self.head_way is None else " in the checkpoint"
        if self.head_way is None:
            self.head_way = (
                self._choose_way() if self.head_kernel == "fastest" else self.head_kernel
            )
        check_way(self.head_way, self.device, came)
        for scorer in filter(None, (self.scorer, self.reference_model)):
            scorer.fused_head = self.head_way == "triton"

    def _choose_way(self) -> HeadWay:
        """Return the first process's choice."""
        assert self.scorer is not None
        lm = self.scorer.lm
        sizes = (self.chunk_size, vocabulary_size(lm.config))
        kind = self.device.type
        with self.trainer.precision_plugin.forward_context():
            casts = torch.is_autocast_enabled(kind)
            dtype = torch.get_autocast_dtype(kind) if casts else lm.dtype
        way: HeadWay = "plain"
        if self.global_rank == 0:
            way = faster_way(*sizes, dtype, self.device)
        chosen = self.trainer.strategy.broadcast(way)
        rank_zero_info(f"model.head_kernel: {chosen}, the fastest on this device.")
        return chosen

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep a choice that was measured: measured again it might be another."""
        super().on_save_checkpoint(checkpoint)
        if self.head_kernel == "fastest" and self.head_way is not None:
            checkpoint["head_kernel"] = self.head_way

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on the way that was measured once."""
        if self.head_kernel == "fastest":
            self.head_way = checkpoint.get("head_kernel")

    def check_reach(self, scorer: LabelScorer) -> None:
        """Refuse to train only what the layers that are read can't feel.

        Args:
            scorer: With the weights chosen that train.

        Raises:
            InputError: Names the key.
        """
        if any(
            part is not None and not part.layers
            for part in (self.method.forget, self.method.retain)
        ):
            return
        last = self.method.layers[-1]
        above = {id(p) for layer in scorer.layer_stack[last + 1 :] for p in layer.parameters()}
        above |= {id(p) for p in scorer.head.parameters()}
        above -= {id(p) for p in scorer.lm.get_input_embeddings().parameters()}
        if all(id(p) in above for p in scorer.lm.parameters() if p.requires_grad):
            raise InputError(
                f"model.train_only {self.train_only} trains nothing at or below layer {last}, "
                "whose states model.forget reads; name weights of layers up to it."
            )

    def check_lengths(self, data: UnlearningDataModule) -> None:
        """Refuse training rows that the model has no positions for.

        Args:
            data: Loaded.

        Raises:
            InputError: As ``check_extents``; names the longest row.
        """
        scorer = self.scorer or self.loaded_ahead
        if scorer is not None:
            rows = row_extents(longest(data.streams.values()))
            check_extents(scorer.limits, type(scorer.lm).__name__, rows)

    def _layout_of(self, batch: Batch) -> StepLayout | None:
        """Return how a batch is fed.

        The reference model is fed as the trained one is, or they would differ from the start.
        Several passes a step are no way in shards, where processes must make equally many.
        """
        layout = batch.get("layout")
        if layout is None:
            return None
        assert self.scorer is not None
        if not self.share_beginnings:
            return layout._replace(packed=None, widths=())
        if self.scorer.takes_packed:
            return layout
        return layout._replace(packed=None, widths=layout.widths if self.layout == "whole" else ())

    def _with_reference(self, signals: TokenSignals, batch: Batch) -> TokenSignals:
        """Add what the target model says of the same tokens."""
        wanted = frozenset().union(*self.method.reference_needs.values())
        names = [name.removeprefix("reference_") for name in wanted]
        with self._reference_scorer() as scorer:
            said = scorer(
                batch["input_ids"],
                batch["attention_mask"],
                batch["labels"],
                names,
                self.method.temperature,
                self.method.layers,
                self._layout_of(batch),
            )
            return replace(signals, **{f"reference_{name}": getattr(said, name) for name in names})

    @contextmanager
    def _reference_scorer(self) -> Iterator[LabelScorer]:
        """Give the target model: the frozen copy, or the model without its adapter."""
        if self.reference_model is not None:
            yield self.reference_model
            return
        assert self.scorer is not None
        assert self.adapter is not None
        with self.adapter.switched_off():
            yield self.scorer
