"""Stochastic rounding: 16-bit weights that learn although a step is smaller than their spacing.

A bfloat16 weight has 8 significant bits: a change below 1/512 of it is lost when the result is
rounded to the nearest value, which at learning rates of 1e-5 is what happens to nearly all of
them. Rounded up or down with the probabilities that keep its mean, the same change is made in
expectation (Gupta et al., 2015, arXiv:1502.02551; for bfloat16 training Zamirai et al., 2020,
arXiv:2010.06192).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["SIXTEEN_BITS", "Draws", "block_of", "round_stochastically", "rounding_class"]

#: Kinds of weights that are rounded.
SIXTEEN_BITS = (torch.bfloat16, torch.float16)
#: Numbers stepped and rounded at a time, so that what is kept of them in float32 stays in a
#: processor's cache; more where starting a kernel costs more than memory does.
_BLOCKS = {"cpu": 1 << 17}
_BLOCK = 1 << 21
#: Draws made at a time on a processor.
_DRAWN = 1 << 15
#: Bits of a float32 number that bfloat16 keeps.
_KEPT = -(1 << 16)
#: Classes that take a number without looking at others, and what they keep of each.
_FUSED = (torch.optim.Adam, torch.optim.AdamW)
_MEANS = ("exp_avg", "exp_avg_sq")
#: Key of a parameter group that counts steps, so that a run that goes on draws as one that ran on.
_COUNT = "rounded_steps"


class Draws:
    """Random numbers on a device, by a key: who has the same key draws the same.

    A processor's are NumPy's SFC64, which takes half the time of PyTorch's own.

    Args:
        device: Where they are wanted.
        key: Numbers >= 0.
    """

    def __init__(self, device: torch.device, *key: int) -> None:
        seed = np.random.SeedSequence(key)
        self._device = device
        if device.type == "cpu":
            self._bits = np.random.SFC64(seed)
            return
        word = int(seed.generate_state(1, np.uint64)[0] >> np.uint64(1))
        self._generator = torch.Generator(device).manual_seed(word)

    def fill(self, out: Tensor) -> Tensor:
        """Draw whole numbers in [0, 2 ** 16) into an int32 tensor."""
        flat = out.view(-1)
        if not len(flat):
            return out
        # Small enough that a processor's memory is not given back, and cleared, after each.
        for part in flat.split(_DRAWN if self._device.type == "cpu" else len(flat)):
            # One draw of 64 bits is four of them.
            part.copy_(self._words(-(-len(part) // 4)).view(torch.uint16)[: len(part)])
        return out

    def _words(self, num: int) -> Tensor:
        if self._device.type == "cpu":
            return torch.from_numpy(self._bits.random_raw(num).view(np.int64))
        wide = torch.empty(num, dtype=torch.int64, device=self._device)
        return wide.random_(-(1 << 63), None, generator=self._generator)

    def below_one(self, shape: torch.Size) -> Tensor:
        """Draw numbers in [0, 1), float32."""
        if self._device.type == "cpu":
            drawn = np.random.Generator(self._bits).random(shape.numel(), np.float32)
            return torch.from_numpy(drawn).view(shape)
        return torch.rand(shape, generator=self._generator, device=self._device)


def round_stochastically(target: Tensor, value: Tensor, noise: Draws) -> None:
    """Write float32 values into a 16-bit tensor, each rounded up or down by chance.

    A value between two neighbours ``a < b`` becomes ``b`` with probability
    ``(value - a) / (b - a)``: its mean is the value. One that is representable stays; none becomes
    infinite that was finite.

    Args:
        target: bfloat16 or float16, any shape; written to.
        value: float32, of the same shape, on the same device.
        noise: Draws on that device.

    Example:
        >>> target = torch.empty(100_000, dtype=torch.bfloat16)
        >>> round_stochastically(target, torch.full((100_000,), 1.001), Draws(target.device))
        >>> sorted(set(target.tolist())), round(target.double().mean().item(), 4)
        ([1.0, 1.0078125], 1.001)
    """
    for part, exact in zip(_blocks(target), _blocks(value), strict=True):
        part.copy_(_rounded(exact, part.dtype, noise))


def block_of(device: torch.device) -> int:
    """Return how many numbers of a weight are stepped and rounded at a time on a device."""
    return _BLOCKS.get(device.type, _BLOCK)


def _blocks(tensor: Tensor) -> Iterator[Tensor]:
    """Yield a tensor's parts along its first dimension, of about a block's numbers each."""
    rows = tensor.shape[0] if tensor.dim() else 0
    per = max(1, block_of(tensor.device) // max(1, tensor[0].numel())) if rows else 0
    return iter(tensor.split(per) if rows > per else (tensor,))


def _rounded(value: Tensor, dtype: torch.dtype, noise: Draws, room: Tensor | None = None) -> Tensor:
    """Return float32 values rounded by chance, in whatever dtype keeps the result exactly.

    Args:
        value: float32.
        dtype: The kind to round to.
        noise: Draws.
        room: int32, of the values' shape, for the result; None to make some.
    """
    if dtype != torch.bfloat16:
        return _by_neighbours(value, dtype, noise)
    return _bfloat16(
        value, noise, torch.empty_like(value, dtype=torch.int32) if room is None else room
    )


def _bfloat16(value: Tensor, noise: Draws, room: Tensor) -> Tensor:
    """Add a number below one unit of the last place kept to the bits, and cut: both in integers.

    Returns:
        float32, whose last bits are 0: no later rounding changes it.
    """
    found = noise.fill(room).add_(value.view(torch.int32)).bitwise_and_(_KEPT).view(torch.float32)
    if _is_small(value):
        return found
    # Past the largest number, and where the value is none, it is cut.
    cut = value.view(torch.int32).bitwise_and(_KEPT).view(torch.float32)
    return torch.where(found.isfinite() & value.isfinite(), found, cut)


def _is_small(value: Tensor) -> bool:
    """Tell whether none is past bfloat16's largest number; known where asking is no waiting."""
    if value.device.type != "cpu" or not value.numel():
        return False
    low, high = (one.item() for one in value.aminmax())
    largest = torch.finfo(torch.bfloat16).max
    return -largest <= low and high <= largest


def _by_neighbours(value: Tensor, dtype: torch.dtype, noise: Draws) -> Tensor:
    """Choose between the neighbours of each value; right for numbers below the normal ones too."""
    bits = value.to(dtype).view(torch.int16)
    # The neighbour nearer to 0: a number's bits without its sign rise with its size.
    bits = bits - (value.to(dtype).float().abs() > value.abs()).to(torch.int16)
    below, above = bits.view(dtype), (bits + 1).view(dtype)
    share = (value - below.float()) / (above.float() - below.float())
    rises = noise.below_one(value.shape) < share
    # A share of what is between the largest number and infinity is 0, of no number none.
    return torch.where(rises, above, below)


def rounding_class(cls: type[torch.optim.Optimizer]) -> type[torch.optim.Optimizer]:
    """Return an optimiser's class whose 16-bit weights, and their state, are rounded by chance.

    Such weights are stepped in float32. Adam and AdamW in their fused form, which take a number
    without looking at others, go over all of them in one pass: what is held in float32 is a block
    of some thousand numbers, their gradients and their state. For other classes it is the whole of
    one weight at a time. Weights of other kinds are stepped as ``cls`` does. Draws depend on the
    run's seed (``PL_GLOBAL_SEED``), the step and a weight's place among those that are stepped
    only: they are equal on all processes, so that copies of a weight stay equal, and a run that
    goes on makes those of one that was never stopped.

    Args:
        cls: Class of an optimiser that keeps its state by weight, as those of ``torch.optim`` do.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(4096, dtype=torch.bfloat16))
        >>> optimizer = rounding_class(torch.optim.SGD)([weight], lr=1e-4)
        >>> weight.grad = torch.ones_like(weight)
        >>> optimizer.step()
        >>> bool(0 < (weight < 1).sum() < 4096)
        True
    """

    class Rounding(cls):  # type: ignore[misc,valid-type]
        def step(self, closure: Callable[[], Any] | None = None) -> Any:
            loss = None
            if closure is not None:
                with torch.enable_grad():
                    loss = closure()
            groups = self.param_groups
            kept = [list(group["params"]) for group in groups]
            wide = [[one for one in weights if one.dtype not in SIXTEEN_BITS] for weights in kept]
            try:
                for group, weights in zip(groups, wide, strict=True):
                    group["params"] = weights
                if any(wide):
                    super().step()
                for group in groups:
                    group["params"] = []
                for number, (group, weights) in enumerate(zip(groups, kept, strict=True)):
                    count = group[_COUNT] = group.get(_COUNT, 0) + 1
                    together: dict[tuple[Any, ...], list[nn.Parameter]] = {}
                    for place, weight in enumerate(weights):
                        if weight.dtype not in SIXTEEN_BITS or weight.grad is None:
                            continue
                        if cls in _FUSED and _goes_in_blocks(group, weight, self.state[weight]):
                            together.setdefault(_kind(weight), []).append(weight)
                        else:
                            noise = _draws(_local(weight).device, number, place, count)
                            self._step_one(group, weight, noise)
                    for place, ones in enumerate(together.values()):
                        noise = _draws(_local(ones[0]).device, number, place, count, 1)
                        states = [self.state[weight] for weight in ones]
                        _step_in_blocks(cls, group, ones, states, noise)
            finally:
                for group, weights in zip(groups, kept, strict=True):
                    group["params"] = weights
            return loss

        @torch.no_grad()
        def _step_one(self, group: dict[str, Any], weight: nn.Parameter, noise: Draws) -> None:
            """Step one whole weight in float32, and round it and its state."""
            exact = nn.Parameter(weight.detach().float())
            exact.grad = cast(Tensor, weight.grad).float()
            state = self.state.pop(weight, {})
            is_kept = {name: _is_kept(name, one, weight) for name, one in state.items()}
            self.state[exact] = {
                name: one.float() if is_kept[name] else one for name, one in state.items()
            }
            group["params"] = [exact]
            super().step()
            group["params"] = []
            round_stochastically(_local(weight.data), _local(exact.data), noise)
            self.state[weight] = {}
            for name, one in self.state.pop(exact).items():
                if isinstance(one, Tensor) and one.is_floating_point() and name != "step":
                    held = state[name] if is_kept.get(name) else one.to(weight.dtype)
                    round_stochastically(_local(held), _local(one), noise)
                    one = held
                self.state[weight][name] = one

    Rounding.__name__ = Rounding.__qualname__ = f"Rounding{cls.__name__}"
    return Rounding


def _goes_in_blocks(group: dict[str, Any], weight: nn.Parameter, state: dict[str, Any]) -> bool:
    """Tell whether a weight can be stepped block by block by Adam's fused kernel."""
    parts = [weight, cast(Tensor, weight.grad), *(state[name] for name in _MEANS if name in state)]
    return (
        bool(group["fused"])
        and not group["amsgrad"]
        and all(_local(part).is_contiguous() for part in parts)
        and all(part.dtype == weight.dtype for part in parts)
    )


def _kind(weight: Tensor) -> tuple[Any, ...]:
    """Return what must be equal for weights to share a block.

    Of sharded weights a process may hold more than another. Those that are cut alike are by
    themselves, so that copies stand at the same places, and meet the same draws, everywhere.
    """
    return weight.dtype, _local(weight).device, getattr(weight, "placements", None)


@torch.no_grad()
def _step_in_blocks(
    cls: type[torch.optim.Optimizer],
    group: dict[str, Any],
    weights: list[nn.Parameter],
    states: list[dict[str, Any]],
    noise: Draws,
) -> None:
    """Step weights as ``cls`` does, in one pass in which they and their state are rounded, too."""
    sources: list[list[Tensor]] = []
    steps: list[Tensor] = []
    for weight, state in zip(weights, states, strict=True):
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=_local(weight).device)
            for name in _MEANS:
                state[name] = torch.zeros_like(weight, memory_format=torch.preserve_format)
        parts = [cast(Tensor, weight.grad), weight.detach(), *(state[name] for name in _MEANS)]
        sources.append([_local(part).view(-1) for part in parts])
        steps.append(_local(state["step"]))
    torch._foreach_add_(steps, 1)
    # The fused kernel has no word for "decoupled": it is another function.
    stepped = torch._fused_adamw_ if cls is torch.optim.AdamW else torch._fused_adam_
    sizes = [source[0].numel() for source in sources]
    block = min(block_of(steps[0].device), sum(sizes))
    room = torch.empty(4 * block, dtype=torch.float32, device=steps[0].device)
    bits = torch.empty(3 * block, dtype=torch.int32, device=steps[0].device)
    for pieces in _filled(sizes, block):
        lengths = [stop - start for _, start, stop in pieces]
        exact = room[: 4 * sum(lengths)].view(4, -1)
        drawn = bits[: 3 * sum(lengths)].view(3, -1)
        kept = [
            sources[place][part][start:stop] for part in range(4) for place, start, stop in pieces
        ]
        wide = [piece for row in exact.unbind() for piece in row.split(lengths)]
        torch._foreach_copy_(wide, kept)
        num = len(pieces)
        stepped(
            wide[num : 2 * num],
            wide[:num],
            wide[2 * num : 3 * num],
            wide[3 * num :],
            [],
            [steps[place] for place, _, _ in pieces],
            lr=group["lr"],
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            amsgrad=False,
            maximize=group["maximize"],
        )
        rounded = _rounded(exact[1:], weights[0].dtype, noise, drawn)
        found = [piece for row in rounded.unbind() for piece in row.split(lengths)]
        torch._foreach_copy_(kept[num:], found)


def _filled(sizes: list[int], block: int) -> Iterator[list[tuple[int, int, int]]]:
    """Yield what fills each block: places of weights, with where a piece starts and stops."""
    pieces: list[tuple[int, int, int]] = []
    left = block
    for place, size in enumerate(sizes):
        start = 0
        while start < size:
            stop = min(size, start + left)
            pieces.append((place, start, stop))
            left -= stop - start
            start = stop
            if not left:
                yield pieces
                pieces, left = [], block
    if pieces:
        yield pieces


def _is_kept(name: str, value: Any, weight: Tensor) -> bool:
    """Tell whether a value of the state is kept in 16 bits, as the weight is."""
    return name != "step" and isinstance(value, Tensor) and value.dtype == weight.dtype


def _local(tensor: Tensor) -> Tensor:
    """Return what this process holds of a tensor."""
    return cast(Tensor, getattr(tensor, "_local_tensor", tensor))


def _draws(device: torch.device, *key: int) -> Draws:
    """Return the draws of a step of the run's seed."""
    return Draws(device, int(os.environ.get("PL_GLOBAL_SEED") or 0), *key)
