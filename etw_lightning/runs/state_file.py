"""The trainer's state as one file, written and read without a second copy of it in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

__all__ = ["StateFile", "UnwrittenError"]


class UnwrittenError(RuntimeError):
    """A file could not be written to its end."""


class StateFile(TorchCheckpointIO):
    """Reads and writes the trainer's state without a second copy of it in memory.

    Reading takes weights and plain values only.

    Args:
        is_mapped: Map the file into memory instead of reading it; for weights that go on to a
            device.
    """

    def __init__(self, *, is_mapped: bool = False) -> None:
        self.is_mapped = is_mapped

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        """Write a checkpoint straight to its file; whoever asks for it renames it."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.save(checkpoint, path)
        except RuntimeError as error:
            # What the library's writer makes of a full disk.
            raise UnwrittenError(" ".join(str(error).split())[:120]) from error

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = True
    ) -> dict[str, Any]:
        """Read a checkpoint."""
        content: dict[str, Any] = torch.load(
            path, map_location="cpu", weights_only=True, mmap=self.is_mapped
        )
        return content
