"""A folder with checkpoints of an unfinished run: what goes on from them, and what is refused."""

import json
import os
import shutil
import signal

import pytest
from faults import Fault, checkpoint_names, left_behind, run_forked
from filelock import FileLock

from etw_lightning.runs import resume

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")

STEP = "etw_lightning.training.module:UnlearningModule.training_step"
SAVED = [f"step-{step:08d}" for step in (1, 2, 3)]


@pytest.fixture(scope="module")
def unfinished(words, tmp_path_factory, cache):
    """Folder of a run that was killed behind its third step."""
    folder = tmp_path_factory.mktemp("unfinished") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ETW_CACHE", str(cache))
        more = ["--checkpoints.every_n_steps=1", f"--output_dir={folder}"]
        assert run_forked([*words, *more], Fault(STEP, 7, signal.SIGKILL)) == -9
    assert checkpoint_names(folder) == SAVED
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
    assert checkpoint_names(stopped.folder) == SAVED, "nothing is lost"


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
    "damage", [cut, *(pytest.param(one, marks=pytest.mark.slow) for one in (flip, lose_manifest))]
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
    assert checkpoint_names(appearing.folder) == SAVED, "nothing is lost"


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
