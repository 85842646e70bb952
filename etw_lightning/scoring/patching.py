"""Activation patching: one model's hidden states put into another, layer by layer.

At the positions that predict the labels, the output of one layer of the receiver (the residual
stream, before any final norm) is replaced by that of a source for the same text. How far the
log-probability of the labels falls says what the source lacks at that layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from etw_lightning.models.loading import LabelScorer
from etw_lightning.schema import IGNORE_INDEX, InputError
from etw_lightning.tuning.decoder import find_layers, hidden_of

__all__ = ["check_same_layers", "patched_logps"]


@torch.no_grad()
def patched_logps(
    receiver: LabelScorer,
    sources: Sequence[LabelScorer],
    input_ids: Tensor,
    attention_mask: Tensor,
    labels: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return the receiver's mean log-probability of each row, as it is and with patched layers.

    Each model runs once; what the receiver's lower layers say is kept, so that a patched layer
    costs only those above it.

    Args:
        receiver: Where states are put.
        sources: Where they are taken from; as many layers, as wide.
        input_ids: ``(B, T)``.
        attention_mask: ``(B, T)``.
        labels: Not shifted, at least one in each row, ``(B, T)``.

    Returns:
        Nats per label, float64, ``(B,)`` and ``(sources, layers, B)``.
    """
    inputs = (input_ids, attention_mask, labels)
    is_label = labels[:, 1:] != IGNORE_INDEX
    with _recorded(receiver, lambda output: output) as outputs:
        own = _row_logps(receiver, *inputs)
    found = []
    for source in sources:
        with _recorded(source, lambda output: hidden_of(output)[:, :-1][is_label]) as states:
            _row_logps(source, *inputs)
        per_layer = []
        for number, (output, state) in enumerate(zip(outputs, states, strict=True)):
            patched = _with_states(output, state, is_label)
            with _bypassed(_layers(receiver.lm)[: number + 1], patched):
                per_layer.append(_row_logps(receiver, *inputs))
        found.append(torch.stack(per_layer))
    return own, torch.stack(found)


def check_same_layers(receiver: LabelScorer, source: LabelScorer, key: str) -> None:
    """Refuse a model whose hidden states can't be put into the target model.

    Args:
        receiver: The target model.
        source: The model the states come from.
        key: Configuration key of the source.

    Raises:
        InputError: If layers are not found, or their number or width differs.
    """
    (count, width), (own_count, own_width) = (
        (len(_layers(scorer.lm)), scorer.lm.config.get_text_config().hidden_size)
        for scorer in (source, receiver)
    )
    if (count, width) != (own_count, own_width):
        raise InputError(
            f"{key} has {count} layers of width {width}, data.target_model {own_count} of width "
            f"{own_width}; unlearning depth puts the states of one into the other: give models of "
            "one architecture, or leave unlearning_depth out of --metrics."
        )


def _layers(lm: Any) -> nn.ModuleList:
    """Return a model's decoder layers, from the embedding up."""
    layers = find_layers(lm)
    if lm.config.is_encoder_decoder or layers is None:
        raise _no_layers(lm)
    return layers


def _no_layers(lm: Any) -> InputError:
    return InputError(
        f"unlearning depth: the decoder layers of {type(lm).__name__} can't be found; leave "
        "unlearning_depth out of --metrics."
    )


def _row_logps(scorer: LabelScorer, ids: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
    """Return the mean log-probability of each row's labels, float64 on the CPU, ``(B,)``."""
    device = next(scorer.parameters()).device
    signals = scorer(ids.to(device), mask.to(device), labels.to(device))
    rows = signals.rows.cpu()
    sums = torch.zeros(len(ids), dtype=torch.float64)
    sums.index_add_(0, rows, signals.logps.double().cpu())
    return sums / signals.row_counts().cpu()


def _with_states(output: Any, states: Tensor, is_label: Tensor) -> Any:
    """Return a layer's output with a source's states, ``(N, D)``, where labels are predicted."""
    hidden = hidden_of(output).clone()
    hidden[:, :-1][is_label] = states.to(hidden.device, hidden.dtype)
    return type(output)([hidden, *output[1:]]) if isinstance(output, tuple | list) else hidden


@contextmanager
def _recorded(scorer: LabelScorer, keep: Callable[[Any], Any]) -> Iterator[list[Any]]:
    """Collect what ``keep`` makes of each layer's output while the model runs once."""
    layers, kept = _layers(scorer.lm), list[Any]()

    def record(_layer: nn.Module, _args: Any, output: Any) -> None:
        kept.append(keep(output))

    handles = [layer.register_forward_hook(record) for layer in layers]
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()
    if len(kept) != len(layers):
        raise _no_layers(scorer.lm)


@contextmanager
def _bypassed(layers: Iterable[nn.Module], output: Any) -> Iterator[None]:
    """Let layers say ``output`` instead of computing; the model goes on from there."""
    before = [(layer, layer.__dict__.get("forward")) for layer in layers]

    def say(*_args: Any, **_kwargs: Any) -> Any:
        return output

    try:
        for layer, _ in before:
            layer.__dict__["forward"] = say
        yield
    finally:
        for layer, forward in before:
            if forward is None:
                layer.__dict__.pop("forward", None)
            else:
                layer.__dict__["forward"] = forward
