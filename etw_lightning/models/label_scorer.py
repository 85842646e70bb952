"""A language model that answers for labelled tokens: in training, and row by row in scoring."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from etw_lightning.kernels.distributions import HeadDistributions
from etw_lightning.kernels.head import LinearStatistics, linear_scores, linear_statistics
from etw_lightning.kernels.logits import LogitTransform
from etw_lightning.kernels.signals import Padded, Signal, States, TokenSignals
from etw_lightning.models.generation import way_of
from etw_lightning.models.head_probe import find_transform, vocabulary_size
from etw_lightning.models.noise import named_noise, quieten
from etw_lightning.models.packed_attention import may_take_packed, reads_packed_alike, run_packed
from etw_lightning.models.packing import PackedRows, pack_rows, prefix_tree
from etw_lightning.models.positions import (
    Extent,
    Limits,
    check_extents,
    limits_of,
    looks_everywhere,
)
from etw_lightning.models.probes import check_reading
from etw_lightning.models.step_layout import Packed, StepLayout
from etw_lightning.schema import IGNORE_INDEX, EncodedRow
from etw_lightning.tuning.decoder import body_of, layers_of, listening

__all__ = ["LabelScorer"]


class LabelScorer(nn.Module):
    """A language model that answers for labelled tokens only.

    The body runs once over all rows; only the positions that predict a label go through the
    output head, in chunks.

    Args:
        lm: A ``transformers`` causal language model.
        chunk_size: Positions at a time in the output head.
        transform: What the model makes of its output head's logits, where that is known;
            ``check_head`` finds it out.
    """

    def __init__(
        self, lm: Any, chunk_size: int = 256, transform: LogitTransform | None = None
    ) -> None:
        super().__init__()
        self.lm = lm
        self.chunk_size = chunk_size
        self.transform = transform
        #: Whether it says in training what it says in evaluation, whatever its dropout.
        self.is_quiet = False
        #: Whether what trains goes over its logits in kernels of our own; evaluations never do.
        self.fused_head = False
        #: Whether other processes hold a part of it, which must join in each pass.
        self.in_shards = False
        self._takes_trees: bool | None = None
        self._takes_packed: bool | None = None
        self._limits: Limits | None = None

    def _apply(self, fn: Any, recurse: bool = True) -> LabelScorer:
        """Move and cast, but leave float32 buffers as wide as they are.

        Rotary frequencies are such buffers: a model cast to bfloat16 with them would mistake far
        positions, and differ from the same model loaded in bfloat16.
        """
        wide = {
            name: buffer
            for name, buffer in self.named_buffers(remove_duplicate=False)
            if buffer.dtype == torch.float32
        }
        super()._apply(fn, recurse)
        for name, buffer in wide.items():
            cast = self.get_buffer(name)
            if cast.dtype.itemsize < buffer.dtype.itemsize:
                owner, _, leaf = name.rpartition(".")
                setattr(self.get_submodule(owner), leaf, buffer.to(cast.device))
        return self

    def train(self, mode: bool = True) -> LabelScorer:
        """Set the mode; a quiet model has no dropout in either."""
        super().train(mode)
        if mode and self.is_quiet:
            quieten(self.lm)
        return self

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        labels: Tensor,
        needs: Collection[Signal] = (),
        temperature: float = 1.0,
        layers: Collection[int] = (),
        layout: StepLayout | None = None,
    ) -> TokenSignals:
        """Return the signals of all labelled tokens, row by row.

        Args:
            input_ids: ``(B, T)``.
            attention_mask: 1 for tokens, 0 for padding, ``(B, T)``.
            labels: Not shifted, ``IGNORE_INDEX`` where nothing is scored, ``(B, T)``.
            needs: Signals besides ``logps``.
            temperature: Of the entropies, > 0.
            layers: Layers, from 0, whose ``states`` are wanted; -1 is what the head reads.
            layout: Where the labels of these rows stand, and what of them is fed; None finds out
                where, and feeds all of it, as do signals that are asked for at every position.

        Raises:
            InputError: If the rows are longer than the model has positions for, or than its
                frequencies stay what they are.
        """
        check_extents(self.limits, type(self.lm).__name__, [Extent("", input_ids.shape[1])])
        if layout is None:
            is_label = labels[:, 1:] != IGNORE_INDEX
            rows, columns = is_label.nonzero(as_tuple=True)
            picked, places = labels[rows, columns + 1], rows * labels.shape[1] + columns
        else:
            picked, rows, places = layout[:3]
        last: Tensor | None = None
        heard: dict[int, Tensor] = {}
        at_all = bool({"states", "padded"} & set(needs))
        if layout is not None and layout.widths and not at_all:
            hidden = self._hidden_laid_out(input_ids, attention_mask, layout)
        else:
            heard_of = [layer for layer in layers if layer >= 0] if "states" in needs else []
            with listening(self.lm, heard_of) as heard:
                out = body_of(self.lm)(
                    input_ids=input_ids, attention_mask=attention_mask, use_cache=False
                )
            last = out.last_hidden_state
            if "states" in needs and -1 in layers:
                heard[-1] = last
            hidden = last.flatten(0, 1).index_select(0, places)
        scores = linear_scores(
            hidden,
            self.head.weight,
            picked,
            self.head_bias,
            temperature=temperature,
            chunk_size=self.chunk_size,
            entropy="entropies" in needs,
            transform=self.transform,
            fused=self.fused_head,
        )
        is_token = labels != IGNORE_INDEX
        states = {layer: found[is_token] for layer, found in heard.items()}
        return TokenSignals(
            labels=picked,
            rows=rows,
            num_rows=len(labels),
            logps=scores.logps,
            entropies=scores.entropies,
            distributions=self._distributions(hidden) if "distributions" in needs else None,
            padded=(
                Padded(last, attention_mask, self._distributions)
                if last is not None and "padded" in needs
                else None
            ),
            states=States(states, is_token.nonzero()[:, 0]) if states else None,
            offsets=() if layout is None else layout.offsets,
        )

    def _hidden_laid_out(
        self, input_ids: Tensor, attention_mask: Tensor, layout: StepLayout
    ) -> Tensor:
        """Return the last hidden states that predict labels, row by row, ``(N, D)``."""
        if layout.packed is not None:
            return run_packed(self.lm, layout.packed).index_select(0, layout.packed.sources)
        length, starts, start, states = input_ids.shape[1], [0] * len(input_ids), 0, []
        for rows in layout.parts_by_length:
            chosen = torch.tensor(rows, device=input_ids.device)
            width = max(layout.widths[rows[-1]], 1)
            out = body_of(self.lm)(
                input_ids=input_ids[chosen, :width],
                attention_mask=attention_mask[chosen, :width],
                use_cache=False,
            )
            states.append(out.last_hidden_state.flatten(0, 1))
            for place, row in enumerate(rows):
                starts[row] = start + place * width
            start += len(rows) * width
        # Of each label: where its row begins among these states, and its place in the row.
        moved = torch.tensor([begin - row * length for row, begin in enumerate(starts)])
        sources = layout.places + moved.to(input_ids.device)[layout.rows]
        return torch.cat(states).index_select(0, sources)

    @property
    def takes_packed(self) -> bool:
        """Whether the model may be fed packed rows.

        Not where a dropout would strike what rows share alike in all of them, or where the model
        says something else so. Found out once, with forward passes over a few tokens.
        """
        if self._takes_packed is None:
            may = may_take_packed(self.lm) and not _drops(self)
            self._takes_packed = may and self.reads_packed_alike()
        return self._takes_packed

    def reads_packed_alike(self) -> bool:
        """Compare packed rows with the same ones one by one."""
        return reads_packed_alike(self.lm)

    @property
    def _tolerance(self) -> float:
        """Share of a state that rounding may make; what a model overlooks makes more."""
        weight = self.lm.get_input_embeddings().weight
        is_wide = weight.dtype.itemsize >= 4
        # Rounding alone makes 1e-6 of the whole, in bfloat16 1e-2.
        return 1e-3 if is_wide and not torch.is_autocast_enabled(weight.device.type) else 0.05

    @property
    def head(self) -> Any:
        """The output head, whose weight is ``(V, D)``."""
        return self.lm.get_output_embeddings()

    @property
    def head_bias(self) -> Tensor | None:
        """The output head's bias, ``(V,)``."""
        return getattr(self.head, "bias", None)

    def _distributions(self, hidden: Tensor) -> HeadDistributions:
        head = (self.head.weight, self.head_bias)
        return HeadDistributions(hidden, *head, self.chunk_size, self.transform)

    @property
    def layer_stack(self) -> nn.ModuleList:
        """The decoder's layers, one after the other."""
        return layers_of(self.lm)

    @torch.no_grad()
    def score_edges(self, rows: PackedRows, is_detailed: Tensor) -> tuple[Tensor, LinearStatistics]:
        """Score the labelled edges of packed rows.

        Args:
            rows: With branches only if ``takes_trees``.
            is_detailed: Edges of which all statistics are wanted, ``(M,)``.

        Returns:
            Log-probability of every edge's label, nats, ``(M,)``; statistics of the detailed ones,
            in order.
        """
        hidden = self._last_hidden(rows).flatten(0, 1)
        return self._score_at(hidden[rows.sources], rows.labels, is_detailed)

    @torch.no_grad()
    def score_packed(
        self, packed: Packed, labels: Tensor, is_detailed: Tensor
    ) -> tuple[Tensor, LinearStatistics]:
        """Score labels as ``score_edges`` does, of rows that are laid out; if ``takes_packed``.

        Args:
            packed: What is fed, with the source of each label.
            labels: Tokens, ``(M,)``.
            is_detailed: As of ``score_edges``.
        """
        hidden = run_packed(self.lm, packed).index_select(0, packed.sources)
        return self._score_at(hidden, labels, is_detailed)

    def _score_at(
        self, hidden: Tensor, labels: Tensor, is_detailed: Tensor
    ) -> tuple[Tensor, LinearStatistics]:
        """Score labels from the last hidden states that predict them, ``(M, D)``."""
        weight, bias = self.head.weight, self.head_bias
        detailed, others = is_detailed.nonzero()[:, 0], (~is_detailed).nonzero()[:, 0]
        statistics = linear_statistics(
            hidden[detailed],
            weight,
            labels[detailed],
            bias,
            chunk_size=self.chunk_size,
            transform=self.transform,
        )
        scores = linear_scores(
            hidden[others],
            weight,
            labels[others],
            bias,
            chunk_size=self.chunk_size,
            entropy=False,
            transform=self.transform,
        )
        logps = statistics.logps.new_empty(len(labels))
        logps[detailed], logps[others] = statistics.logps, scores.logps
        return logps, statistics

    def _last_hidden(self, rows: PackedRows) -> Tensor:
        """Return the last hidden states, ``(B, T, D)``."""
        extra: dict[str, Any] = {"attention_mask": rows.visible}
        if not rows.is_chain:
            mask = rows.attention_mask()
            if self.lm.config._attn_implementation == "eager":
                dtype = self.lm.get_input_embeddings().weight.dtype
                hidden_value = torch.finfo(dtype).min
                mask = torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, hidden_value)
            extra = {"attention_mask": mask, "position_ids": rows.depths}
        out = body_of(self.lm)(input_ids=rows.input_ids, use_cache=False, **extra)
        hidden: Tensor = out.last_hidden_state
        return hidden

    @property
    def limits(self) -> Limits:
        """How many positions the model takes."""
        if self._limits is None:
            self._limits = limits_of(self.lm)
        return self._limits

    @property
    def takes_trees(self) -> bool:
        """Whether the model scores branches of one row as it scores rows of their own.

        Not those whose attention reaches only so far, keeps a state, or runs in a kernel that
        takes no mask. Found out once, with a forward pass over a few tokens.
        """
        if self._takes_trees is None:
            self._takes_trees = _may_take_trees(self.lm) and self.scores_branches_alike()
        return self._takes_trees

    @torch.no_grad()
    def scores_branches_alike(self) -> bool:
        """Compare a tree of a few tokens with its sequences one by one, in forward passes."""
        size = vocabulary_size(self.lm.config)
        texts = ((1, 2, 3, 4, 5, 6), (1, 2, 3, 7, 8), (1, 2, 9, 7, 8))
        ids = [tuple(7 * token % size for token in text) for text in texts]
        rows = [EncodedRow("", row, (IGNORE_INDEX, *row[1:])) for row in ids]
        tree = prefix_tree(rows)
        device = self.lm.get_input_embeddings().weight.device
        packed = self._last_hidden(pack_rows([tree], 0).to(device))[0].double()
        for row, edges in zip(rows, tree.edges, strict=True):
            alone = self._last_hidden(pack_rows([prefix_tree([row])], 0).to(device))[0].double()
            found = packed[[tree.sources[edge] for edge in edges]]
            if not (found - alone).norm() < self._tolerance * alone.norm():
                return False
        return True

    def gradient_norm(
        self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor, *, of_each: bool = False
    ) -> float:
        """Return the 2-norm of the gradient of one row's mean loss by all weights.

        Gradients that training has collected, and whether weights are trained, stay as they are.

        Args:
            input_ids: ``(1, T)``.
            attention_mask: 1 for tokens that may be looked at, ``(1, T)``.
            labels: As for ``forward``, ``(1, T)``.
            of_each: Return the mean over the weight tensors of each one's own norm instead.
        """
        # Validation may run in inference mode, whose tensors can't be part of a graph.
        with torch.inference_mode(False), torch.enable_grad():
            weights = {
                name: weight.detach().requires_grad_() for name, weight in self.named_parameters()
            }
            row = (input_ids.clone(), attention_mask.clone(), labels.clone())
            loss = -torch.func.functional_call(self, weights, row).logps.mean()
            grads = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
        # Autocast would keep a cast of each of these leaves until its context ends, row by row.
        torch.clear_autocast_cache()
        norms = torch.stack([grad.float().norm() for grad in grads if grad is not None])
        return (norms.mean() if of_each else norms.norm()).item()

    def frozen_copy(self) -> LabelScorer:
        """Return a copy that is never trained: the reference model."""
        return copy.deepcopy(self).requires_grad_(False).eval()

    def check_head(self, key: str = "model.pretrained", *, continues: bool = False) -> None:
        """Find out what the model makes of its output head's logits; refuse what can't be scored.

        Args:
            key: Configuration key that the error names.
            continues: Find out too how prompts have to be continued.

        Raises:
            InputError: If the model's own logits can't be had from its last hidden states, or it
                looks ahead.
        """
        check_reading(self.lm, key)
        self.transform = find_transform(self.lm, key)
        if continues:
            way_of(self.lm)


def _may_take_trees(lm: Any) -> bool:
    """Tell by its configuration whether a model's attention takes any mask and any positions."""
    config = lm.config.get_text_config()
    takes_mask = bool(getattr(lm, "_supports_attention_backend", False))
    takes_positions = "position_ids" in inspect.signature(body_of(lm).forward).parameters
    kernel = config._attn_implementation
    return looks_everywhere(lm) and takes_mask and takes_positions and kernel in ("sdpa", "eager")


def _drops(scorer: LabelScorer) -> bool:
    """Whether a model drops something at random in training; of a quiet one, its adapter."""
    shares = [
        module.p
        for name, module in scorer.lm.named_modules()
        if isinstance(module, nn.Dropout) and ("lora_dropout" in name or not scorer.is_quiet)
    ]
    return any(shares) or bool(named_noise(scorer.lm) and not scorer.is_quiet)
