"""A model in shards over processes: how its weights get there, and how they are had whole again.

Only the first process holds the model it has loaded; the others build it without memory and receive
one weight at a time, of which each keeps its share. Everything here that reads or spreads weights
must be called by all processes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from etw_lightning.models.label_scorer import LabelScorer

__all__ = [
    "Sharding",
    "move_buffers",
    "plain_modules",
    "read_outside",
    "spread",
    "whole_copy",
    "whole_weights",
]

#: PyTorch's FSDP2 (``fully_shard``), or DeepSpeed's ZeRO stage 3.
Sharding = Literal["fsdp2", "zero3"]

#: What of a scorer runs the model, and so must gather its weights.
_PASSES = ("score_edges", "scores_branches_alike", "reads_packed_alike")


def spread(
    source: LabelScorer | None,
    sharding: Sharding,
    device: torch.device,
    prepare: Callable[[LabelScorer], Any],
    *,
    keep: bool = False,
) -> LabelScorer:
    """Lay a model out in shards over all processes.

    Args:
        source: The model, on the first process; None on the others. Its weights are let go one by
            one as they are dealt out under ZeRO.
        sharding: Kind of the shards. For ``zero3`` this must run inside DeepSpeed's ``zero.Init``.
        device: Where this process computes.
        prepare: Changes the model before it has weights, alike on all processes: what is frozen,
            what is recomputed.
        keep: Leave the source as it is.

    Returns:
        The same model in shards, in training mode.
    """
    plan = _agree(None if source is None else _describe(source))
    with plain_modules(sharding):
        lm = _without_weights(*plan["model"])
        scorer = LabelScorer(lm, plan["chunk_size"], plan["transform"])
        scorer.is_quiet, scorer.in_shards = plan["is_quiet"], True
        scorer.lm.generation_config = plan["generation_config"]
        _conform(scorer, plan["weights"])
        prepare(scorer)
        _fill_buffers(scorer, source, device)
    if sharding == "fsdp2":
        _shard_fully(scorer, source, device)
    else:
        _partition(scorer, source, device, keep=keep)
    return scorer.train()


def _agree(plan: Any) -> Any:
    """Return what the first process gives."""
    plans = [plan]
    torch.distributed.broadcast_object_list(plans, src=0)
    return plans[0]


def _is_first() -> bool:
    return bool(torch.distributed.get_rank() == 0)


def _describe(source: LabelScorer) -> dict[str, Any]:
    """Return what the other processes need to build the same model without weights."""
    lm = source.lm
    return {
        "model": (type(lm), lm.config, lm.dtype),
        "generation_config": lm.generation_config,
        "chunk_size": source.chunk_size,
        "transform": source.transform,
        "is_quiet": source.is_quiet,
        "weights": {name: (w.shape, w.dtype) for name, w in source.named_parameters()},
    }


def _without_weights(cls: type[Any], config: Any, dtype: torch.dtype) -> Any:
    """Build a model on the device that has no memory."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device("meta"):
            lm = cls(copy.deepcopy(config))
    finally:
        torch.set_default_dtype(before)
    lm.tie_weights()
    return lm


def _conform(scorer: LabelScorer, weights: dict[str, tuple[torch.Size, torch.dtype]]) -> None:
    """Give weights without memory the precision that they have where they were loaded."""
    own = dict(scorer.named_parameters())
    assert {name: weight.shape for name, weight in own.items()} == {
        name: shape for name, (shape, _) in weights.items()
    }, "the model built from its configuration has other weights"
    for name, weight in own.items():
        dtype = weights[name][1]
        if weight.dtype != dtype:
            _put(scorer, weight, nn.Parameter(weight.to(dtype)))


def _put(scorer: nn.Module, old: nn.Parameter, new: nn.Parameter) -> None:
    """Put a weight in the place of another one, wherever that is used."""
    for module in scorer.modules():
        for name, weight in module._parameters.items():
            if weight is old:
                module._parameters[name] = new


def _fill_buffers(scorer: LabelScorer, source: LabelScorer | None, device: torch.device) -> None:
    """Take buffers from the first process, as they are.

    Rotary frequencies are no part of the saved weights, and must stay wide.
    """
    for name, empty in list(scorer.named_buffers(remove_duplicate=False)):
        given = None if source is None else source.get_buffer(name)
        shape, dtype = _agree(None if given is None else (given.shape, given.dtype))
        filled = empty.new_empty(shape, dtype=dtype, device=device)
        if given is not None:
            filled.copy_(given)
        if filled.numel():
            torch.distributed.broadcast(filled, src=0)
        owner, _, leaf = name.rpartition(".")
        scorer.get_submodule(owner)._buffers[leaf] = filled


# FSDP2.


def _shard_fully(scorer: LabelScorer, source: LabelScorer | None, device: torch.device) -> None:
    """Shard each layer and the rest, then deal the weights out one by one."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for layer in scorer.layer_stack:
        fully_shard(layer, mesh=mesh)
    fully_shard(scorer, mesh=mesh)
    for name in _PASSES:
        register_fsdp_forward_method(scorer, name)
    buffers = dict(scorer.named_buffers(remove_duplicate=False))
    scorer.to_empty(device=device)
    for name, buffer in buffers.items():
        scorer.get_buffer(name).copy_(buffer)
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(scorer, {} if source is None else source.state_dict(), options=options)


# ZeRO-3.


class _Leaf(nn.Module):
    """Holds the weights of one module while ``zero.Init`` partitions them.

    That context takes the first process's values of each new module's own weights, and leaves to
    every process its share.
    """

    def __init__(self, weights: dict[str, nn.Parameter]) -> None:
        super().__init__()
        for name, weight in weights.items():
            self.register_parameter(name, weight)


def _partition(
    scorer: LabelScorer, source: LabelScorer | None, device: torch.device, *, keep: bool
) -> None:
    """Fill and partition the weights module by module."""
    given = {} if source is None else dict(source.named_parameters())
    names = {id(weight): name for name, weight in scorer.named_parameters()}
    for module in list(scorer.modules()):
        mine: dict[str, nn.Parameter] = {}
        for leaf, weight in module._parameters.items():
            if weight is None or not weight.is_meta:
                continue
            name = names[id(weight)]
            # In the precision that the engine will compute in: here new tensors have no other.
            filled = weight.new_empty(weight.shape, device=device)
            if source is not None:
                filled.copy_(given[name].detach())
                if not keep:
                    given[name].data = given[name].data.new_empty(0)
            mine[leaf] = nn.Parameter(filled, requires_grad=weight.requires_grad)
            _put(scorer, weight, mine[leaf])
        if mine:
            _Leaf(mine)


@contextmanager
def plain_modules(sharding: Sharding) -> Iterator[None]:
    """Let modules be built as they are inside ``zero.Init``, which partitions each new one."""
    if sharding != "zero3":
        yield
        return
    from deepspeed.runtime.zero.partition_parameters import (
        restore_init_context,
        shutdown_init_context,
    )

    shutdown_init_context()
    try:
        yield
    finally:
        restore_init_context()


def read_outside(reader: nn.Module, scorer: LabelScorer) -> None:
    """Have the output head's weights whole for as long as another module runs, under ZeRO-3.

    The head is read where its own forward is not run: in ``LabelScorer`` in chunks, and by
    objectives that work on whole distributions.

    Args:
        reader: Whose forward reads it.
        scorer: The model it belongs to.
    """
    import deepspeed

    for weight in scorer.head.parameters():
        deepspeed.zero.register_external_parameter(reader, weight)


# Whole again.


def whole_weights(scorer: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield each weight whole, one at a time, under its name; shared ones once.

    What is yielded may be gone with the next one. All processes must go through all of them, with
    all weights in their shards (``strategies.settle_shards``).
    """
    for name, weight in scorer.named_parameters():
        if hasattr(weight, "full_tensor"):
            yield name, cast(Any, weight).full_tensor().detach()
        elif hasattr(weight, "ds_id"):
            import deepspeed

            with deepspeed.zero.GatheredParameters([weight]):
                yield name, weight.detach()
        else:
            yield name, weight.detach()


def whole_copy(scorer: LabelScorer, device: torch.device, *, keep: bool = True) -> Any:
    """Return a plain copy of a model in shards, in evaluation mode.

    Args:
        scorer: The model; its shards stay as they are.
        device: Where the copy is put.
        keep: Whether this process gets one; others join in and get None.
    """
    copied: LabelScorer | None = None
    places: dict[str, nn.Parameter] = {}
    if keep:
        lm = scorer.lm
        empty = _without_weights(type(lm), lm.config, lm.dtype)
        copied = LabelScorer(empty, scorer.chunk_size, scorer.transform)
        copied.lm.generation_config = copy.deepcopy(lm.generation_config)
        places = dict(copied.named_parameters())
    for name, weight in whole_weights(scorer):
        if copied is not None:
            new = nn.Parameter(weight.to(device, copy=True), requires_grad=False)
            _put(copied, places.pop(name), new)
    if copied is None:
        return None
    assert not places, "the copy has other weights"
    for name, buffer in scorer.named_buffers(remove_duplicate=False):
        owner, _, leaf = name.rpartition(".")
        copied.get_submodule(owner)._buffers[leaf] = buffer.to(device, copy=True)
    return copied.eval()


def move_buffers(scorer: LabelScorer, device: torch.device) -> None:
    """Put what is not in shards on a device."""
    for name, buffer in list(scorer.named_buffers(remove_duplicate=False)):
        owner, _, leaf = name.rpartition(".")
        scorer.get_submodule(owner)._buffers[leaf] = buffer.to(device)
