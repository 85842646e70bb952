"""``torchrun`` itself starts the processes: no flag says how many, none names a folder."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
STEP = "checkpoints/step-0000000[2-9]"

pytestmark = pytest.mark.slow


def start(command, cwd, log):
    """Start two processes by torchrun, with what they print in a file."""
    words = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with open(log, "w") as stream:
        return subprocess.Popen(
            [*words, "-m", "etw_lightning", *command],
            cwd=cwd,
            env=environment,
            stdout=stream,
            stderr=subprocess.STDOUT,
        )


def children_of(process):
    """Return the processes that one has started."""
    found = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    return [int(number) for number in found.split()]


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="processes are found in /proc")
def test_a_killed_process_ends_the_other_and_the_same_command_goes_on(
    tmp_path, tiny_model_dir, tmp_path_factory
):
    from sharded import write_texts
    from toy import jsonl_words

    root = write_texts(tmp_path_factory.mktemp("texts") / "rows")
    command = [
        "fit",
        f"--config={ROOT / 'configs/strategy/ddp.yaml'}",
        *jsonl_words(root, tiny_model_dir),
        "--trainer.accelerator=cpu",
        "--trainer.max_epochs=400",
        '--trainer.callbacks=[{"class_path": "SetScores", "init_args": {"every_n_epochs": 400}}]',
        "--checkpoints.every_n_steps=1",
    ]
    log = tmp_path / "log"
    run = start(command, tmp_path, log)
    runs = tmp_path / "runs"
    ends = time.monotonic() + 300
    while not list(runs.glob(f"*/*/{STEP}")):
        assert run.poll() is None, log.read_text()
        assert time.monotonic() < ends, log.read_text()
        time.sleep(0.2)
    os.kill(children_of(run)[-1], signal.SIGKILL)
    assert run.wait(60) == 1, log.read_text()
    said = log.read_text()
    assert said.count("error: another process of this run has ended") == 1, said
    assert "etw_lightning/commands/cli.py" not in said, "a traceback of ours"

    assert len(list(runs.glob("*/*"))) == 1
    run = start(command, tmp_path, log)
    while "going on from" not in log.read_text():
        assert run.poll() is None, log.read_text()
        time.sleep(0.2)
    run.terminate()
    run.wait(60)
    assert len(list(runs.glob("*/*"))) == 1
