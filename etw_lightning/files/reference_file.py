"""Files of tensors that are whole or not there: written under another name, synced, renamed.

The layout is that of safetensors, which any of its readers opens: eight bytes with the length of
the header, the header (JSON: type, shape and place of each tensor, and a mapping of texts), the
numbers. Written here, tensor by tensor, because a table of many megabytes need not be copied for
it, and because the header then holds a checksum of the numbers.
"""

from __future__ import annotations

import json
import os
import uuid
import zlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

__all__ = ["DamagedError", "read_tensors", "write_tensors"]

_TYPES = {
    torch.float64: "F64",
    torch.int64: "I64",
    torch.float32: "F32",
    torch.int32: "I32",
}
#: Bytes of the numbers that are checked at a time.
_BLOCK = 1 << 20


class DamagedError(ValueError):
    """A file is not as it was written, or was written by something else."""


def write_tensors(file: Path, tensors: Mapping[str, Tensor], said: Mapping[str, str]) -> None:
    """Write a file, or leave what is there as it was.

    Args:
        file: Where; its folder exists.
        tensors: Float64, float32, int64 or int32, on the CPU.
        said: Texts for the header.

    Raises:
        OSError: If there is no room or no right to write.
    """
    # Wide types first: then every tensor begins at a multiple of its own width.
    names = sorted(tensors, key=lambda name: -tensors[name].element_size())
    # Views, not copies.
    flat = {name: tensors[name].contiguous().reshape(-1) for name in names}
    parts = {name: values.view(torch.uint8).numpy().data for name, values in flat.items()}
    layout: dict[str, object] = {}
    start = checksum = 0
    for name, part in parts.items():
        layout[name] = {
            "dtype": _TYPES[tensors[name].dtype],
            "shape": list(tensors[name].shape),
            "data_offsets": [start, start + len(part)],
        }
        start += len(part)
        checksum = zlib.crc32(part, checksum)
    texts = {**said, "crc32": f"{checksum:08x}"}
    header = json.dumps({"__metadata__": texts, **layout}).encode()
    header += b" " * (-len(header) % 8)
    unfinished = file.with_name(f".{file.name}.{uuid.uuid4().hex}")
    try:
        with unfinished.open("wb") as stream:
            stream.write(len(header).to_bytes(8, "little") + header)
            for part in parts.values():
                stream.write(part)
            stream.flush()
            os.fsync(stream.fileno())
        unfinished.replace(file)
    finally:
        unfinished.unlink(missing_ok=True)


def read_tensors(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return a file's tensors, mapped into memory as they are read, and its texts.

    Raises:
        FileNotFoundError: If there is none.
        DamagedError: If it is not as ``write_tensors`` wrote it.
    """
    from safetensors import SafetensorError, safe_open

    if not file.exists():
        raise FileNotFoundError(file)
    try:
        with safe_open(file, framework="pt") as content:
            said = content.metadata() or {}
            tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise DamagedError(str(error)) from error
    if said.get("crc32") != f"{_checksum(file):08x}":
        raise DamagedError("the numbers do not give their checksum")
    return tensors, said


def _checksum(file: Path) -> int:
    """Return the checksum of what follows the header."""
    checksum = 0
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        stream.seek(8 + length)
        while block := stream.read(_BLOCK):
            checksum = zlib.crc32(block, checksum)
    return checksum
