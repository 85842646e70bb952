"""Quantisation: weights are rounded to 4 or 8 bits and read back."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor

from etw_lightning.attacks.interface import Attack, Robustness, Subject
from etw_lightning.attacks.matrices import all_matrices, decoder_matrices
from etw_lightning.schema import InputError

if TYPE_CHECKING:
    from etw_lightning.attacks.attacked_run import AttackedRun

__all__ = ["Quantise", "Scheme"]

Scheme = Literal["nf4", "int8", "gguf_q4_0", "gguf_q8_0"]
#: Values that share a scale in NF4, as the library loads models.
_NF4_BLOCK = 64


@dataclass(frozen=True)
class Quantise(Attack):
    """Round weights as people do who load or ship a model in 4 or 8 bits.

    What was forgotten by small changes of weights may lie below the rounding, which then takes the
    changes back. Weights are rounded and read back; everything else computes as in the run, so that
    nothing but the rounding differs.

    * ``nf4``, ``int8``: by bitsandbytes, the matrices of the decoder. NF4 in blocks of 64 with a
      scale each; int8 with a scale for each output. On GPUs its int8 layers round activations too,
      which is not done here.
    * ``gguf_q4_0``, ``gguf_q8_0``: by the gguf package, every matrix, embeddings and output head
      too, in blocks of 32; one whose rows are no multiple of 32 becomes float16. llama.cpp's tool
      keeps the output head of a Q4_0 file in Q6_K, which is finer.

    Source: Zhang et al. 2024, arXiv:2410.16454 (4 bits bring back what was unlearned); Dettmers et
        al. 2023, arXiv:2305.14314 (NF4); Dettmers et al. 2022, arXiv:2208.07339 (int8).
    Differs from it: int8 rounds no activations.

    Args:
        scheme: ``nf4``, ``int8``, ``gguf_q4_0`` or ``gguf_q8_0``.

    Raises:
        InputError: If there is no such scheme.
    """

    scheme: Scheme = "nf4"

    def __post_init__(self) -> None:
        if self.scheme not in get_args(Scheme):
            raise InputError(
                f"attack.scheme must be {', '.join(get_args(Scheme))}; got {self.scheme!r}."
            )

    @property
    def robustness(self) -> Robustness | None:
        """Q."""
        return "quantisation"

    def check(self, run: AttackedRun) -> None:
        """Refuse a scheme whose package is not installed."""
        package = "gguf" if self.scheme.startswith("gguf") else "bitsandbytes"
        if find_spec(package) is None:
            raise InputError(
                f"attack.scheme {self.scheme} needs {package}, which is not installed: pip install "
                "'etw-lightning[attack]'."
            )

    @torch.no_grad()
    def change_model(self, subject: Subject) -> Any:
        """Return the model with its weights rounded in place."""
        is_gguf = self.scheme.startswith("gguf")
        chosen = all_matrices(subject.lm) if is_gguf else decoder_matrices(subject.lm)
        through = _THROUGH[self.scheme]
        for weight in chosen.values():
            rows = weight.reshape(-1, weight.shape[-1])
            weight.copy_(through(rows).to(weight.device, weight.dtype).view_as(weight))
        return subject.lm


def _bitsandbytes() -> Any:
    """Import the library's functions; that it has no fast kernel for CPUs is no news."""
    loud = logging.getLogger("bitsandbytes")
    level = loud.level
    loud.setLevel(logging.ERROR)
    try:
        from bitsandbytes import functional
    finally:
        loud.setLevel(level)
    return functional


def _nf4(rows: Tensor) -> Tensor:
    functional = _bitsandbytes()
    # In one row: the library's CPU code reads narrower ones than a block wrongly.
    codes, state = functional.quantize_4bit(
        rows.reshape(1, -1), blocksize=_NF4_BLOCK, quant_type="nf4"
    )
    found: Tensor = functional.dequantize_4bit(codes, state)
    return found


def _int8(rows: Tensor) -> Tensor:
    functional = _bitsandbytes()
    codes, scales, _ = functional.int8_vectorwise_quant(rows.half())
    found: Tensor = functional.int8_vectorwise_dequant(codes, scales)
    return found


def _gguf(name: str) -> Callable[[Tensor], Tensor]:
    def through(rows: Tensor) -> Tensor:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants

        kind = GGMLQuantizationType[name]
        if rows.shape[-1] % GGML_QUANT_SIZES[kind][0]:
            return rows.half()
        values = rows.float().cpu().numpy()
        return torch.from_numpy(quants.dequantize(quants.quantize(values, kind), kind))

    return through


_THROUGH: Mapping[Scheme, Callable[[Tensor], Tensor]] = {
    "nf4": _nf4,
    "int8": _int8,
    "gguf_q4_0": _gguf("Q4_0"),
    "gguf_q8_0": _gguf("Q8_0"),
}
