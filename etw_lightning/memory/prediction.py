"""Memory of each GPU, predicted from a model's configuration: weights are never loaded.

A step has three moments that can be the largest: the forward and backward pass, the optimiser's
update, and an evaluation. Each is weights + gradients + optimiser state + what is alive besides;
a strategy decides which of these are whole on every device and which are split.

Mixed precision keeps 16-bit copies of all weights through the forward pass (autocast's cache),
under FSDP2 too; they are part of what is alive besides. Optimiser state is that of
``STATE_BYTES``. Not known before a run and left out: what the caching allocator can't reuse, and
buffers of the network. ``RESERVED`` stands for the CUDA context.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from etw_lightning.memory.step_trace import Moment

__all__ = [
    "DEVICE_COUNTS",
    "GIB",
    "RESERVED",
    "STATE_BYTES",
    "STRATEGIES",
    "Footprint",
    "Needs",
    "Strategy",
    "choose_strategy",
    "predict_footprint",
    "predict_host",
    "state_bytes",
    "update_bytes",
]

#: How a model is laid out over devices; ``fsdp`` is FSDP2, the others are DDP and DeepSpeed's.
Strategy = Literal[
    "single", "ddp", "fsdp", "deepspeed_zero2", "deepspeed_zero3", "deepspeed_zero3_offload"
]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)
DEVICE_COUNTS = (1, 2, 4, 8, 16, 32, 64)
GIB = 2**30
#: CUDA's context and the workspaces of its libraries, bytes of each GPU; assumed, not measured.
RESERVED = GIB
#: Bytes of state for each byte of a trained weight; of 8-bit optimisers for each weight.
STATE_BYTES = {"SGD": 0, "RMSprop": 1, "Adagrad": 1, "Lion": 1, "Adam": 2, "AdamW": 2}
#: Optimisers that step a weight in one pass.
_FUSED = ("torch.optim.Adam", "torch.optim.AdamW")
#: What a rounded number takes while it is: 4 float32 numbers, and 3 draws and what is made of them.
_BLOCK_BYTES = 4 * 4 + 3 * (2 + 4 * 4)
#: DeepSpeed's own limits as Lightning sets them, in weights.
_BUCKET, _LIVE_WEIGHTS = 200_000_000, 1_000_000_000


@dataclass(frozen=True)
class Needs:
    """What a run needs, whatever the strategy.

    Args:
        num_weights: Weights of the model, an adapter's too.
        num_trained: Those that train.
        weights: Bytes of the weights as they are kept.
        trained: Bytes of those that train, and so of their gradients.
        layer: Bytes of the largest decoder layer.
        root: Bytes of the weights outside of decoder layers: embeddings, head, last norm.
        largest: Bytes of the largest trained tensor.
        state: Bytes of the optimiser's state if it is kept like the weights, and of gradients that
            are remembered from step to step.
        forward: Most bytes of working memory in the forward pass.
        moments: Of the backward pass.
        evaluation: Most bytes of working memory of an evaluation, key-value cache included; 0
            without one.
        reference: Bytes of a frozen copy of the model; 0 without one.
        apart: Bytes of further gradients in a step whose terms' gradients are made apart.
        accumulates: Several micro-batches share a step, so gradients are there all the time.
        on_cuda: Devices are GPUs.
        update: Bytes beside a weight, its gradient and its state while it is updated, where that
            happens one by one (``update_bytes``); None where it does not.
    """

    num_weights: int
    num_trained: int
    weights: int
    trained: int
    layer: int
    root: int
    largest: int
    state: int
    forward: int
    moments: Sequence[Moment] = field(repr=False)
    evaluation: int = 0
    reference: int = 0
    apart: int = 0
    accumulates: bool = False
    on_cuda: bool = True
    update: int | None = None


@dataclass(frozen=True)
class Footprint:
    """Bytes of one device at the largest moment of a run.

    Args:
        moment: Which it is: ``step`` (forward and backward pass), ``update`` or ``evaluation``.
        weights: The model's and a reference model's, as far as they are on this device.
        gradients: Gradients.
        state: Optimiser state, with a strategy's own copies of the weights.
        working: Activations, output head, key-value cache, the optimiser's intermediate results.
        gathered: What is whole for a while under shards, and buffers of the communication.
        reserved: As ``RESERVED``.

    Example:
        >>> Footprint("step", weights=3, gradients=2, state=4).total
        9
    """

    moment: Literal["step", "update", "evaluation"]
    weights: int = 0
    gradients: int = 0
    state: int = 0
    working: int = 0
    gathered: int = 0
    reserved: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        parts = (self.weights, self.gradients, self.state, self.working, self.gathered)
        return sum(parts) + self.reserved


def state_bytes(optimizer: str, trained: int, num_trained: int) -> int:
    """Return the bytes of an optimiser's state.

    Args:
        optimizer: Import path of its class. One that is not in ``STATE_BYTES`` counts as AdamW.
        trained: Bytes of the weights that train.
        num_trained: Their number.

    Example:
        >>> state_bytes("torch.optim.AdamW", trained=400, num_trained=100)
        800
        >>> state_bytes("bitsandbytes.optim.AdamW8bit", trained=400, num_trained=100)
        200
    """
    name = optimizer.rpartition(".")[2]
    kind = name.removeprefix("Paged").removesuffix("8bit")
    factor = STATE_BYTES.get(kind, STATE_BYTES["AdamW"])
    return factor * (num_trained if name.endswith("8bit") else trained)


def update_bytes(
    optimizer: str, largest: int, itemsize: int, *, rounds: bool, block: int
) -> int | None:
    """Return what the update of weights takes while it lasts, bytes.

    Args:
        optimizer: As of ``state_bytes``.
        largest: Numbers of the largest trained weight.
        itemsize: Bytes of each.
        rounds: 16-bit weights are rounded stochastically.
        block: Numbers that are rounded at a time where the class has a fused step.

    Returns:
        What a block takes, or the float32 copies of a 16-bit weight, its gradient and its state;
        0 where the class has a fused step and nothing is rounded; None where all weights may be
        updated at a time.

    Example:
        >>> update_bytes("torch.optim.SGD", 100, 2, rounds=True, block=10)
        800
    """
    if not optimizer.startswith("torch.optim."):
        return None
    if rounds and itemsize == 2 and optimizer in _FUSED:
        return _BLOCK_BYTES * block
    if rounds and itemsize == 2:
        return 4 * largest * (2 + STATE_BYTES.get(optimizer.rpartition(".")[2], 2))
    return 0 if optimizer in _FUSED else None


def predict_footprint(needs: Needs, strategy: Strategy, num_devices: int) -> Footprint:
    """Return what one device holds at the largest moment.

    Args:
        needs: Of the run. For the DeepSpeed strategies in 16 bits, mixed or not, weights are kept
            in 16 bits: there it must be of a model in that precision, without autocast.
        strategy: Layout.
        num_devices: Devices, >= 1.

    Raises:
        ValueError: If ``single`` is asked for with several devices.
    """
    if num_devices < 1 or (strategy == "single" and num_devices > 1):
        raise ValueError(f"{strategy} can't be laid out over {num_devices} devices.")
    layout = _Layout(needs, strategy, num_devices)
    moments = [*layout.steps(), layout.update(), layout.evaluation()]
    found = max(moments, key=lambda moment: moment.total)
    return replace(found, reserved=RESERVED if needs.on_cuda else 0)


def predict_host(needs: Needs) -> int:
    """Return the bytes of the hosts' memory, all together, that offloading takes.

    Weights and gradients as they are kept, and float32 weights with AdamW's two means.
    """
    return needs.weights + needs.reference + needs.trained + 12 * needs.num_trained


def choose_strategy(
    needs_of: Mapping[Strategy, Needs], available: int, counts: Sequence[int] = DEVICE_COUNTS
) -> tuple[Strategy, int] | None:
    """Return the layout that fits with the fewest devices, the simplest of them; None if none does.

    Args:
        needs_of: What the run needs under each strategy.
        available: Bytes of one device.
        counts: Numbers of devices to try, ascending.
    """
    for count in counts:
        for strategy, needs in needs_of.items():
            if (strategy == "single") != (count == 1) and "offload" not in strategy:
                continue
            if predict_footprint(needs, strategy, count).total <= available:
                return strategy, count
    return None


@dataclass(frozen=True)
class _Layout:
    needs: Needs
    strategy: Strategy
    num: int

    @property
    def _is_deepspeed(self) -> bool:
        return self.strategy.startswith("deepspeed")

    @property
    def _shards_weights(self) -> bool:
        return self.strategy not in ("single", "ddp", "deepspeed_zero2")

    @property
    def _offloads(self) -> bool:
        return self.strategy.endswith("offload")

    @property
    def _has_buckets(self) -> bool:
        """Whether gradients lie in buckets that are there all the time (``configs/strategy/ddp``).

        Without ``gradient_as_bucket_view`` there would be as many bytes beside them once more.
        """
        return self.strategy == "ddp"

    @property
    def _parts(self) -> int:
        """Over how many devices gradients and optimiser state are split."""
        return 1 if self.strategy in ("single", "ddp") else self.num

    def _static(self) -> Footprint:
        """Return what is there all the time, with all gradients."""
        needs = self.needs
        if self._offloads:
            return Footprint("step", gathered=self._gathered())
        weights = needs.weights + needs.reference
        state = needs.state
        if self._is_deepspeed:
            # It trains a float32 copy, in whatever precision the model itself is.
            wide = 4 * needs.num_trained
            state = wide + round(state * wide / needs.trained)
        return Footprint(
            "step",
            weights=_share(weights, self.num) if self._shards_weights else weights,
            gradients=_share(needs.trained, self._parts),
            state=_share(state, self._parts),
            gathered=self._gathered(),
        )

    def _gathered(self) -> int:
        """Return the bytes of what is whole for a while, and of buffers."""
        needs = self.needs
        size = needs.weights // needs.num_weights
        if self.strategy == "fsdp":
            # The layer that runs and the next one, and what is outside of layers all the time;
            # gradients of the same before they are split.
            whole = min(needs.root + 2 * needs.layer, needs.weights)
            return whole + min(whole, needs.trained)
        if self.strategy == "deepspeed_zero2":
            return 2 * min(_BUCKET * size, needs.trained)
        if self._shards_weights:
            return min(_LIVE_WEIGHTS * size, needs.weights) + min(_BUCKET * size, needs.trained)
        return 0

    def steps(self) -> Iterator[Footprint]:
        """Yield what is there in the forward pass, and at each moment of the backward pass.

        Gradients of the step before are let go between the two.
        """
        needs, static = self.needs, self._static()
        yield replace(static, working=needs.forward)
        for moment in needs.moments:
            gradients = static.gradients
            if not needs.accumulates and not self._has_buckets:
                gradients = min(gradients, _share(moment.gradients, self._parts))
            yield replace(static, gradients=gradients + needs.apart, working=moment.working)

    def update(self) -> Footprint:
        """Return what is there when weights change."""
        needs, static = self.needs, self._static()
        if self._offloads:
            return replace(static, moment="update")
        if self._is_deepspeed:
            # The split gradients in float32, and as much for the square root of Adam's mean.
            working = 2 * _share(4 * needs.num_trained, self.num)
        elif needs.update is not None:
            working = _share(needs.update, self.num if self.strategy == "fsdp" else 1)
        elif needs.on_cuda and self.strategy != "fsdp":
            # All tensors are updated at a time there.
            working = needs.trained
        else:
            working = 2 * needs.largest
        return replace(static, moment="update", working=working, gathered=0)

    def evaluation(self) -> Footprint:
        """Return what is there while a model is scored; under shards it generates from a copy."""
        needs, static = self.needs, self._static()
        whole = needs.weights if self._shards_weights and needs.evaluation else 0
        return replace(static, moment="evaluation", working=needs.evaluation, gathered=whole)


def _share(size: int, parts: int) -> int:
    return -(-size // parts)
