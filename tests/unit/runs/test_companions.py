"""Processes of one run end together, with a status that a job script can read."""

import os
import subprocess
import sys
import time

import pytest
from faults import PATIENCE

from etw_lightning.runs import companions

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")

#: Starts processes as a run does, and waits as one that is starting up: in compiled code.
FIRST = """
import os, subprocess, sys, time
from lightning.pytorch import Trainer
from etw_lightning.runs import companions
companions._PATIENCE = 0.1
trainer = Trainer(accelerator="cpu", devices=2, strategy="ddp", logger=False)
companions.start_companions(trainer)
words = [[sys.executable, "-c", one] for one in sys.argv[1:]]
from lightning.pytorch.strategies.launchers import subprocess_script
environment = {**os.environ, "LOCAL_RANK": "1"}
started = [subprocess.Popen(one, env=environment) for one in words]
subprocess_script._launch_process_observer(started)
time.sleep(300)
"""
COMPANION = """
import os, time
from etw_lightning.runs.companions import end_with_first
end_with_first()
print(os.getpid(), flush=True)
time.sleep(300)
"""
WAITING = "import time; time.sleep(300)"


def start(*sources):
    words = [sys.executable, "-c", FIRST, *sources]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize(
    ("source", "status", "said"),
    [
        ("raise SystemExit(143)", 143, "process 2 was asked to stop"),
        ("raise SystemExit(3)", 1, "process 2 has ended with status 3"),
        ("import os; os.kill(os.getpid(), 9)", 1, "process 2 has ended with status -9"),
    ],
)
def test_a_run_ends_with_the_first_process_that_does(source, status, said):
    _, printed = (process := start(WAITING, source)).communicate(timeout=PATIENCE)
    assert process.returncode == status
    assert said in printed.splitlines()[-1]


def test_no_process_is_left_behind():
    process = start(COMPANION)
    companion = int(process.stdout.readline())
    process.kill()
    process.wait()
    wait_for_end(companion)
    assert not is_alive(companion)


def test_a_process_whose_first_one_is_gone_ends_at_once():
    """The first one was killed before this one had come to watch it."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    environment = {**os.environ, "ETW_FIRST_PROCESS": str(gone.pid), "LOCAL_RANK": "1"}
    companion = subprocess.run(
        [sys.executable, "-c", COMPANION], env=environment, capture_output=True, timeout=PATIENCE
    )
    assert companion.returncode == 1


def wait_for_end(number):
    deadline = time.monotonic() + PATIENCE
    while is_alive(number) and time.monotonic() < deadline:
        time.sleep(0.05)


def is_alive(number):
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{number}/stat") as file:
        return file.read().rsplit(")", 1)[1].split()[0] != "Z"


@pytest.mark.parametrize(
    "environment", [{"LOCAL_RANK": "1"}, {"ETW_FIRST_PROCESS": "1", "LOCAL_RANK": "0"}]
)
def test_a_process_that_no_run_has_started_is_left_alone(monkeypatch, environment):
    for name in ("ETW_FIRST_PROCESS", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(companions, "_start", pytest.fail)
    companions.end_with_first()
