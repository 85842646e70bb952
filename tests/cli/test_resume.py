"""A run that was broken off, started again with the same command, ends as if it never had been."""

import functools
import json
import os
import shutil
import signal

import pytest
from curves import curves
from faults import Fault, left_behind, run_forked, run_until
from filelock import FileLock

from etw_lightning.files.checkpoint_folder import saved_checkpoints, what_is_wrong
from etw_lightning.models.loading import load_model, load_tokenizer
from etw_lightning.runs import resume

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")

CALLBACKS = [{"class_path": "ForgetQuality"}, {"class_path": "ModelUtility"}]
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


@pytest.fixture(scope="module")
def dropout_dir(tmp_path_factory, tiny_model_dir):
    """A layer of the tiny model with attention dropout, so that random states matter."""
    folder = tmp_path_factory.mktemp("dropout") / "model"
    lm = load_model(str(tiny_model_dir))
    lm.model.layers = lm.model.layers[:1]
    lm.config.update({"num_hidden_layers": 1, "attention_dropout": 0.3})
    lm.save_pretrained(folder)
    load_tokenizer(str(tiny_model_dir)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def words(configs, tofu_dir, dropout_dir, retain_model_dir):
    """Three epochs of two optimiser steps of two micro-batches each."""
    return [
        "fit",
        f"--config={configs / 'tofu_forget10.yaml'}",
        f"--data.root={tofu_dir}",
        f"--model.pretrained={dropout_dir}",
        f"--data.retain_model={retain_model_dir}",
        "--data.system_prompt=null",
        "--data.template_kwargs=null",
        "--data.max_new_tokens=4",
        "--data.batch_size=1",
        "--model.lr=1e-3",
        "--model.schedule=linear",
        "--trainer.precision=32-true",
        "--trainer.accumulate_grad_batches=2",
        "--trainer.max_epochs=3",
        f"--trainer.callbacks={json.dumps(CALLBACKS)}",
        "--trainer.enable_progress_bar=false",
    ]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _shared_cache(cache, tmp_path, monkeypatch):
    """Scores of the model before training are made once; runs write below an empty folder."""
    monkeypatch.setenv("ETW_CACHE", str(cache))
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def expected(words, tmp_path_factory, cache):
    """What a run leaves behind that nothing breaks off."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ETW_CACHE", str(cache))
        log = folder / "log"
        status = run_forked([*words, f"--output_dir={folder / 'run'}"], log=log)
        assert status == 0, log.read_text()
    return left_behind(folder / "run")


@pytest.fixture
def run(words, tmp_path):
    """Run the command in a folder, with a fault; return its exit status and what it printed."""
    folder = tmp_path / "run"

    def call(*more, fault=None):
        log = tmp_path / "log"
        log.unlink(missing_ok=True)
        status = run_forked([*words, f"--output_dir={folder}", *more], fault, log)
        return status, log.read_text() if log.exists() else ""

    call.folder = folder
    return call


def names(folder):
    place = folder / "checkpoints"
    return sorted(one.name for one in place.iterdir()) if place.is_dir() else []


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
    whole = [name for name in names(run.folder) if name.startswith("step-")]
    assert whole == names(run.folder), "nothing half-written is left"
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
    saved = [name for name in names(run.folder) if name == f"step-{step or 0:08d}"]
    assert len(saved) == (step is not None), names(run.folder)
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
        return len(names(folder)) > 1

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
    assert names(run.folder) == ["step-00000002", "step-00000003"]
    assert not list(run.folder.glob("hpc_ckpt*"))
    assert not (tmp_path / "asked").exists()
    assert run()[0] == 0
    assert left_behind(run.folder) == expected


SAVED = [f"step-{step:08d}" for step in (1, 2, 3)]


@pytest.fixture(scope="module")
def unfinished(words, tmp_path_factory, cache):
    """Folder of a run that was killed behind its third step."""
    folder = tmp_path_factory.mktemp("unfinished") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ETW_CACHE", str(cache))
        more = ["--checkpoints.every_n_steps=1", f"--output_dir={folder}"]
        assert run_forked([*words, *more], Fault(STEP, 7, signal.SIGKILL)) == -9
    assert names(folder) == SAVED
    return folder


@pytest.fixture
def stopped(run, unfinished):
    """A run that has checkpoints of steps 1 to 3, the second the best, and is not finished."""
    shutil.copytree(unfinished, run.folder)
    return run


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--model.lambda=0.9", "model.lambda is 0.9, but"),
        ("--model.lr=1e-4", "model.lr is 0.0001, but"),
        ("--model.weighting.temperature=2", "model.weighting.temperature is 2.0, but"),
        ("--trainer.max_epochs=4", "trainer.max_epochs is 4, but"),
        ("--seed_everything=1", "seed_everything is 1, but"),
    ],
)
def test_a_changed_flag_beside_a_checkpoint_is_named(stopped, flag, said):
    status, printed = stopped(flag)
    assert status == 2
    line = printed.strip().splitlines()[-1]
    assert line.startswith(f"error: {said} ")
    assert "is a checkpoint of a run with" in line
    assert "--overwrite" in line
    assert names(stopped.folder) == SAVED, "nothing is lost"


def test_overwrite_starts_anew(stopped):
    status, said = stopped("--overwrite", "--model.lambda=0.9")
    assert status == 0, said
    assert "going on from" not in said
    assert json.loads((stopped.folder / "results.json").read_text())["steps"] == 6


def test_overwrite_does_not_throw_away_what_is_unfinished(stopped, expected):
    """A cluster's job that is requeued with it must not start from zero each time."""
    status, said = stopped("--overwrite")
    assert status == 0, said
    assert "going on from" in said
    assert left_behind(stopped.folder) == expected
    status, said = stopped("--overwrite")
    assert status == 0, said
    assert "going on from" not in said, "that one was finished"
    assert left_behind(stopped.folder) == expected


def test_ckpt_path_and_checkpoints_of_its_own_contradict(stopped):
    path = stopped.folder / "checkpoints" / "step-00000002" / "state.ckpt"
    status, said = stopped(f"--ckpt_path={path}")
    assert status == 2
    assert "ckpt_path" in said.splitlines()[-1]
    assert "has checkpoints of its own" in said


def test_a_run_from_another_ones_checkpoint_goes_on_from_its_own(stopped, words, tmp_path):
    # A step of the other run is named by its folder.
    path = stopped.folder / "checkpoints" / "step-00000002"
    log = tmp_path / "other"
    more = [*words, "--checkpoints.every_n_steps=1", f"--ckpt_path={path}"]
    broken, whole = tmp_path / "broken", tmp_path / "whole"
    assert run_forked([*more, f"--output_dir={broken}"], Fault(STEP, 5), log) == -9
    assert run_forked([*more, f"--output_dir={broken}"], log=log) == 0, log.read_text()
    assert f"going on from {broken / 'checkpoints' / 'step-00000004'}" in log.read_text()
    assert run_forked([*more, f"--output_dir={whole}"], log=log) == 0, log.read_text()
    assert left_behind(broken) == left_behind(whole)


def cut(folder):
    state = folder / "state.ckpt"
    state.write_bytes(state.read_bytes()[:-100])


def flip(folder):
    content = bytearray((folder / "state.ckpt").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "state.ckpt").write_bytes(content)


def lose_manifest(folder):
    (folder / "manifest.json").unlink()


@pytest.mark.parametrize(
    "damage", [cut, *(pytest.param(one, marks=SLOW) for one in (flip, lose_manifest))]
)
def test_of_a_torn_checkpoint_the_one_before_is_used(stopped, expected, damage):
    place = stopped.folder / "checkpoints"
    damage(place / "step-00000003")
    status, said = stopped()
    assert status == 0, said
    assert (place / "step-00000003.damaged").is_dir()
    assert f"warning: checkpoint {place / 'step-00000003'} is damaged" in said
    assert f"going on from {place / 'step-00000002'}" in said
    assert left_behind(stopped.folder) == expected


def test_another_number_of_processes_is_refused(stopped):
    manifest = stopped.folder / "checkpoints" / "step-00000003" / "manifest.json"
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**content, "world_size": 4}))
    status, said = stopped()
    assert status == 2
    assert "make 1 processes, but checkpoint" in said
    assert "is of a run with 4;" in said


def test_two_runs_do_not_share_a_folder(stopped, monkeypatch):
    monkeypatch.setattr(resume, "_PATIENCE", 0.1)
    with FileLock(stopped.folder / ".lock"):
        status, said = stopped()
    assert status == 2
    assert "is in use by another run" in said


@pytest.fixture
def appearing(run, stopped, monkeypatch):
    """A run whose checkpoints are there once another command has waited for its folder."""
    place, aside = run.folder / "checkpoints", run.folder.parent / "aside"
    place.rename(aside)
    original = resume.lock_run

    def wait(folder):
        aside.rename(place)
        return original(folder)

    monkeypatch.setattr("etw_lightning.commands.run.fit.lock_run", wait)
    return run


def test_a_run_that_waited_for_another_takes_nothing_from_it(appearing):
    """The other one, killed by now, has made its first checkpoints in the meantime."""
    (appearing.folder / ".lock").unlink()
    status, said = appearing("--checkpoints.every_n_steps=1")
    assert status == 2, said
    assert "has just been written to by another run" in said.splitlines()[-1]
    assert names(appearing.folder) == SAVED, "nothing is lost"


def test_a_run_goes_on_from_what_it_waited_for(appearing, expected):
    """A job that is requeued while the one before still writes its checkpoint."""
    status, said = appearing("--checkpoints.every_n_steps=1")
    assert status == 0, said
    assert "going on from" in said
    assert left_behind(appearing.folder) == expected


def test_without_a_folder_the_same_command_finds_its_own(words, tmp_path, monkeypatch, expected):
    monkeypatch.delenv("ETW_RUN_STAMP", raising=False)
    every, log = "--checkpoints.every_n_steps=1", tmp_path / "log"
    assert run_forked([*words, every], Fault(STEP, 6)) == -9
    (folder,) = (tmp_path / "runs" / "tofu_forget10").iterdir()
    assert run_forked([*words, every, "--model.lambda=0.9"], log=log) == 0, log.read_text()
    assert "going on" not in log.read_text(), "that is another run"
    assert run_forked([*words, every], log=log) == 0, log.read_text()
    assert left_behind(folder) == expected
    assert len(list((tmp_path / "runs" / "tofu_forget10").iterdir())) == 2


def test_processes_of_another_launcher_need_a_folder(words, tmp_path, monkeypatch):
    monkeypatch.delenv("ETW_RUN_STAMP", raising=False)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    log = tmp_path / "log"
    assert run_forked(words, log=log) == 2
    assert "output_dir must be given where srun" in log.read_text()


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
    assert names(run.folder)[-1] == "step-00000006", "until it is finished"
    status, said = run(*flags)
    assert status == 0, said
    assert names(run.folder) == []
    assert "checkpoints" not in json.loads((run.folder / "results.json").read_text())


def test_a_checkpoint_by_the_clock(run):
    status, said = run("--checkpoints.every_n_minutes=1e-6", "--checkpoints.keep=9")
    assert status == 0, said
    assert names(run.folder) == [f"step-{step:08d}" for step in range(1, 7)]


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
