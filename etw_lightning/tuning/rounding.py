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

__all__ = ["SIXTEEN_BITS", "round_stochastically", "rounding_class"]

#: Kinds of weights that are rounded.
SIXTEEN_BITS = (torch.bfloat16, torch.float16)
#: Numbers rounded at a time: what stays in a processor's cache.
_BLOCK = 1 << 18
#: Bits of a float32 number that bfloat16 keeps.
_KEPT = -(1 << 16)
#: Key of a parameter group that counts steps, so that a run that goes on draws as one that ran on.
_COUNT = "rounded_steps"


def round_stochastically(target: Tensor, value: Tensor, noise: torch.Generator) -> None:
    """Write float32 values into a 16-bit tensor, each rounded up or down by chance.

    A value between two neighbours ``a < b`` becomes ``b`` with probability
    ``(value - a) / (b - a)``: its mean is the value. One that is representable stays; none becomes
    infinite that was finite.

    Args:
        target: bfloat16 or float16, any shape; written to.
        value: float32, of the same shape, on the same device.
        noise: Generator on that device.

    Example:
        >>> target = torch.empty(100_000, dtype=torch.bfloat16)
        >>> round_stochastically(target, torch.full((100_000,), 1.001), torch.Generator())
        >>> sorted(set(target.tolist())), round(target.double().mean().item(), 4)
        ([1.0, 1.0078125], 1.001)
    """
    parts = zip(_blocks(target), _blocks(value), strict=True)
    rounded = _bfloat16 if target.dtype == torch.bfloat16 else _by_neighbours
    for part, exact in parts:
        part.copy_(rounded(exact, part.dtype, noise))


def _blocks(tensor: Tensor) -> Iterator[Tensor]:
    """Yield a tensor's parts along its first dimension, of about ``_BLOCK`` numbers each."""
    rows = tensor.shape[0] if tensor.dim() else 0
    per = max(1, _BLOCK // max(1, tensor[0].numel())) if rows else 0
    return iter(tensor.split(per) if rows > per else (tensor,))


def _bfloat16(value: Tensor, dtype: torch.dtype, noise: torch.Generator) -> Tensor:
    """Add a number below one unit of the last place kept to the bits, and cut: both in integers."""
    bits = torch.randint(
        0, 1 << 16, value.shape, generator=noise, dtype=torch.int32, device=value.device
    )
    found = bits.add_(value.view(torch.int32)).bitwise_and_(_KEPT).view(torch.float32)
    # Past the largest number, and where the value is none, it is cut.
    cut = value.view(torch.int32).bitwise_and(_KEPT).view(torch.float32)
    return torch.where(found.isfinite() & value.isfinite(), found, cut).to(dtype)


def _by_neighbours(value: Tensor, dtype: torch.dtype, noise: torch.Generator) -> Tensor:
    """Choose between the neighbours of each value; right for numbers below the normal ones too."""
    bits = value.to(dtype).view(torch.int16)
    # The neighbour nearer to 0: a number's bits without its sign rise with its size.
    bits = bits - (value.to(dtype).float().abs() > value.abs()).to(torch.int16)
    below, above = bits.view(dtype), (bits + 1).view(dtype)
    share = (value - below.float()) / (above.float() - below.float())
    rises = torch.rand(value.shape, generator=noise, device=value.device) < share
    # A share of what is between the largest number and infinity is 0, of no number none.
    return torch.where(rises, above, below)


def rounding_class(cls: type[torch.optim.Optimizer]) -> type[torch.optim.Optimizer]:
    """Return an optimiser's class whose 16-bit weights, and their state, are rounded by chance.

    Each such weight is stepped by itself in float32: besides what is kept in 16 bits, the float32
    copies of one weight, its gradient and its state are held at a time. Weights of other kinds are
    stepped as ``cls`` does. Draws depend on the run's seed (``PL_GLOBAL_SEED``), the step and the
    weight's place only: they are equal on all processes, so that copies of a weight stay equal,
    and a run that goes on makes those of one that was never stopped.

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
                    for place, weight in enumerate(weights):
                        if weight.dtype in SIXTEEN_BITS and weight.grad is not None:
                            self._step_one(group, weight, (number, place, count))
            finally:
                for group, weights in zip(groups, kept, strict=True):
                    group["params"] = weights
            return loss

        @torch.no_grad()
        def _step_one(
            self, group: dict[str, Any], weight: nn.Parameter, key: tuple[int, int, int]
        ) -> None:
            """Step one weight in float32, and round it and its state."""
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
            noise = _generator(_local(weight).device, key)
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


def _is_kept(name: str, value: Any, weight: Tensor) -> bool:
    """Tell whether a value of the state is kept in 16 bits, as the weight is."""
    return name != "step" and isinstance(value, Tensor) and value.dtype == weight.dtype


def _local(tensor: Tensor) -> Tensor:
    """Return what this process holds of a tensor."""
    return cast(Tensor, getattr(tensor, "_local_tensor", tensor))


def _generator(device: torch.device, key: tuple[int, int, int]) -> torch.Generator:
    seed = int(os.environ.get("PL_GLOBAL_SEED") or 0)
    words = np.random.SeedSequence([seed, *key]).generate_state(1, np.uint64)
    return torch.Generator(device).manual_seed(int(words[0] >> np.uint64(1)))
