"""A run that was broken off, started again with the same command, ends as if it never had been."""

import functools
import json
import os
import signal

import pytest
from curves import curves
from faults import Fault, checkpoint_names, left_behind, run_forked, run_until

from etw_lightning.files.checkpoint_folder import saved_checkpoints, what_is_wrong

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")

STEP = "etw_lightning.training.module:UnlearningModule.training_step"
SCORING = "etw_lightning.training.scoring_module:score_in_turn"

#: What another test does at another place of the same code.
SLOW = pytest.mark.slow
#: Where SIGKILL ends a run; of 12 micro-batches, 6 steps and as many checkpoints.
KILLED = {
    "before the first checkpoint": (STEP, 2),
    "within a step's micro-batches": (STEP, 6),
    "in the last step of an epoch": (STEP, 8),
    "in an evaluation": (SCORING, 10),
    "while a checkpoint is written": ("etw_lightning.runs.checkpointing:describe_files", 4),
    "before one has its name": ("etw_lightning.files.checkpoint_folder:_sync_folder", 7),
    "before one is let go": ("etw_lightning.runs.checkpointing:remove", 1),
    "while the model is saved": ("etw_lightning.models.export:text_logits", 1),
    "before the results": ("etw_lightning.runs.run_end:write_results", 1),
}
#: Other places near those that are tried by default; several kills in a row meet them all.
BY_STEP = {
    "before the first checkpoint",
    "within a step's micro-batches",
    "in the last step of an epoch",
    "before one has its name",
    "while the model is saved",
}
#: Where a signal asks a run to stop, and the step it is to be at in the end.
STOPPED = {
    "in a micro-batch": (STEP, 5, signal.SIGTERM, 3),
    "by Slurm's signal": (STEP, 6, signal.SIGUSR1, 3),
    "in the last step of an epoch": (STEP, 3, signal.SIGTERM, 2),
    "in an evaluation": (SCORING, 10, signal.SIGTERM, 4),
    "in the last step": (STEP, 12, signal.SIGTERM, 6),
    "in the first evaluation": (
        "etw_lightning.callbacks.evaluation:ForgetQuality.compute",
        1,
        15,
        None,
    ),
    "while the model is saved": (
        "etw_lightning.models.export:text_logits",
        1,
        signal.SIGTERM,
        None,
    ),
}
BY_SLURM = {"in a micro-batch", "by Slurm's signal", "while the model is saved"}


@pytest.mark.parametrize(
    ("place", "count"),
    [
        pytest.param(*case, id=name, marks=SLOW if name in BY_STEP else ())
        for name, case in KILLED.items()
    ],
)
def test_a_killed_run_ends_bit_equal(run, expected, place, count):
    every = "--checkpoints.every_n_steps=1"
    assert run(every, fault=Fault(place, count)) == (-9, "")
    status, said = run(every)
    assert status == 0, said
    whole = [name for name in checkpoint_names(run.folder) if name.startswith("step-")]
    assert whole == checkpoint_names(run.folder), "nothing half-written is left"
    assert ("going on from" in said) == (count != 2 or place != STEP)
    assert left_behind(run.folder) == expected
    # Nor is a step told of twice, or left out, where curves are looked at.
    scalars, texts = curves(run.folder)
    history = [one["step"] for one in left_behind(run.folder)[1]["history"]]
    for tag in ("losses/total", "losses/forget", "losses/retain", "weights/max"):
        assert [step for step, _ in scalars[tag]] == list(range(6)), tag
    assert [step for step, _ in scalars["forgetting/forget_quality"]] == history
    assert texts["samples/forget/text_summary"] == history


@pytest.mark.slow
@pytest.mark.parametrize(
    "counts",
    [
        [1, 3, 2, 3],
        [3, 1, 2, 2, 3, 1, 3, 3, 2, 1],
    ],
    ids=len,
)
def test_kills_in_a_row(run, expected, counts):
    """Micro-batches of each start: a start of three makes one of the six steps."""
    every = "--checkpoints.every_n_steps=1"
    statuses = [run(every, fault=Fault(STEP, count))[0] for count in counts]
    assert set(statuses) == {-9}
    status, said = run(every)
    assert status == 0, said
    assert left_behind(run.folder) == expected


@pytest.mark.parametrize(
    ("place", "count", "number", "step"),
    [
        # Slurm's own test stops a run there, by its signal.
        pytest.param(*case, id=name, marks=SLOW if name in BY_SLURM else ())
        for name, case in STOPPED.items()
    ],
)
def test_a_run_that_is_asked_to_stop_does_so_where_it_can_go_on(
    run, expected, place, count, number, step
):
    status, said = run(fault=Fault(place, count, number))
    assert status == 143, said
    saved = [name for name in checkpoint_names(run.folder) if name == f"step-{step or 0:08d}"]
    assert len(saved) == (step is not None), checkpoint_names(run.folder)
    if step is not None:
        name = signal.Signals(number).name
        assert f"stopped by {name} after step {step}; the same command goes on from" in said
    status, said = run()
    assert status == 0, said
    assert "nothing is pushed down" not in said
    assert left_behind(run.folder) == expected


def test_a_signal_from_outside_reaches_the_program(words, tmp_path):
    """As a scheduler sends it, at a moment of its own."""
    folder, log = tmp_path / "run", tmp_path / "log"
    score = {"class_path": "ForgetQuality", "init_args": {"every_n_epochs": 500}}
    more = ["--trainer.max_epochs=500", f"--trainer.callbacks={json.dumps([score])}"]
    more += ["--checkpoints.every_n_steps=1", f"--output_dir={folder}"]

    def is_time(_):
        return len(checkpoint_names(folder)) > 1

    assert run_until([*words, *more], is_time, signal.SIGTERM, log) == 143
    (newest,) = saved_checkpoints(folder)[-1:]
    assert what_is_wrong(newest) == ""
    end = f"stopped by SIGTERM after step {newest.step}; the same command goes on from"
    assert end in log.read_text()
    assert not list((folder / "checkpoints").glob(".*"))


#: Evaluations within epochs of four micro-batches, the fault, and the status that it leads to.
WITHIN = {
    "killed behind one": ("--trainer.val_check_interval=2", (STEP, 4), -9),
    "stopped in one": ("--trainer.val_check_interval=2", (SCORING, 10, signal.SIGTERM), 143),
    "stopped before one": ("--trainer.val_check_interval=2", (STEP, 6, signal.SIGTERM), 143),
    "stopped in one within a step": (
        "--trainer.val_check_interval=3",
        ("etw_lightning.callbacks.evaluation:ForgetQuality.compute", 2, signal.SIGTERM),
        143,
    ),
    "stopped in the last step": ("--trainer.max_steps=3", (STEP, 6, signal.SIGTERM), 143),
}


#: Tried by default.
DEFAULT = ("stopped in one within a step",)


@pytest.fixture(scope="module")
def whole_within(words, tmp_path_factory):
    """What a run with more flags leaves behind that nothing breaks off."""

    @functools.cache
    def run_whole(*more):
        folder = tmp_path_factory.mktemp("whole")
        log = folder / "log"
        status = run_forked([*words, *more, f"--output_dir={folder / 'run'}"], log=log)
        assert status == 0, log.read_text()
        return left_behind(folder / "run")

    return run_whole


@pytest.mark.parametrize(
    ("flag", "fault", "ends"),
    [
        pytest.param(*case, id=name, marks=() if name in DEFAULT else SLOW)
        for name, case in WITHIN.items()
    ],
)
def test_an_evaluation_within_an_epoch_is_not_lost(run, whole_within, flag, fault, ends):
    more = [flag, "--checkpoints.every_n_steps=1"]
    whole = whole_within(*more)
    assert run(*more, fault=Fault(*fault))[0] == ends
    status, said = run(*more)
    assert status == 0, said
    assert "going on from" in said
    assert left_behind(run.folder) == whole


@pytest.mark.parametrize(
    ("place", "count"),
    [
        pytest.param(STEP, 5, marks=SLOW),
        (SCORING, 1),
        pytest.param("etw_lightning.models.export:text_logits", 1, marks=SLOW),
    ],
)
def test_an_interrupted_run_says_so_and_goes_on(run, expected, place, count):
    every = "--checkpoints.every_n_steps=1"
    status, said = run(every, fault=Fault(place, count, signal.SIGINT))
    assert status == 130, said
    assert "stopped by SIGINT" in said.splitlines()[-1]
    assert run(every)[0] == 0
    assert left_behind(run.folder) == expected


def test_a_stop_where_no_checkpoint_is_made_is_told(run):
    status, said = run(
        fault=Fault("etw_lightning.commands.run.fit:warning_of_memory", 1, signal.SIGTERM)
    )
    assert status == 143
    assert said.splitlines()[-1].startswith("stopped by SIGTERM; the same command goes on from")


def test_slurm_is_not_asked_to_requeue_from_inside(run, expected, monkeypatch, tmp_path):
    """Lightning would save in its signal handler, call scontrol and go on training."""
    fake = tmp_path / "bin" / "scontrol"
    fake.parent.mkdir()
    fake.write_text(f"#!/bin/sh\ntouch {tmp_path / 'asked'}\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")
    job = {"JOB_ID": 7, "JOB_NAME": "train", "NTASKS": 1, "NTASKS_PER_NODE": 1, "PROCID": 0}
    more = {"LOCALID": 0, "NODEID": 0, "NNODES": 1, "ARRAY_JOB_ID": 7, "ARRAY_TASK_ID": 3}
    for name, value in {**job, **more}.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    status, said = run(fault=Fault(STEP, 5, signal.SIGUSR1))
    assert status == 143, said
    assert checkpoint_names(run.folder) == ["step-00000002", "step-00000003"]
    assert not list(run.folder.glob("hpc_ckpt*"))
    assert not (tmp_path / "asked").exists()
    assert run()[0] == 0
    assert left_behind(run.folder) == expected
