"""A training step of ours beside a plain Hugging Face Trainer's, and beside our own of before.

    python tests/benchmarks/train_step.py --model tiny --root TOFU --method etw --batch 4

Each side trains in a process of its own on one thread, on the same rows of TOFU (forget10,
retain90; chat template) in the same order; they take turns step by step, and process time is
compared step against step, so that a machine that others use too slows all alike. ``plain`` is what
a user of ``transformers.Trainer`` writes: a padded pass for each group of rows, all logits, NPO's
and DPO's reference model run at every step. ``ours`` is ``etw fit`` with its callbacks, guards and
logs; what the reference model says is computed before the first step and not counted. A step is all
there is from one batch to the next. ``--baseline COMMIT`` adds ``fit`` as it was then, from a copy
of that commit. Prints one line of JSON; ``first_losses`` must be equal.

Of each side: seconds a step (median), ``speed_over_plain`` with quartiles, tokens a second,
positions that are fed over tokens and over distinct positions (a beginning of several rows counted
once; what predicts nothing is not counted), and ``peak_mb``, the highest resident set of a step
above weights and optimiser.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tiny_llama import make_tiny_llama

HERE = Path(__file__).resolve().parent
START = "import sys; sys.path.insert(0, sys.argv.pop(1)); import step_side; step_side.main("
METHODS = ("etw", "graddiff", "npo", "dpo", "etw_lora")


def start(side: str, given: argparse.Namespace, package: Path) -> subprocess.Popen[str]:
    """Start the process of a side with the package in a folder."""
    settings = json.dumps({k: v for k, v in vars(given).items() if k != "baseline"})
    paths = os.pathsep.join(filter(None, (str(package), os.environ.get("PYTHONPATH"))))
    environment = {
        **os.environ,
        "PYTHONPATH": paths,
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
    }
    return subprocess.Popen(
        [sys.executable, "-c", f"{START}sys.argv[1:])", str(HERE), side, settings],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        # Python looks for the package here first.
        cwd=package,
    )


def step(process: subprocess.Popen[str]) -> dict[str, Any]:
    """Have a side make a step; return what it says of it."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    line = process.stdout.readline()
    if not line:
        raise SystemExit("a side has ended; what it said is above")
    said: dict[str, Any] = json.loads(line)
    return said


@contextlib.contextmanager
def copy_of(commit: str | None) -> Iterator[Path | None]:
    """Give a folder with the repository as it was at a commit."""
    if commit is None:
        yield None
        return
    with tempfile.TemporaryDirectory() as folder:
        top = ["git", "rev-parse", "--show-toplevel"]
        root = subprocess.run(top, cwd=HERE, capture_output=True, check=True, text=True)
        stored = subprocess.run(
            ["git", "archive", commit], cwd=root.stdout.strip(), capture_output=True, check=True
        ).stdout
        subprocess.run(["tar", "-x", "-C", folder], input=stored, check=True)
        yield Path(folder)


def summary(
    steps: list[dict[str, Any]], plain: list[dict[str, Any]]
) -> dict[str, float | list[float] | None]:
    """Return the numbers of a side; its first step warms up."""
    steps, plain = steps[1:], plain[1:]
    ratios = sorted(p["seconds"] / s["seconds"] for p, s in zip(plain, steps, strict=True))
    # Second answers are fed too, whether they are padded apart or not.
    tokens = sum(one["tokens"] for one in steps)
    positions = sum(one["positions"] for one in steps)
    peaks = [one["peak_mb"] for one in steps if one["peak_mb"] is not None]
    quarter = len(ratios) // 4
    return {
        "seconds": round(statistics.median(one["seconds"] for one in steps), 4),
        "speed_over_plain": round(statistics.median(ratios), 2),
        "quartiles": [round(ratios[quarter], 2), round(ratios[-1 - quarter], 2)],
        "tokens_per_second": round(tokens / sum(one["seconds"] for one in steps)),
        "positions_per_token": round(positions / tokens, 2),
        "positions_over_distinct": round(positions / sum(one["distinct"] for one in plain), 3),
        "peak_mb": round(max(peaks), 1) if peaks else None,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", required=True, help="folder, .gguf file, or tiny: one made here")
    parser.add_argument("--root", required=True, help="folder of TOFU's files")
    parser.add_argument("--method", choices=METHODS, default="etw")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--batch", type=int, default=4, help="rows of each stream")
    parser.add_argument("--steps", type=int, default=12, help="timed; one more warms up")
    parser.add_argument("--baseline", metavar="COMMIT", help="compare with fit as it was then, too")
    given = parser.parse_args()
    given.root = str(Path(given.root).resolve())
    with copy_of(given.baseline) as before, tempfile.TemporaryDirectory() as made_here:
        if given.model == "tiny":
            given.model = str(make_tiny_llama(Path(made_here) / "tiny", Path(given.root)))
        given.model = str(Path(given.model).resolve())
        here = HERE.parent.parent
        sides = {"plain": start("plain", given, here), "ours": start("ours", given, here)}
        if before is not None:
            sides["baseline"] = start("ours", given, before)
        made: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
        try:
            for _ in range(given.steps + 1):
                for name, process in sides.items():
                    made[name].append(step(process))
        finally:
            for process in sides.values():
                process.kill()
    line = {
        "model": Path(given.model).name,
        "method": given.method,
        "dtype": given.dtype,
        "rows": [given.batch, given.batch],
        "steps": given.steps,
        "clock": "process time",
        "sides": {name: summary(steps, made["plain"]) for name, steps in made.items()},
        "first_losses": {name: round(steps[0]["loss"], 6) for name, steps in made.items()},
        "last_losses": {name: round(steps[-1]["loss"], 6) for name, steps in made.items()},
        "baseline": given.baseline,
        "versions": {name: version(name) for name in ("torch", "transformers", "lightning")},
    }
    sys.stdout.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
