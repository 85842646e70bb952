"""What a budget for the retain loss buys, beside a grid of lambdas, on the quickstart corpus.

    python tests/benchmarks/budget.py [--jobs 2] [--seeds 0,1,2] [--methods etw,ga,npo]

runs each method with budgets of 2, 5 and 10 % and with a grid of lambdas, for each seed (models,
order of rows), all with the schedule of ``configs/budget.yaml``, and prints a Markdown table: rise
of the retain loss over its start in percent for each seed (all retain rows, after the last step;
bold where a budget ends more than a percentage point off), and what is said of the model after the
last epoch, as the mean over the seeds (forget quality: the geometric one). Exit status 1 if a
budget is missed. Budgets come before lambdas, and all of a seed before the next one. A run whose
numbers are in the output folder is not made again; ``--jobs 0`` makes none at all and tabulates
what there is.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import itertools
import json
import multiprocessing
import os
import statistics
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from etw_lightning.commands.cli import main as run_command

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
BUDGETS = (0.02, 0.05, 0.1)
#: NPO sums over a row's tokens what GA averages, so its weights are lower.
LAMBDAS = {
    "etw": (0.02, 0.05, 0.1, 0.2),
    "ga": (0.02, 0.05, 0.1, 0.2),
    "npo": (0.005, 0.01, 0.02, 0.04),
}
#: Where the weight starts under a budget.
START = {"etw": 0.1, "ga": 0.1, "npo": 0.01}
#: Percentage points.
TOLERANCE = 1.0


class Run(NamedTuple):
    """One method with one knob and one seed; without a budget the weight stays."""

    method: str
    weight: float
    budget: float | None
    seed: int

    @property
    def knob(self) -> str:
        if self.budget is None:
            return f"lambda {self.weight:g}"
        return f"budget {100 * self.budget:g} %"

    def folder(self, output: Path) -> Path:
        return output / f"{self.method}_{self.knob.strip(' %').replace(' ', '_')}_seed{self.seed}"


class Outcome(NamedTuple):
    """What one run ended with; the rise in percent."""

    rise: float
    forget_quality: float
    forget_probability: float
    model_utility: float


def overlay(weight: float, budget: float | None) -> dict[str, Any]:
    """Return what is laid over a method's configuration; without a budget the weight stays."""
    settings = copy.deepcopy(yaml.safe_load((CONFIGS / "budget.yaml").read_text(encoding="utf-8")))
    settings["model"]["forget_weight"] = weight
    given = settings["trainer"]["callbacks"][-1]["init_args"]
    if budget is not None:
        given["budget"] = budget
    else:
        # Measures as a budget does, after the last step alone, and moves the weight by nothing.
        given.update(budget=1.0, update=1e-12, penalty=0.0, every_n_steps=100)
    return settings  # type: ignore[no-any-return]


def make(run: Run, output: Path) -> str:
    """Make one run, unless its folder has its numbers; returns what went wrong, if anything."""
    folder = run.folder(output)
    if find(run, output) is not None:
        return ""
    output.mkdir(parents=True, exist_ok=True)
    config = output / f"{folder.name}.yaml"
    config.write_text(json.dumps(overlay(run.weight, run.budget)), encoding="utf-8")
    command = ["fit"]
    for file in (CONFIGS / "quickstart.yaml", CONFIGS / "method" / f"{run.method}.yaml", config):
        command += ["--config", str(file)]
    # After the files: the quickstart's names a seed, and what comes last counts.
    command += ["--seed_everything", str(run.seed)]
    command += ["--output_dir", str(folder), "--no_save_model"]
    command += ["--trainer.enable_progress_bar", "false"]
    sys.argv[1:] = command
    with contextlib.redirect_stdout(sys.stderr):
        status = run_command()
    return f"{folder.name}: exit status {status}" if status else ""


def find(run: Run, output: Path) -> Outcome | None:
    """Return what a run ended with, None if it has not."""
    folder = run.folder(output)
    if not (folder / "results.json").is_file():
        return None
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    if results["seed"] != run.seed:
        raise SystemExit(f"{folder.name} holds a run of seed {results['seed']}; move it away")
    table = results["table"].get("unlearned", {})
    names = Outcome._fields[1:]
    if not all(name in table for name in names):
        return None
    return Outcome(last_rise(folder), *(table[name] for name in names))


def last_rise(folder: Path) -> float:
    """Return the last rise that was logged, percent."""
    found = []
    for file in sorted(folder.rglob("events.out.tfevents.*")):
        log = EventAccumulator(str(file), size_guidance={"scalars": 0}).Reload()
        if "budget/rise" in log.Tags()["scalars"]:
            found += [(event.step, event.value) for event in log.Scalars("budget/rise")]
    return float(max(found)[1])


def is_missed(run: Run, outcome: Outcome) -> bool:
    return run.budget is not None and abs(outcome.rise - 100 * run.budget) > TOLERANCE


def geometric_mean(values: Sequence[float]) -> float:
    return statistics.geometric_mean(values) if min(values) > 0 else 0.0


COLUMNS: tuple[tuple[str, str, Callable[[Sequence[float]], float]], ...] = (
    ("forget quality", ".2g", geometric_mean),
    ("forget probability", ".2f", statistics.fmean),
    ("model utility", ".3f", statistics.fmean),
)


def table(runs: Sequence[Run], outcomes: dict[Run, Outcome], seeds: Sequence[int]) -> list[str]:
    """Return the lines of the Markdown table; a rise that is not there yet is a dash."""
    names = [*(f"rise, %, seed {seed}" for seed in seeds), *(name for name, _, _ in COLUMNS)]
    lines = [
        f"| {' | '.join(('method', 'knob', *names))} |",
        f"| --- | --- | {' | '.join('---:' for _ in names)} |",
    ]
    by_point: dict[tuple[str, str], dict[int, Run]] = {}
    for run in sorted(runs, key=lambda run: run.method):
        by_point.setdefault((run.method, run.knob), {})[run.seed] = run
    for point, of_seed in by_point.items():
        there = [outcomes[run] for run in of_seed.values() if run in outcomes]
        if not there:
            continue
        cells = []
        for seed in seeds:
            outcome = outcomes.get(of_seed[seed])
            bold = "**" if outcome and is_missed(of_seed[seed], outcome) else ""
            cells.append(f"{bold}{outcome.rise:.2f}{bold}" if outcome else "-")
        for (_, form, mean), values in zip(
            COLUMNS, zip(*(outcome[1:] for outcome in there), strict=True), strict=True
        ):
            cells.append(format(mean(values), form))
        lines.append(f"| {' | '.join((*point, *cells))} |")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--output", type=Path, default=Path("runs/budget"))
    parser.add_argument("--methods", default=",".join(START))
    parser.add_argument("--only", choices=("budgets", "lambdas"))
    parser.add_argument("--jobs", type=int, default=1)
    args = parser.parse_args()
    seeds, methods = [int(seed) for seed in args.seeds.split(",")], args.methods.split(",")
    runs = []
    if args.only != "lambdas":
        runs += [
            Run(method, START[method], budget, seed)
            for seed, method, budget in itertools.product(seeds, methods, BUDGETS)
        ]
    if args.only != "budgets":
        for seed, method in itertools.product(seeds, methods):
            runs += [Run(method, weight, None, seed) for weight in LAMBDAS[method]]
    failed = []
    if args.jobs > 0:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(args.jobs, mp_context=context) as pool:
            for run, error in zip(
                runs, pool.map(make, runs, itertools.repeat(args.output)), strict=True
            ):
                sys.stderr.write(f"{error or f'{run}: {find(run, args.output)}'}\n")
                failed += [error] if error else []
    outcomes = {run: found for run in runs if (found := find(run, args.output)) is not None}
    sys.stdout.write("\n".join(table(runs, outcomes, seeds)) + "\n")
    missed = [
        run.folder(args.output).name for run, outcome in outcomes.items() if is_missed(run, outcome)
    ]
    budgets = sum(run.budget is not None for run in outcomes)
    sys.stderr.write(
        f"{len(outcomes)} of {len(runs)} runs are there; of {budgets} budgets {len(missed)} ended "
        f"more than {TOLERANCE:g} point off: {', '.join(missed) or 'none'}\n"
    )
    return 1 if missed or failed else 0


if __name__ == "__main__":
    sys.exit(main())
