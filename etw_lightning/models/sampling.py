"""Sampled continuation of prompts: each row draws from numbers of its own.

What is drawn for a row hangs on its key, the seed and what the model says, not on the rows that
share its batch nor on the device: the uniform numbers of a row are made from its key before
anything is continued, and each token is the one at which the summed probabilities reach the row's
next number.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from etw_lightning.schema import InputError

__all__ = ["Draws", "Sampling", "drawn_tokens", "uniform_numbers"]


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    Args:
        temperature: What logits are divided by, above 0; 1 samples the model as it is.
        top_p: Likeliest tokens that are kept, by the mass they have together; above 0, 1 keeps all.
        seed: Other samples for every seed, >= 0.

    Raises:
        InputError: If a value is out of range.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.temperature < float("inf"):
            raise InputError(
                f"temperature must be above 0, got {self.temperature}; greedy answers are what "
                "evaluate scores."
            )
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p must be above 0 and at most 1, got {self.top_p}.")
        if self.seed < 0:
            raise InputError(f"seed must be 0 or more, got {self.seed}.")


def uniform_numbers(key: str, count: int, seed: int) -> Tensor:
    """Return numbers above 0 and at most 1, the same for a key and a seed wherever they are made.

    Args:
        key: Names a row and which of its samples.
        count: How many.
        seed: >= 0.

    Returns:
        ``(count,)``, float64; the first of them are the same for any ``count``.
    """
    digest = hashlib.sha256(f"{seed}\n{key}".encode()).digest()
    generator = np.random.Generator(np.random.PCG64(int.from_bytes(digest, "big")))
    return torch.from_numpy(1.0 - generator.random(count))


def drawn_tokens(logits: Tensor, numbers: Tensor, temperature: float, top_p: float) -> Tensor:
    """Return the token that each row's number falls on, ``(B,)``.

    Formula: the first token v, in the order of the vocabulary, with p(0) + ... + p(v) >= u P, P the
    mass of the kept tokens. Kept are the likeliest tokens up to the first at which their mass is
    ``top_p`` or more.

    Args:
        logits: ``(B, V)``.
        numbers: u of each row, above 0, at most 1, float64, ``(B,)``.
        temperature: What logits are divided by.
        top_p: Above 0; 1 keeps all.

    Raises:
        InputError: If logits are no numbers.

    Example:
        >>> logits = torch.tensor([[0.5, 0.3, 0.2]] * 3).log()
        >>> drawn_tokens(logits, torch.tensor([0.4, 0.7, 0.9]).double(), 1.0, 1.0).tolist()
        [0, 1, 2]
        >>> drawn_tokens(logits, torch.tensor([0.4, 0.7, 0.9]).double(), 1.0, 0.6).tolist()
        [0, 1, 1]
    """
    probabilities = torch.softmax(logits.double() / temperature, dim=-1)
    if top_p < 1:
        ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)
        # A token is left out where those before it have the mass already.
        ordered[ordered.cumsum(-1) - ordered >= top_p] = 0
        probabilities = torch.zeros_like(probabilities).scatter(-1, order, ordered)
    summed = probabilities.cumsum(-1)
    mass = summed[:, -1]
    if not bool(torch.isfinite(mass).all()):
        raise InputError(
            "A sample can't be drawn: what the model says of the next token is not a number; the "
            "model is broken (too high a learning rate or lambda) or its precision too low."
        )
    # At most the whole mass, and above 0: a token without probability is never drawn.
    wanted = numbers.to(summed) * mass
    return torch.searchsorted(summed, wanted[:, None])[:, 0]


class Draws:
    """Chooses the next token of each row of a batch.

    Args:
        keys: Key of each row; rows with one key get one text.
        num_tokens: Tokens that will be asked for, at most.
        sampling: Temperature, mass and seed.
    """

    def __init__(self, keys: Sequence[str], num_tokens: int, sampling: Sampling) -> None:
        self.sampling = sampling
        self.numbers = torch.stack(
            [uniform_numbers(key, num_tokens, sampling.seed) for key in keys]
        )

    def __call__(self, logits: Tensor, rows: Sequence[int], step: int) -> Tensor:
        """Return the next token of some rows, ``(R,)``.

        Args:
            logits: What is said of it, ``(R, V)``.
            rows: Number of each row in the batch.
            step: How many tokens each has already.
        """
        numbers = self.numbers[list(rows), step].to(logits.device)
        return drawn_tokens(logits, numbers, self.sampling.temperature, self.sampling.top_p)
