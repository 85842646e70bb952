"""The optimiser, by the path of its class, and the course of its learning rate."""

from __future__ import annotations

import difflib
import importlib.util
import inspect
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import torch
from torch import nn

from etw_lightning.schema import InputError
from etw_lightning.tuning.rounding import SIXTEEN_BITS, rounding_class

__all__ = ["DEFAULT_BETAS", "Rounding", "Schedule", "make_optimizer", "scale_of"]

#: How a stepped 16-bit weight is rounded to one that can be kept.
Rounding = Literal["nearest", "stochastic"]

#: Course of the learning rate after the warm-up: held, or falling to 0 on a line or a half cosine.
Schedule = Literal["constant", "linear", "cosine"]

#: Decay rates that AdamW has where none are asked for.
DEFAULT_BETAS = (0.9, 0.999)

#: Classes with a step in one pass, devices that have it, arguments that ask for another way.
_FUSED = (torch.optim.Adam, torch.optim.AdamW)
_FUSING_DEVICES = ("cpu", "cuda", "xpu")
_WAYS = {"fused", "foreach", "capturable", "differentiable"}
#: Of ``torch.optim``, what steps all weights as one, or rows of them.
_WHOLE = (torch.optim.LBFGS, torch.optim.SparseAdam)
#: Arguments that have keys of their own.
_OWN = ("lr", "betas", "weight_decay")


def make_optimizer(
    params: Iterable[tuple[str, nn.Parameter]],
    optimizer: str = "torch.optim.AdamW",
    *,
    lr: float,
    betas: tuple[float, float] = DEFAULT_BETAS,
    weight_decay: float = 0.0,
    optimizer_args: Mapping[str, Any] | None = None,
    rounding: Rounding | None = None,
    fuses: bool = True,
) -> torch.optim.Optimizer:
    """Make an optimiser of the weights that train: matrices decayed, vectors not.

    Adam and AdamW are fused, one pass over a weight and its state, where that exists for the
    device and ``optimizer_args`` asks for nothing else.

    Args:
        params: Weights by name; frozen ones are left out.
        optimizer: Import path of its class: ``torch.optim.AdamW``, ``torch.optim.SGD``,
            ``bitsandbytes.optim.AdamW8bit``, ``torchao.optim.AdamW8bit``.
        lr: Peak learning rate, > 0.
        betas: Decay rates of two running means, each in [0, 1); for a class that has none they
            must be left at their default.
        weight_decay: Of matrices, >= 0; vectors (norms, biases) have none.
        optimizer_args: Further arguments of the class.
        rounding: Of 16-bit weights, see ``rounding_class``; null is ``stochastic`` for the classes
            of ``torch.optim``, ``nearest`` for others.
        fuses: False where gradients are scaled: a fused step takes the scale off by itself, after
            they would have been clipped.

    Raises:
        InputError: If there is no such class, it lacks an argument, or refuses a value; if its
            weights can't be rounded stochastically.

    Example:
        >>> layer = torch.nn.Linear(2, 2)
        >>> made = make_optimizer(layer.named_parameters(), lr=0.1, weight_decay=0.5)
        >>> [(len(group["params"]), group["weight_decay"]) for group in made.param_groups]
        [(1, 0.5), (1, 0.0)]
    """
    cls = _optimizer_class(optimizer)
    further = dict(optimizer_args or {})
    if not all(0 <= beta < 1 for beta in betas):
        raise InputError(f"model.betas must each be at least 0 and below 1; got {list(betas)}.")
    given = _check_arguments(cls, optimizer, further, betas, weight_decay)
    weights = [weight for _, weight in params if weight.requires_grad]
    assert weights, "nothing trains"
    groups: list[dict[str, Any]] = [
        {"params": [weight for weight in weights if _is_matrix(weight)]},
        {"params": [weight for weight in weights if not _is_matrix(weight)]},
    ]
    if "weight_decay" in given:
        groups[0]["weight_decay"], groups[1]["weight_decay"] = weight_decay, 0.0
    own: dict[str, Any] = {"lr": lr}
    if "betas" in given:
        own["betas"] = tuple(betas)
    if fuses and cls in _FUSED and not _WAYS.intersection(further):
        own["fused"] = all(weight.device.type in _FUSING_DEVICES for weight in weights)
    if _rounds(cls, optimizer, rounding) and any(one.dtype in SIXTEEN_BITS for one in weights):
        cls = rounding_class(cls)
    try:
        return cls([group for group in groups if group["params"]], **own, **further)
    except (ValueError, TypeError, AssertionError, RuntimeError, ImportError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        words = {word.lower() for word in re.findall(r"\w+", reason)}
        name = next((f"_args.{name}" for name in further if name.lower() in words), "")
        raise InputError(
            f"model.optimizer{name} is refused by {optimizer}: {reason:.300}."
        ) from error


def _rounds(cls: type[torch.optim.Optimizer], path: str, rounding: Rounding | None) -> bool:
    """Tell whether 16-bit weights are to be rounded stochastically."""
    can = cls.__module__.startswith("torch.optim.") and cls not in _WHOLE
    if rounding == "stochastic" and not can:
        raise InputError(
            f"model.rounding 'stochastic' can't be had with {path}; give an optimiser of "
            "torch.optim that keeps its state by weight, such as torch.optim.AdamW, or "
            "model.rounding: nearest."
        )
    return can and rounding != "nearest"


def _is_matrix(weight: nn.Parameter) -> bool:
    """Tell by its whole shape; what ZeRO-3 leaves of a weight on a process is flat."""
    return len(getattr(weight, "ds_shape", weight.shape)) >= 2


def scale_of(schedule: Schedule, warmup: float, total: int) -> Callable[[int], float]:
    """Return the factor of the learning rate at each step, for ``LambdaLR``.

    Args:
        schedule: Course after the warm-up.
        warmup: Share of the steps in which the factor rises to 1; it is never 0 there.
        total: Steps of the run.

    Example:
        >>> scale = scale_of("linear", warmup=0.5, total=4)
        >>> [scale(step) for step in range(5)]
        [0.5, 1.0, 1.0, 0.5, 0.0]
    """
    rises = int(warmup * total)

    def scale(step: int) -> float:
        if step < rises:
            return (step + 1) / rises
        progress = (step - rises) / max(total - rises, 1)
        if schedule == "linear":
            return max(1 - progress, 0.0)
        if schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
        return 1.0

    return scale


def _optimizer_class(path: str) -> type[torch.optim.Optimizer]:
    """Import an optimiser's class."""
    module, _, name = path.rpartition(".")
    example = "such as torch.optim.AdamW or bitsandbytes.optim.AdamW8bit"
    if "class_path" in path or path.lstrip().startswith("{"):
        raise InputError(
            f"model.optimizer takes a class path alone, {example}; its arguments go into "
            f"model.optimizer_args: {{name: value}}; got {path!r}."
        )
    if not module:
        raise InputError(
            f"model.optimizer must be the import path of a class, {example}; got {path!r}."
        )
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ImportError as error:
        package = path.split(".")[0]
        what = f"package {package!r} is not installed: pip install {package}"
        if importlib.util.find_spec(package) is not None:
            what = " ".join(str(error).split())[:200]
        raise InputError(f"model.optimizer {path!r} can't be imported; {what}.") from error
    if not (isinstance(found, type) and issubclass(found, torch.optim.Optimizer)):
        classes = [
            known
            for known, one in vars(importlib.import_module(module)).items()
            if isinstance(one, type) and issubclass(one, torch.optim.Optimizer)
        ]
        same = [known for known in classes if known.lower() == name.lower()]
        near = same or difflib.get_close_matches(name, classes, n=1)
        hint = f" Did you mean '{module}.{near[0]}'?" if near else ""
        raise InputError(f"model.optimizer must be an optimiser, {example}; got {path!r}.{hint}")
    return found


def _check_arguments(
    cls: type[torch.optim.Optimizer],
    path: str,
    further: Mapping[str, Any],
    betas: tuple[float, float],
    weight_decay: float,
) -> set[str]:
    """Refuse arguments that a class does not take; return those of our own keys that it takes."""
    signature = inspect.signature(cls).parameters
    takes_any = any(one.kind is one.VAR_KEYWORD for one in signature.values())
    known = [name for name in list(signature)[1:] if name not in _OWN]
    for name in further:
        if name in _OWN:
            raise InputError(f"model.optimizer_args.{name} has a key of its own: model.{name}.")
        if name not in known and not takes_any:
            raise InputError(
                f"model.optimizer_args.{name} is not an argument of {path}; it takes "
                f"{', '.join(known) or 'none'}."
            )
    takes = set(signature).intersection(_OWN)
    if "betas" not in takes and tuple(betas) != DEFAULT_BETAS:
        raise InputError(f"model.betas is not an argument of {path}; leave it out.")
    if "weight_decay" not in takes and weight_decay:
        raise InputError(f"model.weight_decay must be 0 for {path}, which has none.")
    return takes
