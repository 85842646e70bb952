"""The job scripts under a real Slurm: every life of a job, to its end.

Needs ``sbatch`` and a cluster with a partition ``low``, preempted by requeue, and one ``high``, on
which one node pretends to have GPUs; ``SLURM_CONF`` says where. Without them all is skipped.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from faults import left_behind
from sharded import write_texts

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 300.0

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (shutil.which("sbatch") and os.environ.get("SLURM_CONF")), reason="there is no Slurm"
    ),
]


#: What of a run's words an evaluation would refuse.
OF_TRAINING = ("--checkpoints", "--trainer.max", "--data.batch_size", "--trainer.callbacks=")


@pytest.fixture(autouse=True)
def _cache(monkeypatch, tmp_path):
    monkeypatch.setenv("ETW_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{Path(__file__).parent}")


@pytest.fixture(scope="module")
def words(tmp_path_factory, tiny_model_dir):
    """Three hundred optimiser steps of a tiny model."""
    root = write_texts(tmp_path_factory.mktemp("texts") / "rows")
    return [
        "fit",
        "--data.benchmark=jsonl",
        f"--data.root={root}",
        "--data.forget_split=forget",
        "--data.retain_split=retain",
        "--data.batch_size=1",
        "--data.max_new_tokens=4",
        f"--model.pretrained={tiny_model_dir}",
        "--trainer.accelerator=cpu",
        '--trainer.callbacks=[{"class_path": "SetScores", "init_args": {"every_n_epochs": 30}}]',
        "--trainer.max_epochs=60",
        "--checkpoints.every_n_steps=10",
    ]


class Job:
    """A job of a script of ours in the partition that is preempted."""

    def __init__(self, script, words, log, *options):
        asked = [f"--output={log}", "--partition=low", *options, f"slurm/{script}"]
        said = slurm("sbatch", "--parsable", *asked, *map(str, words))
        self.number, self.log = said.strip(), Path(log)

    def state(self):
        """Return the state and the exit status, as Slurm shows them."""
        shown = slurm("scontrol", "show", "job", "--oneliner", self.number)
        return re.findall(r"JobState=(\S+)", shown), re.findall(r"ExitCode=(\d+):", shown)

    def wait(self, state):
        """Wait for a state."""
        wait_until(lambda: set(self.state()[0]) == {state}, lambda: (self.state(), self.said()))

    def said(self):
        """Return the job's output."""
        return self.log.read_text() if self.log.exists() else ""

    def signal(self):
        """Send its processes what Slurm sends them before a time limit."""
        slurm("scancel", "--signal=USR1", self.number)

    def next_life(self):
        """Wait until it has been put back, and do not wait for its turn."""
        self.wait("PENDING")
        # Within the second in which the life before was ended, the job's credential is revoked.
        time.sleep(3)
        slurm("scontrol", "update", f"JobId={self.number}", "StartTime=now")
        self.wait("RUNNING")


def slurm(*words):
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def wait_until(holds, explain):
    ends = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < ends, explain()
        time.sleep(0.3)


def checkpoints(folder):
    return sorted(path.name for path in (folder / "checkpoints").glob("step-*"))


def test_a_job_goes_on_through_signals_and_preemption(words, tmp_path):
    folder, plain = tmp_path / "run", tmp_path / "plain"
    job = Job("single.sh", [*words, "--output_dir", folder], tmp_path / "log")
    job.wait("RUNNING")
    time.sleep(1)
    job.signal()  # before the first step
    job.next_life()
    wait_until(lambda: checkpoints(folder), job.said)
    job.signal()  # in training
    job.next_life()
    assert "going on from" not in job.said()
    wait_until(lambda: "going on from" in job.said(), job.said)
    first = checkpoints(folder)[-1]
    wait_until(lambda: checkpoints(folder)[-1] > first, job.said)
    high = slurm("sbatch", "--parsable", "--partition=high", "--exclusive", "--wrap=sleep 2")
    job.next_life()  # preempted by a job that wants the whole node
    job.wait("COMPLETED")
    slurm("scancel", high.strip())
    assert job.said().count("going on from") == 2
    assert not Path(f"{folder}.requeues").exists()
    other = Job("single.sh", [*words, "--output_dir", plain], tmp_path / "plain_log")
    other.wait("COMPLETED")
    assert "going on" not in other.said()
    assert left_behind(folder) == left_behind(plain)


def in_scoring(mark):
    """Return the flag that makes evaluations last, and touches a file in each."""
    callback = {"class_path": "slow_scoring.SlowScoring", "init_args": {"mark": str(mark)}}
    return f"--trainer.callbacks+={json.dumps(callback)}"


@pytest.mark.parametrize("subcommand", ["fit", "evaluate"])
def test_a_signal_in_an_evaluation_ends_it_and_the_job_goes_on(words, tmp_path, subcommand):
    folder, plain, mark = tmp_path / "run", tmp_path / "plain", tmp_path / "scoring"
    every = '--trainer.callbacks=[{"class_path": "SetScores", "init_args": {"every_n_epochs": 1}}]'
    some = [subcommand, *words[1:], every, "--trainer.max_epochs=2", "--data.eval_batch_size=1"]
    if subcommand == "evaluate":
        some = [word for word in some if not word.startswith(OF_TRAINING)]
        some.append("--metrics=probability,rouge")
    job = Job("single.sh", [*some, in_scoring(mark), "--output_dir", folder], tmp_path / "log")
    wait_until(mark.exists, job.said)
    before = checkpoints(folder)
    job.signal()
    mark.unlink()
    job.next_life()
    assert "143" in job.said()
    assert not (folder / "results.json").exists()
    wait_until(mark.exists, job.said)
    job.wait("COMPLETED")
    if subcommand == "fit":
        assert "going on from" in job.said()
        assert checkpoints(folder) != before
    assert not Path(f"{folder}.requeues").exists()
    other = Job("single.sh", [*some, in_scoring(mark), "--output_dir", plain], tmp_path / "other")
    other.wait("COMPLETED")
    assert "143" not in other.said()
    found, wanted = (json.loads((one / "results.json").read_text()) for one in (folder, plain))
    assert found["metrics"] == wanted["metrics"]
    if subcommand == "fit":
        assert left_behind(folder) == left_behind(plain)


def test_a_job_without_progress_is_not_put_back_for_ever(words, tmp_path):
    job = Job("single.sh", [*words, "--output_dir", tmp_path / "run"], tmp_path / "log")
    for life in (1, 2, 3):
        job.wait("RUNNING")
        time.sleep(1)
        job.signal()
        if life < 3:
            job.next_life()
    job.wait("FAILED")
    assert job.state()[1] == ["143"]
    assert "was stopped 3 times in a row without a new checkpoint" in job.said()


def test_an_evaluation_that_scores_in_each_life_is_put_back_until_it_is_done(words, tmp_path):
    folder, mark = tmp_path / "run", tmp_path / "scoring"
    some = [word for word in words[1:] if not word.startswith(OF_TRAINING)]
    some = ["evaluate", *some, "--data.eval_batch_size=1", "--metrics=probability,rouge"]
    job = Job("single.sh", [*some, in_scoring(mark), "--output_dir", folder], tmp_path / "log")
    for _ in range(4):
        wait_until(mark.exists, job.said)
        job.signal()
        job.next_life()
        mark.unlink()
    job.wait("COMPLETED")
    assert (folder / "results.json").exists()
    assert "was stopped" not in job.said()
    assert not Path(f"{folder}.scored").exists()


def test_each_task_of_an_array_runs_its_line(words, tmp_path):
    command = ["python", "-m", "etw_lightning", *map(str, words), "--trainer.max_epochs=1"]
    plan = tmp_path / "plan.txt"
    folders = [tmp_path / "a b", tmp_path / "c"]
    lines = [shlex.join([*command, f"--output_dir={folder}"]) for folder in folders]
    plan.write_text("".join(f"{line}\n" for line in lines))
    job = Job("array.sh", [plan], tmp_path / "log-%a", "--array=0-1")
    job.wait("COMPLETED")
    assert all((folder / "results.json").exists() for folder in folders)


@pytest.mark.parametrize("script", ["node.sh", "nodes.sh"])
def test_two_processes_of_a_node(words, script, tmp_path):
    folder = tmp_path / "run"
    two = ["--nodes=1", "--ntasks-per-node=2", "--gpus-per-node=2"]
    ddp = ["--config", ROOT / "configs/strategy/ddp.yaml"]
    more = [*words[1:], "--trainer.accelerator=cpu", "--output_dir", folder]
    job = Job(script, ["fit", *ddp, *more], tmp_path / "log", *two)
    wait_until(lambda: checkpoints(folder), job.said)
    job.signal()
    job.next_life()
    job.wait("COMPLETED")
    assert "going on from" in job.said()
    assert (folder / "results.json").exists()
