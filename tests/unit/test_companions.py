"""Processes of one run end together, with a status that a job script can read."""

import os
import subprocess
import sys
import time

import pytest

from etw_lightning import companions

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")

#: Starts processes as a run does, and waits as one that is starting up: in compiled code.
FIRST = """
import subprocess, sys, time
from etw_lightning import companions
companions._PATIENCE = 0.1
companions.start_companions()
words = [[sys.executable, "-c", one] for one in sys.argv[1:]]
from lightning.pytorch.strategies.launchers import subprocess_script
subprocess_script._launch_process_observer([subprocess.Popen(one) for one in words])
time.sleep(30)
"""
COMPANION = """
import os, time
from etw_lightning.companions import end_with_first
end_with_first()
print(os.getpid(), flush=True)
time.sleep(30)
"""
WAITING = "import time; time.sleep(30)"


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
    _, printed = (process := start(WAITING, source)).communicate(timeout=25)
    assert (process.returncode, printed.count("\n")) == (status, 1)
    assert said in printed


def test_no_process_is_left_behind():
    process = start(COMPANION)
    companion = int(process.stdout.readline())
    process.kill()
    process.wait()
    deadline = time.monotonic() + 10
    while is_alive(companion) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_alive(companion)


def is_alive(number):
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{number}/stat") as file:
        return file.read().rsplit(")", 1)[1].split()[0] != "Z"


def test_a_process_of_another_launcher_is_left_alone(monkeypatch):
    monkeypatch.setattr(companions, "_start", pytest.fail)
    monkeypatch.delenv("ETW_FIRST_PROCESS", raising=False)
    companions.end_with_first()
    monkeypatch.setenv("ETW_FIRST_PROCESS", str(os.getpid()))
    companions.end_with_first()
