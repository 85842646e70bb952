"""Two processes that were broken off end, under each strategy, as if they never had been."""

import functools
import os
import signal
from pathlib import Path

import pytest
import torch
from faults import Fault, left_behind, run_processes
from sharded import write_texts
from toy import jsonl_words

ROOT = Path(__file__).resolve().parents[2]
STEP = "etw_lightning.training.module:UnlearningModule.training_step"
SCORING = "etw_lightning.training.scoring_module:score_in_turn"

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")


def on_cpu(stage):
    return [
        "--trainer.strategy=sharded.CPUDeepSpeed",
        f"--trainer.strategy.stage={stage}",
        "--trainer.strategy.process_group_backend=gloo",
    ]


#: What happens to the second process, and the exit status it has then.
FAULTS = {
    "killed": (Fault(STEP, 7), -9),
    "stopped": (Fault(STEP, 5, signal.SIGTERM), 143),
    "stopped in evaluation": (Fault(SCORING, 5, signal.SIGTERM), 143),
}
#: Strategy -> options, and whether its checkpoints are folders of shards.
STRATEGIES = {
    "ddp": ([f"--config={ROOT / 'configs/strategy/ddp.yaml'}"], False),
    "fsdp": ([f"--config={ROOT / 'configs/strategy/fsdp.yaml'}"], True),
    "zero2": (on_cpu(2), True),
    "zero3": (on_cpu(3), True),
}
#: What a default run tries; ``test_training`` resumes from a folder of shards. The rest is slow.
TRIED = [("ddp", "killed")]
MORE = [
    ("ddp", "stopped"),
    ("ddp", "stopped in evaluation"),
    ("fsdp", "killed"),
    ("fsdp", "stopped in evaluation"),
    ("zero2", "stopped"),
    ("zero3", "stopped"),
    ("zero3", "killed"),
]


@pytest.fixture(autouse=True)
def _cheap(monkeypatch, tmp_path_factory):
    torch.set_num_threads(1)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.setenv("ETW_CACHE", str(tmp_path_factory.getbasetemp() / "resume_cache"))


@pytest.fixture(scope="module")
def words(tmp_path_factory, tiny_model_dir):
    """Two epochs of four optimiser steps of two micro-batches on each process."""
    root = write_texts(tmp_path_factory.mktemp("texts") / "rows")
    return [
        "fit",
        *jsonl_words(root, tiny_model_dir),
        "--data.eval_batch_size=2",
        "--model.lr=1e-3",
        "--trainer.accumulate_grad_batches=2",
        '--trainer.callbacks=[{"class_path": "SetScores"}]',
        "--trainer.max_epochs=2",
        "--trainer.enable_progress_bar=false",
        "--checkpoints.every_n_steps=1",
    ]


@pytest.fixture(scope="module")
def whole(words, tmp_path_factory):
    """What a run leaves behind that nothing breaks off."""

    @functools.cache
    def run_whole(name):
        folder = tmp_path_factory.mktemp("whole")
        log = folder / "log"
        statuses = run_processes(
            [*command_of(words, name), f"--output_dir={folder / 'run'}"], 2, log=log
        )
        assert statuses == [0, 0], log.read_text()
        return left_behind(folder / "run")

    return run_whole


def command_of(words, name):
    return [
        "fit",
        *STRATEGIES[name][0],
        *words[1:],
        "--trainer.accelerator=cpu",
        "--trainer.devices=2",
    ]


@pytest.mark.parametrize(
    ("name", "what"), [*TRIED, *(pytest.param(*case, marks=pytest.mark.slow) for case in MORE)]
)
def test_two_processes_go_on_bit_for_bit(words, whole, name, what, tmp_path):
    expected = whole(name)
    fault, status = FAULTS[what]
    folder, log = tmp_path / "run", tmp_path / "log"
    command = [*command_of(words, name), f"--output_dir={folder}"]
    statuses = run_processes(command, 2, fault, log)
    assert statuses[1] == status, log.read_text()
    assert statuses[0] == (143 if status == 143 else 1), log.read_text()
    if status == -9:
        said = log.read_text()
        assert said.count("error: another process of this run has ended") == 1, said
        assert "Traceback" not in said
    states = sorted((folder / "checkpoints").glob("step-*/state.ckpt"))
    assert states
    assert all(state.is_dir() == STRATEGIES[name][1] for state in states)
    assert run_processes(command, 2, log=log) == [0, 0], log.read_text()
    assert f"going on from {states[-1].parent}" in log.read_text()
    assert left_behind(folder) == expected
