"""What a start costs: help, a typo, a sweep's plan, and the way to the quickstart's first step.

Each is a process of its own with one thread, and so is what no start can be without: importing
torch, and importing Lightning. They run in turn, so that a busy machine is busy for all.

    python tests/benchmarks/start.py

prints one line of JSON: of each the CPU seconds of the process and of those it has started, the
median of ``--times`` rounds, and their ratio to importing Lightning. What the quickstart needs
(two small models, the scores before training) is in the cache before anything is timed;
``--first`` also times the command that puts it there.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer

_LIGHTNING = "import lightning.pytorch"
_TIMED = """
import os, resource, subprocess, sys
status = subprocess.run(sys.argv[1:], capture_output=True)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(used.ru_utime + used.ru_stime, status.returncode)
print((status.stdout + status.stderr).decode(), file=sys.stderr)
"""


class EndAtFirstStep(Callback):
    """Ends the process after one optimiser step, before anything is evaluated or saved."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *_: object, **__: object
    ) -> None:
        """Leave."""
        if trainer.global_step:
            os._exit(0)


def main() -> None:
    """Measure, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--sweep", default="sweep/quickstart_methods")
    parser.add_argument("--first", action="store_true", help="time the quickstart's first run too")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        etw = [sys.executable, "-m", "etw_lightning"]
        fit = [*etw, "fit", "--config", "quickstart", "--output_dir"]
        stopped = [*fit, str(folder / "stopped"), "--trainer.callbacks+=start.EndAtFirstStep"]
        commands = {
            "import torch": ([sys.executable, "-c", "import torch"], 0),
            _LIGHTNING: ([sys.executable, "-c", _LIGHTNING], 0),
            "--help": ([*etw, "--help"], 0),
            "fit --help": ([*etw, "fit", "--help"], 0),
            "a typo": ([*etw, "fit", "--config", "quickstart", "--model.lambdaa", "1"], 2),
            "sweep plan": ([*etw, "sweep", "plan", "--config", given.sweep], 0),
            "first step": ([*stopped, "--overwrite"], 0),
        }
        first = used([*fit, str(folder / "run")], folder, 0)
        found: dict[str, list[float]] = {what: [] for what in commands}
        for _ in range(given.times):
            for what, (words, status) in commands.items():
                found[what].append(used(words, folder, status))
    middle = {what: statistics.median(times) for what, times in found.items()}
    said = {
        "cpu_seconds": {what: round(seconds, 2) for what, seconds in middle.items()},
        "to_lightning": {
            what: round(seconds / middle[_LIGHTNING], 2) for what, seconds in middle.items()
        },
        "versions": {what: version(what) for what in ("torch", "lightning", "jsonargparse")},
    }
    if given.first:
        said["cpu_seconds"]["first run"] = round(first, 1)
    sys.stdout.write(f"{json.dumps(said)}\n")


def used(words: list[str], folder: Path, status: int) -> float:
    """Return the CPU seconds of a command that must end with a status."""
    places = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).parent)]
    others = {
        "OMP_NUM_THREADS": "1",
        "ETW_CACHE": str(folder / "cache"),
        "PYTHONPATH": os.pathsep.join(places),
    }
    command = [sys.executable, "-c", _TIMED, *words]
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, **others}, text=True, capture_output=True
    )
    seconds, ended = done.stdout.split()
    if int(ended) != status:
        raise SystemExit(f"{' '.join(words)} ended with {ended}:\n{done.stderr}")
    return float(seconds)


if __name__ == "__main__":
    main()
