"""Whether a folder of quantized weights holds those of a model, as far as names tell.

A quantizer puts several tensors in the place of one: integers under the weight's own name
(bitsandbytes, FP8, BitNet) or others (GPTQ and AWQ ``qweight``, compressed-tensors
``weight_packed``, MXFP4 ``_blocks``), and scales beside them. What it leaves as it was keeps its
name and its shape.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping

from etw_lightning.files.misfit import Misfit, Shape

__all__ = ["quantized_misfit"]


def quantized_misfit(
    stored: Mapping[str, Shape],
    packed: Collection[str],
    wanted: Mapping[str, Shape],
    ignored: Iterable[str] = (),
) -> Misfit:
    """Compare what a quantizer has stored with a model that is not quantized.

    Args:
        stored: Shape of each stored tensor, by name.
        packed: Which of them are no floating-point numbers of 16 bits or more.
        wanted: Shape of each weight of the model.
        ignored: Patterns of names that the model's class leaves out.

    Returns:
        Weights of which nothing is stored, tensors that stand for no weight, and weights that are
        stored as they were, in another shape.

    Example:
        >>> stored = {"a.qweight": (1, 2), "a.scales": (2,), "norm.weight": (2,), "b.qweight": (1,)}
        >>> wanted = {"a.weight": (2, 2), "c.weight": (2, 2), "norm.weight": (2,)}
        >>> quantized_misfit(stored, {"a.qweight", "b.qweight"}, wanted)
        Misfit(missing=('c.weight',), unexpected=('b.qweight',), reshaped=())
    """
    plain = stored.keys() & wanted.keys() - set(packed)
    held = set(plain) | {
        weight
        for name in packed
        for weight in _weights_before(name)
        if weight in wanted and weight not in plain
    }
    patterns = list(ignored)
    unexpected = (
        name
        for name in stored
        if name not in wanted
        and not any(weight in wanted for weight in _weights_before(name))
        and not any(re.search(pattern, name) for pattern in patterns)
    )
    return Misfit(
        tuple(sorted(wanted.keys() - held)),
        tuple(sorted(unexpected)),
        tuple((n, stored[n], wanted[n]) for n in sorted(plain) if stored[n] != wanted[n]),
    )


def _weights_before(name: str) -> Iterable[str]:
    """Return the weights that a tensor may stand for: its own, its layer's, or one it begins with.

    Example:
        >>> list(_weights_before("a.b.weight.absmax"))
        ['a.b.weight.absmax', 'a.b.weight', 'a.b.weight.weight', 'a.b', 'a.b.weight']
        >>> list(_weights_before("a.up_proj_blocks"))
        ['a.up_proj_blocks', 'a', 'a.weight', 'a.up', 'a.up_proj']
    """
    yield name
    owner = name
    for _ in range(2):
        owner, dot, _ = owner.rpartition(".")
        if dot:
            yield from (owner, f"{owner}.weight")
    start = name.rfind(".") + 1
    yield from (name[:place] for place in range(start, len(name)) if name[place] == "_")
