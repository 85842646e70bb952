"""A sweep's file, its runs without a parser, and what a finished one leaves."""

import json

import yaml

from etw_lightning.sweeps.choice import gather
from etw_lightning.sweeps.grid import load_sweep
from etw_lightning.sweeps.reading import with_keys
from etw_lightning.sweeps.runs import expand

BASE = {
    "config": ["run.yaml"],
    "output_dir": "out",
    "methods": {"etw": {"model.lambda": [0.1, 0.2]}, "ga": {}},
    "grid": {"seed_everything": [0, 1]},
    "select": {
        "maximise": "forget_quality",
        "subject_to": {"model_utility": {"at_least_of_target": 0.95}},
    },
}


def parse(words):
    """Read options as a parser would, numbers by their value; files and folder are left out."""
    pairs = [word for word in words[1:] if word != "--no_save_model"]
    options = list(zip(pairs[::2], pairs[1::2], strict=True))
    return {
        "methods": [value for key, value in options if key == "--config"],
        **{key: yaml.safe_load(value) for key, value in options if key.count(".")},
        "seed_everything": dict(options).get("--seed_everything"),
    }


def runs_of(path, **given):
    return with_keys(expand(load_sweep(path, **given)), parse)


def finish(run, quality, utility, *, target=0.6, key=None, **more):
    """Leave what a finished run leaves."""
    run.folder.mkdir(parents=True)
    found = {"forget_quality": quality, "model_utility": utility, **more}
    results = {
        "finished": True,
        "command": "fit",
        "config_hash": key or run.key,
        "git_commit": "abc",
        "metrics": {name: {"value": value} for name, value in found.items()},
        "history": [{"epoch": 0, "metrics": {"model_utility": {"value": target}}}],
    }
    (run.folder / "results.json").write_text(json.dumps(results))


def points_of(write, *values):
    """Return the two points of ETW, each of its two runs with these numbers."""
    runs = runs_of(write())
    for run, (quality, utility) in zip(runs, values, strict=False):
        finish(run, quality, utility)
    return [point for point in gather(runs) if point.method == "etw"]


def cells(text, start):
    """Return the cells of the lines that begin so, without bold."""
    lines = [line.replace("**", "") for line in text.splitlines()]
    return [line.strip("| ").split(" | ") for line in lines if line.startswith(start)]
