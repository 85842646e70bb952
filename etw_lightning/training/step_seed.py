"""Random numbers of a training step as a function of where it stands, not of what came before."""

from __future__ import annotations

import random

import numpy as np
import torch

__all__ = ["seed_batch"]


def seed_batch(seed: int, epoch: int, batch: int, rank: int) -> None:
    """Seed the global generators of Python, NumPy and PyTorch for one micro-batch.

    Args:
        seed: The run's, >= 0.
        epoch: From 0.
        batch: Micro-batch of the epoch, from 0.
        rank: Process, so that each draws its own.

    Example:
        >>> seed_batch(0, 1, 2, 0)
        >>> first = torch.rand(1)
        >>> seed_batch(0, 1, 2, 0)
        >>> torch.rand(1) == first
        tensor([True])
    """
    words = np.random.SeedSequence([seed, epoch, batch, rank]).generate_state(3)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]))
    if torch.accelerator.is_available():
        torch.manual_seed(int(words[2]))
    else:
        # The other also notes for devices that are not there who asked for it, which takes long.
        torch.default_generator.manual_seed(int(words[2]))
