"""Runs that are started, waited for and counted: programs of one line in the place of ``fit``."""

import os
from pathlib import Path

import pytest

from etw_lightning.sweeps import processes
from etw_lightning.sweeps.processes import Kind, run_all
from etw_lightning.sweeps.runs import Run

#: Leaves a file if it is asked to, says where it is, and ends as it is told.
PROGRAM = """
import os, pathlib, sys
folder, leaves, status = pathlib.Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
if leaves == "leaves":
    (folder / "left").write_text("")
print("threads", os.environ["OMP_NUM_THREADS"])
sys.exit(status)
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run some programs, each as its name says; return how many failed."""
    monkeypatch.setattr(processes, "PROGRAM", ("python", "-c", PROGRAM))
    monkeypatch.chdir(tmp_path)

    def call(*names, jobs=2, goes_on=True):
        runs = []
        for name in names:
            leaves, status, *_ = name.split("-")
            words = (str(tmp_path / name), leaves, status)
            runs.append(Run(name, "", (), (), "", words, tmp_path / name))
        kind = Kind(lambda one: (one.folder / "left").is_file(), lambda _: goes_on)
        return run_all(runs, jobs, kind)

    return call


def test_only_a_run_that_ends_well_and_leaves_its_results_is_done(run, capsys):
    assert run("leaves-0-a", "nothing-0-b", "leaves-3-c", "leaves-0-d") == 2
    out = capsys.readouterr().out
    assert "done leaves-0-a: " in out
    assert "done leaves-0-d: " in out
    for name, status in (("nothing-0-b", 0), ("leaves-3-c", 3)):
        assert f"failed {name}: threads " in out
        assert f"(exit status {status}; " in out


def test_nothing_to_do_is_no_failure(run):
    assert run() == 0


@pytest.mark.parametrize(("goes_on", "stays"), [(True, True), (False, False)])
def test_what_an_earlier_try_left_stays_where_it_is_of_use(run, goes_on, stays):
    old = Path("leaves-0-a")
    old.mkdir()
    (old / "hparams.yaml").write_text("")
    assert run("leaves-0-a", goes_on=goes_on) == 0
    assert (old / "hparams.yaml").exists() == stays


def test_jobs_share_the_cores_unless_it_is_said_how_many_threads_there_are(run, monkeypatch):
    monkeypatch.setattr(processes, "num_cores", lambda: 7)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    run("leaves-0-a", jobs=2)
    assert Path("leaves-0-a", "log.txt").read_text().strip() == "threads 3"
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    run("leaves-0-b", jobs=2)
    assert Path("leaves-0-b", "log.txt").read_text().strip() == "threads 5"
    assert os.environ["OMP_NUM_THREADS"] == "5"
