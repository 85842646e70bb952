"""A run in a child process that a fault ends at a chosen place, and what it leaves behind."""

import contextlib
import importlib
import io
import json
import os
import signal
import sys
import traceback
import warnings
from pathlib import Path
from typing import NamedTuple

#: What of ``results.json`` must not depend on whether a run was broken off.
COMPARED = ("metrics", "history", "table", "steps", "config_hash", "seed")


class Fault(NamedTuple):
    """A signal that a process sends itself when it calls something for the ``count``-th time."""

    place: str
    count: int
    number: int = signal.SIGKILL

    def inject(self):
        """Wrap what is called; ``place`` is ``module:Class.function`` or ``module:function``."""
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
                os.kill(os.getpid(), self.number)
            return original(*args, **kwargs)

        setattr(owner, name, wrapped)


def run_forked(words, fault=None, log=None):
    """Run the command in a forked process; return its exit status, -9 after SIGKILL."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = 1
    out = io.StringIO()
    try:
        from etw_lightning.cli import main

        if fault is not None:
            fault.inject()
        sys.argv = ["etw_lightning", *map(str, words)]
        said = contextlib.redirect_stdout(out), contextlib.redirect_stderr(out)
        with warnings.catch_warnings(), said[0], said[1]:
            try:
                status = main()
            except SystemExit as end:
                status = end.code or 0
            except BaseException:
                traceback.print_exc()
                raise
    finally:
        if log is not None:
            Path(log).write_text(out.getvalue(), encoding="utf-8")
        os._exit(status)


def left_behind(folder):
    """Return the saved weights, bit for bit, and what must be equal of the results."""
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    weights = (folder / "model" / "model.safetensors").read_bytes()
    return weights, {key: results[key] for key in COMPARED}
