"""Which forget and retain rows meet in a step: a pure function of (seed, epoch, step)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

__all__ = ["Anchor", "Pairing", "StepRows"]

#: Whose length an epoch has; the other stream goes round as often as it must.
Anchor = Literal["forget", "retain"]

#: Index that stands for "no row": fills the last micro-batches of an epoch.
_NO_ROW = -1


@dataclass(frozen=True)
class StepRows:
    """Row indices of one micro-batch and of the effective batch it is a part of.

    Args:
        forget: Forget rows of the micro-batch; -1 stands for no row.
        retain: Retain rows of the micro-batch; -1 stands for no row.
        all_forget: Forget rows of the whole effective batch.
        all_retain: Retain rows of the whole effective batch.
    """

    forget: tuple[int, ...]
    retain: tuple[int, ...]
    all_forget: tuple[int, ...]
    all_retain: tuple[int, ...]


@dataclass(frozen=True)
class Pairing:
    """The order of two streams over epochs, optimiser steps, micro-batches and processes.

    The anchor stream is shuffled anew each epoch. The other one runs on over the borders of
    epochs and is shuffled anew each time it has been seen whole, so that all its rows are seen
    equally often. An optimiser step takes the next ``batch_size * accumulate * world_size`` rows
    of each stream; how these are dealt to micro-batches and processes does not change which rows
    they are. Rows a process sees are seen by no other.

    Args:
        num_forget: Rows of the forget stream; 0 if there is none.
        num_retain: Rows of the retain stream; 0 if there is none.
        batch_size: Rows of each stream in one micro-batch of one process.
        accumulate: Micro-batches in an optimiser step.
        world_size: Processes.
        anchor: Whose length an epoch has.
        seed: Of the order; the global random state is not used.
        whole_steps: Fill the last optimiser step of an epoch with micro-batches without rows.

    Example:
        >>> one = Pairing(num_forget=8, num_retain=20, batch_size=4)
        >>> two = Pairing(num_forget=8, num_retain=20, batch_size=2, accumulate=2)
        >>> one.step_rows(3, 0).all_retain == two.step_rows(3, 1).all_retain
        True
    """

    num_forget: int
    num_retain: int
    batch_size: int
    accumulate: int = 1
    world_size: int = 1
    anchor: Anchor = "forget"
    seed: int = 0
    whole_steps: bool = False

    @property
    def num_anchor(self) -> int:
        """Rows of the anchor stream, those of the only stream if there is but one."""
        if not self.num_forget or not self.num_retain:
            return self.num_forget or self.num_retain
        return self.num_forget if self.anchor == "forget" else self.num_retain

    @property
    def window_size(self) -> int:
        """Rows of each stream in an optimiser step."""
        return self.batch_size * self.accumulate * self.world_size

    @property
    def num_batches(self) -> int:
        """Micro-batches of one process in an epoch."""
        full, rest = divmod(self.num_anchor, self.window_size)
        if self.whole_steps:
            return (full + bool(rest)) * self.accumulate
        return full * self.accumulate + -(-rest // (self.batch_size * self.world_size))

    def step_rows(self, epoch: int, batch: int, rank: int = 0) -> StepRows:
        """Return the rows of micro-batch ``batch`` of process ``rank`` in epoch ``epoch``."""
        window, micro = divmod(batch, self.accumulate)
        start = window * self.window_size
        size = min(self.window_size, self.num_anchor - start)
        forget = self._stream_rows("forget", epoch, start, size)
        retain = self._stream_rows("retain", epoch, start, size)
        slot = (micro * self.world_size + rank) * self.batch_size
        return StepRows(
            self._slot(forget, slot), self._slot(retain, slot), tuple(forget), tuple(retain)
        )

    def _slot(self, rows: list[int], slot: int) -> tuple[int, ...]:
        """Return the rows of one micro-batch, filled up so that none is without rows."""
        if not rows:
            return ()
        return tuple(rows[slot : slot + self.batch_size]) or (_NO_ROW,)

    def _stream_rows(self, stream: Anchor, epoch: int, start: int, size: int) -> list[int]:
        """Return ``size`` rows of a stream from place ``start`` of an epoch."""
        length = self.num_forget if stream == "forget" else self.num_retain
        if not length:
            return []
        place = epoch * self.num_anchor + start
        rows = []
        for position in range(place, place + size):
            turn, offset = divmod(position, length)
            rows.append(int(_order(self.seed, stream, turn, length)[offset]))
        return rows


@lru_cache(maxsize=8)
def _order(seed: int, stream: Anchor, turn: int, length: int) -> np.ndarray:
    """Return the order of a stream's rows the ``turn``-th time it is seen whole."""
    key = [seed, int(stream == "retain"), turn]
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(key))).permutation(length)
