"""Whether a folder of quantized weights holds those of a model, as far as its headers tell.

A quantizer puts several tensors in the place of one: integers under the weight's own name
(bitsandbytes, FP8, BitNet) or others (GPTQ and AWQ ``qweight``, compressed-tensors
``weight_packed``, MXFP4 ``_blocks``), and scales beside them. What it leaves as it was keeps its
name and its shape. What was packed is told by the shape of the packed tensor and the number of
bits, or by a small tensor beside it; of methods that are not known here it is not.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from etw_lightning.files.misfit import Misfit, Shape

__all__ = ["Unpacked", "quantized_misfit", "unpacked_shapes"]

#: Bits of what safetensors calls the numbers of a tensor, of those that weights are packed in.
_BITS = {"U8": 8, "I8": 8, "F16": 16, "BF16": 16, "I32": 32, "F32": 32}
#: Methods that put numbers of 8 bits in the place of a weight, one for one.
_ONE_FOR_ONE = ("bitsandbytes", "compressed-tensors", "fbgemm_fp8", "fp8", "quark")
#: Endings of tensors that some quantizers leave out.
_OPTIONAL = (".qzeros", ".g_idx")


def quantized_misfit(
    stored: Mapping[str, Shape],
    packed: Collection[str],
    wanted: Mapping[str, Shape],
    ignored: Iterable[str] = (),
    unpacked: Mapping[str, Shape] | None = None,
) -> Misfit:
    """Compare what a quantizer has stored with a model that is not quantized.

    Args:
        stored: Shape of each stored tensor, by name.
        packed: Which of them are no floating-point numbers of 16 bits or more.
        wanted: Shape of each weight of the model.
        ignored: Patterns of names that the model's class leaves out.
        unpacked: Shape of packed weights as it was before, as far as it is known.

    Returns:
        Weights of which nothing is stored, tensors that stand for no weight, and weights that are
        stored as they were, or were packed, in another shape.

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
    shapes = {name: stored[name] for name in plain} | dict(unpacked or {})
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
        tuple(
            (name, shapes[name], wanted[name])
            for name in sorted(shapes.keys() & wanted.keys())
            if shapes[name] != wanted[name]
        ),
    )


class Unpacked(NamedTuple):
    """What packed tensors stand for.

    Args:
        shapes: Shape of each weight before it was packed, by the weight's name.
        missing: Tensors without which a packed one can't be read.
        reshaped: Tensors whose own shape can't be that of such a weight: name, shape as stored,
            shape that belongs to it.
    """

    shapes: dict[str, Shape]
    missing: list[str]
    reshaped: list[tuple[str, Shape, Shape]]


def unpacked_shapes(
    stored: Mapping[str, Shape],
    dtypes: Mapping[str, str],
    told: Mapping[str, Mapping[str, Any]],
    settings: Mapping[str, Any],
) -> Unpacked:
    """Return what packed tensors stand for, as far as their method is known here.

    Args:
        stored: Shape of each stored tensor, by name.
        dtypes: What safetensors calls its numbers.
        told: What small tensors tell of packed ones, by their names.
        settings: ``quantization_config`` of the model's configuration.

    Example:
        >>> stored = {"a.qweight": (4, 16), "a.scales": (1, 8)}
        >>> found = unpacked_shapes(stored, dict.fromkeys(stored, "I32"), {},
        ...                         {"quant_method": "gptq", "bits": 4, "group_size": 128})
        >>> found.shapes, found.reshaped
        ({'a.weight': (16, 32)}, [('a.scales', (1, 8), (1, 16))])
    """
    found = Unpacked({}, [], [])
    for name in sorted(stored):
        for weight, whole, wanted in _unpacked(name, stored[name], dtypes, told, settings):
            found.shapes[weight] = whole
            for other, meant in wanted.items():
                if other not in stored and not other.endswith(_OPTIONAL):
                    found.missing.append(other)
                elif other in stored and stored[other] != meant:
                    found.reshaped.append((other, stored[other], meant))
    return found


#: A weight, its shape, and the shapes of the tensors that stand for it.
_Stands = tuple[str, Shape, dict[str, Shape]]


def _unpacked(
    name: str,
    shape: Shape,
    dtypes: Mapping[str, str],
    told: Mapping[str, Mapping[str, Any]],
    settings: Mapping[str, Any],
) -> Iterator[_Stands]:
    """Yield what one tensor tells of one weight; nothing if it does not."""
    method = getattr(settings.get("quant_method"), "value", settings.get("quant_method"))
    owner, _, last = name.rpartition(".")
    dtype = dtypes[name]
    if name in told and ".weight.quant_state." in name:
        yield _in_blocks(name.partition(".quant_state.")[0], dtypes, told[name])
    elif name in told:
        # The number of bits is each layer's own.
        yield f"{owner}.weight", told[name]["shape"], {}
    elif last == "qweight" and dtype == "I32" and len(shape) == 2 and method in ("gptq", "awq"):
        yield from _in_integers(owner, shape, settings, by_rows=method == "gptq")
    elif last == "weight" and method in _ONE_FOR_ONE and (dtype == "I8" or dtype[:2] == "F8"):
        blocks = settings.get("weight_block_size") if len(shape) == 2 else None
        scales = {f"{owner}.SCB": shape[:1]} if method == "bitsandbytes" else {}
        if blocks:
            sizes = zip(shape, blocks, strict=True)
            scales[f"{name}_scale_inv"] = tuple(-(-size // block) for size, block in sizes)
        yield name, shape, scales
    elif name.endswith("_blocks") and method == "mxfp4" and len(shape) >= 3:
        *leading, rows, groups, size = shape
        weight = name.removesuffix("_blocks")
        yield weight, (*leading, groups * size * 2, rows), {f"{weight}_scales": shape[:-1]}
    elif last == "weight" and method == "bitnet" and dtype == "U8" and shape:
        yield name, (4 * shape[0], *shape[1:]), {}


def _in_blocks(weight: str, dtypes: Mapping[str, str], told: Mapping[str, Any]) -> _Stands:
    """Return what stands for a weight in 4 bits of bitsandbytes."""
    whole: Shape = told["shape"]
    num = math.prod(whole)
    size = _BITS.get(dtypes.get(weight, ""), 8) // 4
    beside: dict[str, Shape] = {weight: (-(-num // size), 1)}
    if told.get("blocksize"):
        beside[f"{weight}.absmax"] = (-(-num // told["blocksize"]),)
    return weight, whole, beside


def _in_integers(
    owner: str, shape: Shape, settings: Mapping[str, Any], *, by_rows: bool
) -> Iterator[_Stands]:
    """Yield what stands for a weight in integers of 32 bits; nothing of a layout of its own."""
    bits = settings.get("bits") or settings.get("w_bit")
    layout = settings.get("checkpoint_format" if by_rows else "version") or ""
    plain = ("", "gptq", "gptq_v2") if by_rows else ("", "gemm")
    if not bits or settings.get("dynamic") or str(layout).lower() not in plain:
        return
    num_in, num_out = shape
    num_in, num_out = (num_in * 32 // bits, num_out) if by_rows else (num_in, num_out * 32 // bits)
    size = settings.get("group_size") or settings.get("q_group_size") or -1
    groups = -(-num_in // size) if size > 0 else 1
    beside = {
        f"{owner}.scales": (groups, num_out),
        f"{owner}.qzeros": (groups, num_out * bits // 32),
        f"{owner}.g_idx": (num_in,),
    }
    yield f"{owner}.weight", (num_out, num_in), beside


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
