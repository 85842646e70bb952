"""Processes of one run end together, with a status that a job script can read."""

import os
import signal
import subprocess
import sys
import time

import pytest
from faults import PATIENCE, start, wait_for
from lightning.pytorch import Trainer
from lightning.pytorch.strategies.launchers import subprocess_script

from etw_lightning.runs import companions

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")

WAITING = "import time; time.sleep(300)"


def start_first():
    """Do what the first process of a run does before it starts the others."""
    companions._PATIENCE = 0.1
    trainer = Trainer(accelerator="cpu", devices=2, strategy="ddp", logger=False)
    companions.start_companions(trainer)


@pytest.mark.parametrize(
    ("source", "status", "said"),
    [
        ("raise SystemExit(143)", 143, "process 2 was asked to stop"),
        ("raise SystemExit(3)", 1, "process 2 has ended with status 3"),
        ("import os; os.kill(os.getpid(), 9)", 1, "process 2 has ended with status -9"),
    ],
)
def test_a_run_ends_with_the_first_process_that_does(tmp_path, source, status, said):
    log = tmp_path / "log"

    def work(_):
        """Start processes as a run does, and wait as one that is starting up: in compiled code."""
        with log.open("w") as sys.stderr:
            start_first()
            words = [[sys.executable, "-c", one] for one in (WAITING, source)]
            started = [subprocess.Popen(one) for one in words]
            subprocess_script._launch_process_observer(started)
            time.sleep(300)
        return 0

    assert wait_for(start(1, work)) == [status]
    assert said in log.read_text().splitlines()[-1]


def wait_as_companion(number):
    """Be another process of a run: tell the own number, watch the first one, and wait."""
    os.environ["LOCAL_RANK"] = "1"
    companions.end_with_first()
    number.write_text(f"{os.getpid()}\n")
    time.sleep(300)
    return 0


def test_no_process_is_left_behind(tmp_path):
    number = tmp_path / "number"

    def work(_):
        start_first()
        start(1, lambda _: wait_as_companion(number))
        time.sleep(300)
        return 0

    (first,) = start(1, work)
    ends = time.monotonic() + PATIENCE
    while not (number.exists() and number.read_text().endswith("\n")):
        assert time.monotonic() < ends
        time.sleep(0.01)
    companion = int(number.read_text())
    assert is_alive(companion)
    os.kill(first, signal.SIGKILL)
    assert wait_for([first]) == [-signal.SIGKILL]
    wait_for_end(companion)
    assert not is_alive(companion)


def test_a_process_whose_first_one_is_gone_ends_at_once(tmp_path, monkeypatch):
    """The first one was killed before this one had come to watch it."""
    gone = start(1, lambda _: 0)
    assert wait_for(gone) == [0]
    monkeypatch.setenv("ETW_FIRST_PROCESS", str(*gone))
    assert wait_for(start(1, lambda _: wait_as_companion(tmp_path / "number"))) == [1]


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
