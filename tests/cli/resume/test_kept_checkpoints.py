"""Which checkpoints a run makes and keeps, by its settings."""

import json
import os

import pytest
from faults import Fault, checkpoint_names

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")


def test_the_last_and_the_best_are_kept(run):
    more = ["--checkpoints.every_n_steps=1", "--checkpoints.keep=1"]
    more += ["--checkpoints.best=forget_probability", "--checkpoints.utility_floor=null"]
    status, said = run(*more)
    assert status == 0, said
    results = json.loads((run.folder / "results.json").read_text())
    history = [one for one in results["history"] if one["epoch"]]
    best = min(history, key=lambda one: one["metrics"]["forget_probability"]["value"])["step"]
    kept = sorted({f"checkpoints/step-{step:08d}" for step in (best, 6)})
    if best == 6:  # then the last but the best is the one before
        kept.insert(0, "checkpoints/step-00000005")
    assert results["checkpoints"] == {
        "kept": kept,
        "best": f"checkpoints/step-{best:08d}",
    }


def test_a_run_that_saves_no_model_keeps_no_checkpoint(run):
    flags = ("--checkpoints.every_n_steps=1", "--no_save_model")
    assert run(*flags, fault=Fault("etw_lightning.runs.run_end:write_results", 1))[0] == -9
    assert checkpoint_names(run.folder)[-1] == "step-00000006", "until it is finished"
    status, said = run(*flags)
    assert status == 0, said
    assert checkpoint_names(run.folder) == []
    assert "checkpoints" not in json.loads((run.folder / "results.json").read_text())


def test_a_checkpoint_by_the_clock(run):
    status, said = run("--checkpoints.every_n_minutes=1e-6", "--checkpoints.keep=9")
    assert status == 0, said
    assert checkpoint_names(run.folder) == [f"step-{step:08d}" for step in range(1, 7)]


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--checkpoints.best=forget_qualty", "checkpoints.best must be a number of a metric"),
        ("--checkpoints.keep=0", "checkpoints.keep"),
        ("--checkpoints.every_n_minutes=-1", "checkpoints.every_n_minutes"),
    ],
)
def test_a_refused_setting_is_one_line(run, flag, said):
    status, printed = run(flag)
    assert (status, printed.count("\n")) == (2, 1)
    assert said in printed
    assert not run.folder.exists()
