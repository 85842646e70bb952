"""A run in child processes that a fault ends at a chosen place, and what it leaves behind."""

import contextlib
import importlib
import io
import json
import os
import resource
import signal
import socket
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import NamedTuple

from warm import prepare_fork

#: Seconds that a test waits for what must come, on a machine however busy.
PATIENCE = 300.0
#: Seconds that a process may go on after another one has failed.
LONELY = 30.0
#: What of ``results.json`` must not depend on whether a run was broken off.
COMPARED = ("metrics", "history", "table", "steps", "config_hash", "seed")


class Fault(NamedTuple):
    """A signal that a process sends itself when it calls something for the ``count``-th time.

    ``place`` is ``module:Class.function`` or ``module:function``. In place of a signal's number
    ``"full"`` lets no file grow beyond a few bytes from then on, as a full disk does.
    """

    place: str
    count: int
    number: int | str = signal.SIGKILL

    def inject(self):
        """Wrap what is called."""
        module, _, path = self.place.partition(":")
        owner = importlib.import_module(module)
        *parents, name = path.split(".")
        for parent in parents:
            owner = getattr(owner, parent)
        original, calls = getattr(owner, name), 0

        def wrapped(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls == self.count:
                self.strike()
            return original(*args, **kwargs)

        setattr(owner, name, wrapped)

    def strike(self):
        """Let it happen in this process."""
        if self.number == "full":
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
        else:
            os.kill(os.getpid(), self.number)


def run_forked(words, fault=None, log=None):
    """Run the command in a forked process; return its exit status, -9 after SIGKILL."""
    return run_processes(words, 1, fault, log)[0]


def run_processes(words, world, fault=None, log=None):
    """Run the command in forked processes, of which the last has the fault; return their statuses.

    Several find each other as torchrun's do.
    """
    return fork(world, prepare(words, world, fault, log))


def prepare(words, world, fault=None, log=None):
    """Return what runs the command in a forked process, given its rank."""
    prepare_fork(words[0])
    port = free_port()

    def work(rank):
        out, status = io.StringIO(), 1
        handle_as_usual()
        try:
            if world > 1:
                become(rank, world, port)
            if fault is not None and rank == world - 1:
                fault.inject()
            said = contextlib.redirect_stdout(out), contextlib.redirect_stderr(out)
            with warnings.catch_warnings(), said[0], said[1]:
                # Said where the program says it; the test's own process would keep them.
                warnings.showwarning = show_warning
                # As Python does where a program is run by itself.
                warnings.filterwarnings("ignore", category=DeprecationWarning)
                # What Lightning says on a machine with Slurm.
                warnings.filterwarnings("ignore", message="The `srun` command is available")
                status = run_here(words)
        finally:
            if log is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
                Path(log if rank == 0 else f"{log}{rank}").write_text(out.getvalue(), "utf-8")
        return status

    return work


def handle_as_usual():
    """Answer signals as a program does that was just started, whatever was run here before."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_DFL)


def fork(world, work):
    """Call ``work(rank)`` in forked processes; return the statuses it returned, 1 if it raised."""
    return wait_for(start(world, work))


def start(world, work):
    """Call ``work(rank)`` in forked processes; return their ids, for ``wait_for``."""
    children = []
    for rank in range(world):
        child = os.fork()
        if child:
            children.append(child)
            continue
        status = 1
        try:
            status = work(rank)
        finally:
            # Nothing above the fork is to go on with what went wrong, so it is told here.
            if sys.exc_info()[0]:
                traceback.print_exc()
            sys.stderr.flush()
            os._exit(status)
    return children


class ForkedProgram:
    """In place of ``subprocess.Popen``, for a program that is ours: nothing is imported anew."""

    def __init__(self, words, *, stdout, **_):
        assert words[1:3] == ["-m", "etw_lightning"]
        self.returncode = None
        (self.pid,) = start(1, prepare(words[3:], 1, log=stdout.name))

    def poll(self):
        """Return the exit status of a process that has ended; else None."""
        ended, status = os.waitpid(self.pid, os.WNOHANG)
        if ended:
            self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode


def run_until(words, is_time, number, log):
    """Run the command in a forked process and send it a signal once ``is_time(process)``.

    Returns:
        Its exit status.
    """
    (child,) = start(1, prepare(words, 1, log=log))
    ends = time.monotonic() + PATIENCE
    while not is_time(child):
        assert os.waitpid(child, os.WNOHANG)[0] == 0, "it has ended, or takes too long"
        if time.monotonic() > ends:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.01)
    os.kill(child, number)
    return wait_for([child])[0]


def show_warning(message, *_):
    sys.stderr.write(f"warning: {' '.join(str(message).split())}\n")


def wait_for(children):
    """Return the exit statuses; as torchrun does, end those that go on without one that failed."""
    statuses = {}
    while len(statuses) < len(children):
        child, status = os.waitpid(-1, os.WNOHANG)
        if child in children:
            statuses[child] = os.waitstatus_to_exitcode(status)
            ends = time.monotonic() + LONELY
        elif any(statuses.values()) and time.monotonic() > ends:
            for left in set(children) - set(statuses):
                os.kill(left, signal.SIGKILL)
        else:
            time.sleep(0.01)
    return [statuses[child] for child in children]


def run_here(words):
    """Run the command in this process; return its exit status, 1 for an error it does not name."""
    from etw_lightning.commands.entry import main

    sys.argv = ["etw_lightning", *map(str, words)]
    try:
        return main()
    except SystemExit as end:
        return end.code or 0
    except BaseException:
        traceback.print_exc()
        raise


def torchrun_variables(rank, world, port):
    """Return what torchrun tells a process of its place."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "GROUP_RANK": "0",
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "test",
    }


def become(rank, world, port):
    """Make this process, which was forked, the one of that rank; torchrun's come to be so.

    Lightning settles the rank when it is imported, which was before the fork: variables alone would
    leave several that take themselves for the first, each with the lock of the run's folder.
    """
    os.environ |= torchrun_variables(rank, world, port)
    importlib.import_module("lightning.pytorch.utilities").rank_zero_only.rank = rank


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def left_behind(folder):
    """Return the saved weights, bit for bit, and what must be equal of the results."""
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    weights = (folder / "model" / "model.safetensors").read_bytes()
    return weights, {key: results[key] for key in COMPARED}


def checkpoint_names(folder):
    """Return the names of a run's checkpoints, in order."""
    place = folder / "checkpoints"
    return sorted(one.name for one in place.iterdir()) if place.is_dir() else []
