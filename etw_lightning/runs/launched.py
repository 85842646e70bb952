"""Processes of ``torchrun``: how many devices they are, and one name for their run."""

from __future__ import annotations

import hashlib
import os
from typing import Any

from etw_lightning.schema import InputError

__all__ = ["agreed_name", "is_first_to_say", "is_lost_peer", "is_torchrun", "launched_settings"]

#: Key under which the processes of a run find its folder's name in the launcher's store.
_NAME_KEY = "etw_lightning/run_name"
#: The same of what a process has been the first to say.
_SAID_KEY = "etw_lightning/said/"
#: What gloo and NCCL say of a process that is gone, where the error's class does not tell.
_LOST_PEER = ("gloo/transport", "Connection closed by peer", "Connection reset by peer")


def is_torchrun() -> bool:
    """Whether ``torchrun`` has started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def launched_settings(devices: Any, num_nodes: int) -> dict[str, int]:
    """Return the trainer's devices and nodes as ``torchrun`` has started processes.

    Lightning takes them from the settings, on a CPU one device, and fails late where they differ.

    Args:
        devices: ``trainer.devices`` as configured; ``auto`` and -1 take what there is.
        num_nodes: ``trainer.num_nodes`` as configured; 1 takes what there is.

    Returns:
        ``devices`` and ``num_nodes``; empty if ``torchrun`` has not started this process.

    Raises:
        InputError: If other numbers are asked for.
    """
    if not is_torchrun():
        return {}
    per_node = int(os.environ.get("LOCAL_WORLD_SIZE") or 1)
    nodes = int(os.environ.get("WORLD_SIZE") or per_node) // per_node
    asked = len(devices) if isinstance(devices, list) else devices
    if str(asked) not in ("auto", "-1", str(per_node)):
        raise InputError(
            f"trainer.devices is {devices!r}, but torchrun has started {per_node} processes on "
            "this node; leave it at auto, as --config strategy/ddp or strategy/fsdp has "
            "it, or give torchrun --nproc_per_node that number."
        )
    if num_nodes not in (1, nodes):
        raise InputError(
            f"trainer.num_nodes is {num_nodes}, but torchrun has started processes on {nodes} "
            "nodes; leave it out, or give torchrun --nnodes that number."
        )
    return {"devices": per_node, "num_nodes": nodes}


def agreed_name(name: str) -> str | None:
    """Return the name that all processes of this run give its folder: the first that one offers.

    Args:
        name: The one that this process would give.

    Returns:
        None where the processes have no store in common, as under ``srun``.
    """
    return _first_of(_NAME_KEY, name)


def is_first_to_say(line: str) -> bool:
    """Tell whether no other process of this run has said a line; true where that can't be known.

    What all processes look at before they meet, each refuses with the same line.
    """
    mine = str(os.getpid())
    key = _SAID_KEY + hashlib.sha256(line.encode()).hexdigest()
    # Processes that are started again after a failure say it again.
    key += os.environ.get("TORCHELASTIC_RESTART_COUNT", "")
    return _first_of(key, mine) in (None, mine)


def _first_of(key: str, value: str) -> str | None:
    """Return the value that a process of this run was the first to give; None without a store."""
    if not is_torchrun() or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    from torch.distributed import TCPStore

    store = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
    return store.compare_set(key, "", value).decode()


def is_lost_peer(error: BaseException) -> bool:
    """Whether an error says that another process of the run is gone."""
    from torch.distributed import DistError

    if isinstance(error, DistError):
        return True
    return isinstance(error, RuntimeError) and any(said in str(error) for said in _LOST_PEER)
