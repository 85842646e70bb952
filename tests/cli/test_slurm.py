"""The array job: it makes the commands of a grid and calls them, nothing else."""

import itertools
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "slurm" / "array.sh"
NAMES = ("METHODS", "SEEDS", "LAMBDAS", "CONFIG", "OUTPUT", "SLURM_ARRAY_TASK_ID")


def bash(*args, **variables):
    """Run the script with these variables and none of the caller's; no Slurm is needed."""
    given = {key: value for key, value in os.environ.items() if key not in NAMES}
    return subprocess.run(
        ["bash", *map(str, args)],
        env=given | {key: str(value) for key, value in variables.items()},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def dry_run(*args, **variables):
    """Return the printed commands as words, and the last line."""
    result = bash(SCRIPT, "--dry-run", *args, **variables)
    assert (result.returncode, result.stderr) == (0, "")
    *commands, last = result.stdout.splitlines()
    return [shlex.split(line) for line in commands], last


def value(words, option):
    """Return the values that follow an option."""
    return [after for word, after in itertools.pairwise(words) if word == option]


def test_bash_reads_it():
    assert bash("-n", SCRIPT).returncode == 0


def test_the_default_grid_is_the_one_asked_of_slurm():
    commands, last = dry_run()
    asked = re.search(r"^#SBATCH --array=0-(\d+)$", SCRIPT.read_text(), re.MULTILINE)
    assert len(commands) == int(asked[1]) + 1
    assert last == f"# {len(commands)} runs: sbatch --array=0-{asked[1]} slurm/array.sh"
    assert {value(words, "--config")[0] for words in commands} == {"configs/tofu_forget10.yaml"}
    assert all((ROOT / file).is_file() for words in commands for file in value(words, "--config"))


def test_every_combination_comes_once_and_in_its_own_folder():
    grid = {"METHODS": "etw ga npo", "SEEDS": "0 7", "LAMBDAS": "0.05 1"}
    commands, last = dry_run(**grid, CONFIG="configs/muse_news.yaml", OUTPUT="/scratch/my runs")
    found = [
        (
            Path(value(words, "--config")[1]).stem,
            *value(words, "--seed_everything"),
            *value(words, "--model.lambda"),
        )
        for words in commands
    ]
    assert found == list(itertools.product(*(names.split() for names in grid.values())))
    assert last == "# 12 runs: sbatch --array=0-11 slurm/array.sh"
    folders = {value(words, "--output_dir")[0] for words in commands}
    assert len(folders) == 12
    assert "/scratch/my runs/etw_seed7_lambda0.05" in folders
    assert all(words[:4] == ["python", "-m", "etw_lightning", "fit"] for words in commands)
    assert all(value(words, "--config")[0] == "configs/muse_news.yaml" for words in commands)


def test_a_task_is_its_line_of_the_list():
    commands, last = dry_run()
    for task in (0, 10, 17):
        assert dry_run(SLURM_ARRAY_TASK_ID=task) == ([commands[task]], last)


def test_what_follows_reaches_every_run_before_the_grid():
    extra = ["--data.root", "/with a space", "--output_dir", "shared", "--data.rows", '{"a": 1}']
    commands, _ = dry_run(*extra, METHODS="etw", SEEDS="0 1", LAMBDAS="0.1")
    for words in commands:
        assert words[8 : 8 + len(extra)] == extra
    assert len({words[-1] for words in commands}) == 2


@pytest.fixture
def called(tmp_path):
    """A ``python`` that writes down how it was called and ends with status 3."""
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\nprintf "%s\\n" python "$@" >>{tmp_path}/called\nexit 3\n')
    python.chmod(0o755)
    return {"PATH": f"{python.parent}:{os.environ['PATH']}"}, tmp_path / "called"


def test_it_calls_the_printed_command_and_gives_its_status(called):
    path, log = called
    result = bash(SCRIPT, "--data.root", "a b", SLURM_ARRAY_TASK_ID=4, **path)
    assert (result.returncode, result.stdout, result.stderr) == (3, "", "")
    (words,), _ = dry_run("--data.root", "a b", SLURM_ARRAY_TASK_ID=4)
    assert log.read_text().splitlines() == words


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({}, "SLURM_ARRAY_TASK_ID must be 0 to 17; got ''."),
        ({"SLURM_ARRAY_TASK_ID": "18"}, "SLURM_ARRAY_TASK_ID must be 0 to 17; got '18'."),
        ({"SLURM_ARRAY_TASK_ID": "-1"}, "SLURM_ARRAY_TASK_ID must be 0 to 17; got '-1'."),
        ({"SLURM_ARRAY_TASK_ID": "08"}, "SLURM_ARRAY_TASK_ID must be 0 to 17; got '08'."),
        ({"SLURM_ARRAY_TASK_ID": "x"}, "SLURM_ARRAY_TASK_ID must be 0 to 17; got 'x'."),
        ({"SEEDS": " "}, "SEEDS must hold at least one value; got none."),
        (
            {"LAMBDAS": "0.1 1 0.1", "SLURM_ARRAY_TASK_ID": "0"},
            "LAMBDAS must hold each value once; got 0.1 more than once.",
        ),
    ],
)
def test_a_bad_grid_or_task_runs_nothing(called, variables, message):
    path, log = called
    result = bash(SCRIPT, **path, **variables)
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: {message}")
    assert result.stderr.count("\n") == 1
    assert not log.exists()


def test_every_command_parses(command, monkeypatch):
    commands, _ = dry_run("--data.batch_size", "3", SEEDS="5", LAMBDAS="0.02 0.3")
    monkeypatch.chdir(ROOT)
    for words in commands:
        result = command(*words[3:], "--print_config")
        assert result.status == 0, result.err
        config = yaml.safe_load(result.out)
        assert config["seed_everything"] == 5
        assert config["data"]["batch_size"] == 3
        assert config["model"]["forget_weight"] == float(value(words, "--model.lambda")[0])
        assert config["output_dir"] == words[-1]


def test_a_finished_task_is_not_run_again(command, monkeypatch, tmp_path):
    (words,), _ = dry_run(OUTPUT=tmp_path, SLURM_ARRAY_TASK_ID=3)
    folder = Path(words[-1])
    folder.mkdir()
    (folder / "results.json").write_text('{"finished": true}')
    monkeypatch.chdir(ROOT)
    result = command(*words[3:])
    assert result.status == 2
    assert result.err.startswith(f"error: output_dir {folder} holds a finished run; ")
    assert [path.name for path in folder.iterdir()] == ["results.json"]
