"""``UnlearningModule``: one step = retain term + lambda * forget term. It holds no formula."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal, cast

from jsonargparse.typing import NonNegativeFloat, PositiveFloat, PositiveInt
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from etw_lightning.forget import GA, ForgetObjective
from etw_lightning.kernels.head_choice import HeadKernel
from etw_lightning.kernels.signals import Reduction, Signal, TokenSignals
from etw_lightning.method import Method, Reference, Share
from etw_lightning.models.checkpoints import describe_model
from etw_lightning.models.loading import DType
from etw_lightning.models.noise import Dropout
from etw_lightning.retain import NLL, RetainObjective
from etw_lightning.schema import InputError
from etw_lightning.training.forget_scale import (
    ForgetScale,
    check_whole_gradients,
    measure_forget_scale,
)
from etw_lightning.training.given import GivenModel
from etw_lightning.training.optimized_module import OptimizedModule
from etw_lightning.training.references.cached import make_references, with_values
from etw_lightning.training.step_log import StepLog, ends_step
from etw_lightning.training.surgery_step import SurgeryStep
from etw_lightning.training.training_batches import Batch, of_labels
from etw_lightning.tuning.defaults import default_of
from etw_lightning.tuning.importances import ImportanceScorer
from etw_lightning.tuning.optimizers import Rounding, Schedule
from etw_lightning.tuning.two_gradients import Geometry, Rule
from etw_lightning.value_checks import check_arguments
from etw_lightning.weighting import ETW, TokenWeighting

__all__ = ["UnlearningModule"]


class UnlearningModule(OptimizedModule):
    """A model that forgets one stream of rows and keeps another.

    The loss of an optimiser step is ``retain_weight * retain + lambda * forget``, each a mean over
    the whole effective batch, so that it does not depend on how the batch is split over
    micro-batches and processes. Both streams go through the model in one forward pass.

    Args:
        pretrained: The target model, or the one to evaluate: hub name, folder in Hugging Face
            layout, ``.gguf`` file, or checkpoint of a run: a ``.ckpt`` file, a folder of shards, or
            the run's folder, of which the newest is taken.
        weighting: Weight of each forget token.
        forget: Forget objective; null trains on the retain stream alone (fine-tuning).
        retain: Retain objective; null for none.
        forget_weight: The paper's lambda, > 0: weight of the forget term. ``--model.lambda`` is
            the same key.
        retain_weight: Weight of the retain term, > 0.
        forget_unit: What lambda counts. ``loss``: the forget term itself. ``gradient``: lambda is
            multiplied by the ratio of the retain term's mean gradient length to the forget term's,
            measured before training over the rows of the first 8 steps and fixed from then on, so
            that at 1 both terms pull alike at the start, whatever the model, the objective and how
            it sums. ``--model.lambda auto`` is 1 of that. Not with DeepSpeed or shards.
        surgery: What becomes of a forget gradient along the retain gradient. ``conflict`` (GRU)
            takes it away where it would raise the retain loss, ``orthogonal`` (GU) always; null
            leaves it. A step has then two backward passes, and keeps two gradients of what trains
            (three with ``surgery_average``). Not with DeepSpeed or shards.
        surgery_average: Share of earlier steps in the retain gradient that ``surgery`` compares
            with, in [0, 1); 0 takes that of the step alone.
        surgery_geometry: What is at right angles for ``surgery``: ``plain``, or ``adam``, where
            each weight counts by the size of Adam's step on it.
        reduction: How forget token terms are averaged: ``token`` over the labelled tokens of the
            effective batch, ``sequence`` over its sequences' means. Not published.
        reference: Where the target model's values come from, if a part reads any: ``cache``
            computes them once before training and reads them from a file; ``live`` keeps a frozen
            copy of the model beside the trained one; ``adapter`` switches ``peft``'s adapter off;
            null refuses such parts. In float32 all say the same to 1e-5; in 16 bits a cached value
            was rounded in a batch of another shape, so that ratios are not exactly 1 at the start:
            there the others are exact.
        reference_top_k: Tokens of the target model's distributions that the cache keeps at each
            position, the rest as one sum; as many as the vocabulary make it exact.
        reference_cache: Folder of the cached values, one file a stream; null takes the one that
            all runs share, where files are found by what they were made of.
        entropy_model: The model whose entropies weightings with ``source: reference`` read, such as
            the one that the target model was made of, which never saw the rows: a hub name, folder
            or ``.gguf`` file with the same vocabulary. null is the target model, which knows the
            rows by heart. It is asked once, before training; needs ``reference: cache``.
        peft: Train an adapter of the ``peft`` package, in its own names:
            ``{peft_type: LORA, r: 8, target_modules: all-linear}``. Merged at export.
        train_only: Patterns (regular expressions) of the whole names of the weights that train;
            null trains all.
        freeze_embeddings: Leave the input embeddings as they are; with them a head that is tied
            to them.
        optimizer: Class path of the optimiser; ``bitsandbytes.optim.AdamW8bit`` holds its state
            in 8 bits.
        optimizer_args: Further arguments of its class.
        rounding: Of stepped 16-bit weights. ``nearest`` loses what is smaller than half their
            spacing, at the usual learning rates nearly all; ``stochastic`` rounds up or down by
            chance so that the mean is kept, the optimiser's state too. null is ``stochastic`` for
            optimisers of ``torch.optim``, ``nearest`` for others. Other weights are not rounded,
            nor those of DeepSpeed, which steps float32 copies.
        lr: Peak learning rate, > 0.
        betas: Adam's decay rates of its two running means, each in [0, 1); for optimisers that
            have them.
        weight_decay: Of matrices; vectors (norms, biases) have none.
        schedule: Course of the learning rate after the warm-up.
        warmup: Share of the steps in which the rate rises from 0, at most 1.
        dtype: Precision the weights are kept in.
        attention: Attention implementation; null lets the library choose.
        gradient_checkpointing: Trade time for memory in the backward pass.
        dropout: Of a model whose configuration has dropout or router jitter, ``off`` trains what
            is scored, ``as_configured`` a thinned model, another in each step: losses, and the
            entropies and probabilities that ETW and other weightings read, are then those of the
            thinned model, while a cached reference and every evaluation are of the whole one.
            null is ``off`` where an objective reads a cached reference, else ``as_configured``; a
            line says so. An adapter's own dropout is left as it is.
        chunk_size: Positions that go through the output head at a time.
        head_kernel: What goes over a step's logits. ``plain`` is PyTorch's operations; ``triton``
            kernels of our own for CUDA, which read a chunk once for its scores and once for its
            gradient; ``fastest`` measures both on the first process as training starts, and a
            checkpoint keeps its choice, so that a run goes on with the same bits. Two runs of the
            same seed may choose otherwise, and then differ in last digits. Evaluations are plain.
        share_beginnings: Feed each position of a step once: what training rows begin with alike
            (a chat template's system prompt, the question of two answers) is one stretch of tokens
            that their own ones follow, and rows are not padded to the longest. Losses and gradients
            are those of whole rows but for rounding, which Adam makes visible where a gradient is
            nearly 0. Models whose attention is not that of all tokens before, or not computed by
            PyTorch (``attention: eager``), and those with dropout are fed rows by length instead,
            in shards (fsdp, ZeRO-3) whole rows; as all are where something is asked for at all
            positions.
    """

    def __init__(
        self,
        pretrained: str,
        weighting: TokenWeighting = default_of(ETW),
        forget: ForgetObjective | None = default_of(GA),
        retain: RetainObjective | None = default_of(NLL),
        forget_weight: PositiveFloat = 0.1,
        retain_weight: PositiveFloat = 1.0,
        forget_unit: Literal["loss", "gradient"] = "loss",
        surgery: Rule | None = None,
        surgery_average: NonNegativeFloat = 0.0,
        surgery_geometry: Geometry = "plain",
        reduction: Reduction = "token",
        reference: Reference | None = "cache",
        reference_top_k: PositiveInt = 128,
        reference_cache: str | None = None,
        entropy_model: str | None = None,
        peft: dict[str, Any] | None = None,
        train_only: list[str] | None = None,
        freeze_embeddings: bool = False,
        optimizer: str = "torch.optim.AdamW",
        optimizer_args: dict[str, Any] | None = None,
        rounding: Rounding | None = None,
        lr: PositiveFloat = 1e-5,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: NonNegativeFloat = 0.01,
        schedule: Schedule = "linear",
        warmup: NonNegativeFloat = 0.0,
        dtype: DType = "float32",
        attention: str | None = None,
        gradient_checkpointing: bool = False,
        dropout: Dropout | None = None,
        chunk_size: PositiveInt = 256,
        head_kernel: HeadKernel = "plain",
        share_beginnings: bool = True,
    ) -> None:
        check_arguments("model", UnlearningModule.__init__, locals())
        super().__init__()
        for key, value in (
            ("forget_weight", forget_weight),
            ("retain_weight", retain_weight),
            ("lr", lr),
            ("weight_decay", weight_decay),
        ):
            if not math.isfinite(value):
                raise InputError(f"model.{key} must be a finite number; got {value}.")
        if warmup > 1:
            raise InputError(
                "model.warmup must be a share of the steps, 0 to 1 (0.1 is a tenth of them); got "
                f"{warmup}."
            )
        self.method = Method(weighting, forget, retain)
        self.method.check(reference, has_adapter=peft is not None)
        if entropy_model is not None:
            _check_entropy_model(entropy_model, self.method, reference)
        if reference_cache is not None and reference != "cache":
            raise InputError(
                f"model.reference_cache is {reference_cache!r}, but model.reference is "
                f"{reference or 'null'}, so that nothing is kept there; set model.reference to "
                "cache, or leave model.reference_cache out."
            )
        #: What a run that goes on from a checkpoint must have in common with the one that wrote it.
        self.settings = {
            "model.weighting": str(weighting),
            "model.forget": str(forget),
            "model.retain": str(retain),
            "model.forget_weight": str(float(forget_weight)),
            "model.retain_weight": str(float(retain_weight)),
            "model.forget_unit": forget_unit,
            "model.surgery": str(surgery),
            "model.surgery_average": str(float(surgery_average)),
            "model.surgery_geometry": surgery_geometry,
            "model.reduction": reduction,
            "model.entropy_model": str(entropy_model),
            "model.peft": json.dumps(peft, sort_keys=True),
            "model.train_only": json.dumps(train_only),
            # A checkpoint's optimiser brings its own numbers, in the place of what is typed.
            "model.optimizer": optimizer,
            "model.optimizer_args": json.dumps(optimizer_args, sort_keys=True, default=str),
            "model.lr": str(float(lr)),
            "model.betas": json.dumps([float(beta) for beta in betas]),
            "model.weight_decay": str(float(weight_decay)),
        }
        self.pretrained = pretrained
        # Plain numbers: the parser's own types would make checkpoints that can't be read safely.
        self.forget_weight, self.retain_weight = float(forget_weight), float(retain_weight)
        self.forget_unit = forget_unit
        #: How the terms' gradients compared before training, where lambda counts in that.
        self.forget_scale: ForgetScale | None = None
        self.surgery = SurgeryStep.asked(
            surgery, float(surgery_average), surgery_geometry, optimizer
        )
        for key in self._takes_terms_apart():
            if forget is None or retain is None:
                absent = "model.forget" if forget is None else "model.retain"
                raise InputError(
                    f"{key} compares two terms, but {absent} is null; give both, or leave it out."
                )
        self.reduction, self.reference = reduction, reference
        self.reference_top_k, self.reference_cache = int(reference_top_k), reference_cache
        self.entropy_model = entropy_model
        self.peft, self.train_only, self.freeze_embeddings = peft, train_only, freeze_embeddings
        self.optimizer, self.optimizer_args = optimizer, optimizer_args
        self.rounding = rounding
        self.lr, self.betas, self.weight_decay = float(lr), betas, float(weight_decay)
        self.schedule, self.warmup = schedule, warmup
        self.dtype_name: DType = dtype
        self.attention, self.chunk_size = attention, chunk_size
        self.head_kernel: HeadKernel = head_kernel
        self.share_beginnings = share_beginnings
        self.gradient_checkpointing, self.dropout = gradient_checkpointing, dropout
        #: Share of the last micro-batch in the effective batch's losses, by term; on the device.
        self.losses: dict[str, Tensor] = {}
        self._log = StepLog()
        learned = weighting.learned if forget is not None and forget.takes_weights else None
        #: What scores tokens by their states, where the weighting learns that.
        self.importance = None if learned is None else ImportanceScorer(learned)
        #: Label, row and weight of each forget token of the last micro-batch, for pictures.
        self.last_weights: tuple[Tensor, Tensor, Tensor] | None = None
        #: Whether no step has been made yet: what the parts return is looked at.
        self._is_first = True

    @property
    def needs(self) -> frozenset[Signal]:
        """Signals that are computed in a step, besides label log-probabilities."""
        # Entropies are logged beside the weights of every weighting, so that runs compare.
        logged: frozenset[Signal] = frozenset({"entropies"} if self.method.forget else ())
        return self.method.needs | logged

    @classmethod
    def from_model(cls, lm: Any, tokenizer: Any, **settings: Any) -> UnlearningModule:
        """Make a module of a model that is in memory already; it is trained in place.

        Args:
            lm: A ``transformers`` causal language model.
            tokenizer: Its tokenizer.
            settings: Arguments of this class, without ``pretrained``, ``dtype`` and ``attention``.

        Raises:
            InputError: If it is a model that can't be trained as it is.
        """
        given = GivenModel(lm, tokenizer)
        given.check()
        module = cls(given.name, dtype=given.dtype_name, **settings)
        module.given = given
        return module

    def _takes_terms_apart(self) -> list[str]:
        """Return what asks for the gradient of each term, as it is typed."""
        asks = {
            "model.forget_unit gradient": self.forget_unit == "gradient",
            "model.surgery": self.surgery is not None,
        }
        return [key for key, is_asked in asks.items() if is_asked]

    def check_gradients(self, trainer: Trainer) -> None:
        """Refuse a trainer that does not have the gradients which the run asks for.

        Args:
            trainer: Of the run.

        Raises:
            InputError: As ``check_whole_gradients``.
        """
        for key in self._takes_terms_apart():
            check_whole_gradients(trainer, key)

    def setup(self, stage: str) -> None:
        """Have the target model's values at hand before the first step."""
        super().setup(stage)
        if stage == "fit":
            if self.importance is not None:
                # A checkpoint's is read later.
                self.importance.go_on({})
            self.check_gradients(self.trainer)
            if self.layout == "whole":
                # The target model that is asked is this one, before its first step.
                self.configure_model()
            make_references(self, self.datamodule, self.trainer)

    def forward(self, batch: Batch) -> dict[str, TokenSignals]:
        """Return the signals of each group of rows from one pass over all of them."""
        assert self.scorer is not None
        own = {need for need in self.needs if not need.startswith("reference_")}
        ids, mask, labels = batch["input_ids"], batch["attention_mask"], batch["labels"]
        method = self.method
        layout = self._layout_of(batch)
        signals = self.scorer(ids, mask, labels, own, method.temperature, method.layers, layout)
        known = {name: of_labels(batch, name, layout) for name in ("marked", "words")}
        signals = replace(signals, marked=known["marked"], words=known["words"])
        if self.method.reference_needs and self.reference != "cache":
            signals = self._with_reference(signals, batch)
        groups, start = {}, 0
        for name, size in batch["sizes"].items():
            groups[name] = signals.slice_rows(start, start + size)
            start += size
        for name, values in batch.get("reference", {}).items():
            groups[name] = with_values(groups[name], values)
        if "alternative" in groups:
            groups["forget"] = replace(groups["forget"], alternative=groups.pop("alternative"))
        if self.importance is not None:
            scores = self.importance.scores(groups["forget"])
            groups["forget"] = replace(groups["forget"], importances=scores)
        return groups

    @property
    def effective_forget_weight(self) -> float:
        """What the forget term is multiplied by."""
        factor = 1.0 if self.forget_scale is None else self.forget_scale.factor
        return self.forget_weight * factor

    def on_train_start(self) -> None:
        """Find what lambda counts, unless a checkpoint has said so."""
        super().on_train_start()
        if self.importance is not None:
            self.importance.tell_unused(self.num_steps())
        if self.forget_unit != "gradient" or self.forget_scale is not None:
            return
        self.forget_scale = found = measure_forget_scale(self)
        rank_zero_info(
            f"model.forget_unit gradient: over {found.steps} steps before training the forget "
            f"term's gradient is {found.forget:.3g} long and the retain term's {found.retain:.3g}: "
            f"lambda {self.forget_weight:g} is a weight of {self.effective_forget_weight:.3g}."
        )

    def sum_over_processes(self, tensor: Tensor) -> Tensor:
        """Return a tensor's sum over all processes."""
        strategy = self.trainer.strategy
        return cast(Tensor, strategy.reduce(tensor, reduce_op="sum"))

    def shares(self, batch: Batch) -> dict[str, Share]:
        """Return a micro-batch's share of each term."""
        return self._shares_of(batch, self.forward(batch))

    def _shares_of(self, batch: Batch, groups: Mapping[str, TokenSignals]) -> dict[str, Share]:
        shares = {}
        if self.method.retain is not None:
            weights = batch.get("row_weights")
            if weights is not None:
                first = batch["sizes"].get("forget", 0)
                weights = weights[first : first + batch["sizes"]["retain"]]
            shares["retain"] = self.method.retain_share(
                groups["retain"], batch["counts"]["retain"], weights, is_checked=self._is_first
            )
        if self.method.forget is not None:
            shares["forget"] = self.method.forget_share(
                groups["forget"], batch["counts"], self.reduction, is_checked=self._is_first
            )
        return shares

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return this micro-batch's share of the effective batch's loss."""
        # Not by a call of this module: ZeRO would let weights go at its end that losses still read.
        groups = self.forward(batch)
        shares = self._shares_of(batch, groups)
        loss: Any = 0.0
        if "retain" in shares:
            loss = loss + self.retain_weight * shares["retain"].value
        if "forget" in shares:
            share = shares["forget"]
            loss = loss + self.effective_forget_weight * share.value
            if share.weights is not None:
                annotated = of_labels(batch, "annotated", self._layout_of(batch))
                self._log.note_weights(groups["forget"], share.weights, annotated)
                signals = groups["forget"]
                self.last_weights = (signals.labels, signals.rows, share.weights.detach())
        if self.importance is not None and self.importance.is_due(self.global_step):
            assert self.method.forget is not None
            skipped = self.method.forget.skipped_tokens
            self.importance.note(groups["forget"], batch["counts"]["forget"], skipped)
            if ends_step(self.trainer, batch_idx):
                self.importance.step(self.num_steps(), self.sum_over_processes)
        if self.surgery is not None:
            self.surgery.note(
                shares["forget"].value,
                self.retain_weight * shares["retain"].value,
                is_last=ends_step(self.trainer, batch_idx),
            )
        self.losses = {name: share.value.detach() for name, share in shares.items()}
        self.losses["total"] = loss.detach()
        for name, value in self.losses.items():
            self._log.note_loss(name, value)
        self._log.log(self, batch_idx)
        # Lightning divides by the micro-batches of a step, DDP by the processes; shares add up.
        return cast(Tensor, loss * batch["scale"])

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Make the gradients of a micro-batch; with surgery, of each term apart."""
        if self.surgery is None:
            super().backward(loss, *args, **kwargs)
        else:
            self.surgery.backward(self)

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Look at the parts no more, once a whole step has been made; log what surgery did."""
        self._is_first = self._is_first and self.global_step == 0
        if self.surgery is not None:
            self.surgery.log(self)

    def on_train_epoch_end(self) -> None:
        """Log how the epoch's weights lay, and say so if it has pushed nothing down."""
        self._log.log_epoch(self)
        takes = self.method.forget is not None and self.method.forget.takes_weights
        if takes and not self._log.weighs_any and self.trainer.world_size == 1:
            rank_zero_warn(
                f"model.weighting {type(self.method.weighting).__name__} has given no token any "
                "weight in this epoch: nothing is pushed down."
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store what makes the checkpoint a model that ``model.pretrained`` takes."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["weighs_any"] = self._log.weighs_any
        checkpoint["epoch_weights"] = self._log.epoch_so_far()
        if self.forget_scale is not None:
            checkpoint["forget_scale"] = tuple(self.forget_scale)
        if self.surgery is not None:
            checkpoint["surgery"] = self.surgery.state()
        if self.importance is not None:
            checkpoint["importance"] = self.importance.state()
        if self.scorer is not None:
            tokenizer = self.datamodule.tokenizer_name or self.pretrained
            checkpoint.update(describe_model(self.scorer.lm, tokenizer, self.peft, self.settings))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Know of the epoch so far whether any token had weight, and how the weights lay."""
        super().on_load_checkpoint(checkpoint)
        weighs_any = bool(checkpoint.get("weighs_any", False))
        self._log.go_on(checkpoint.get("epoch_weights") or {}, weighs_any=weighs_any)
        if self.forget_unit == "gradient" and "forget_scale" in checkpoint:
            self.forget_scale = ForgetScale(*checkpoint["forget_scale"])
        if self.surgery is not None:
            self.surgery.go_on(checkpoint.get("surgery", ()))
        if self.importance is not None:
            self.importance.go_on(checkpoint.get("importance", {}))


def _check_entropy_model(given: str, method: Method, reference: Reference | None) -> None:
    """Refuse another model's entropies where nothing reads them, or no cache holds them."""
    if "reference_entropies" not in method.reference_needs.get("forget", ()):
        raise InputError(
            f"model.entropy_model is {given!r}, but nothing reads its entropies; set "
            "model.weighting to an ETW with source: reference, or leave it out."
        )
    if reference != "cache":
        raise InputError(
            f"model.entropy_model {given!r} is asked once, before training: model.reference must "
            f"be cache; got {reference}."
        )
