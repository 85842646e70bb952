"""What is typed: names of configurations, classes that change, home folders, lengths, folders."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from faults import PATIENCE, Fault, run_forked

from etw_lightning.files.checkpoint_folder import saved_checkpoints
from etw_lightning.files.places import expand_home
from etw_lightning.runs.place import check_place
from etw_lightning.schema import InputError

ROOT = Path(__file__).resolve().parents[2]
QUICKSTART = ("fit", "--config", "quickstart")


@pytest.fixture
def model(command, home):
    """Return the settings of the model that words of ``fit`` give."""

    def call(*words):
        result = command(*QUICKSTART, *words, "--print_config")
        assert (result.status, result.err) == (0, ""), result.err
        return yaml.safe_load(result.out)["model"]

    return call


def test_a_file_of_the_current_folder_is_told(command, home):
    Path("quickstart.yaml").write_text((ROOT / "configs/quickstart.yaml").read_text())
    result = command(*QUICKSTART, "--print_config")
    assert result.status == 0
    assert result.err == (
        "note: config quickstart: 'quickstart.yaml' of the current folder is read, not the shipped "
        f"configuration of this name, '{ROOT / 'configs/quickstart.yaml'}'\n"
    )


def test_configurations_are_copied_to_be_edited_and_never_replaced(command, home):
    assert command("configs", "--copy", "mine").status == 0
    copied = {path.relative_to("mine") for path in Path("mine").rglob("*.yaml")}
    assert copied == {
        path.relative_to(ROOT / "configs") for path in (ROOT / "configs").rglob("*.yaml")
    }
    Path("mine/quickstart.yaml").write_text("edited: 1\n")
    result = command("configs", "--copy", "mine")
    assert result.status == 2
    assert "is there already, so nothing was copied" in result.err
    assert Path("mine/quickstart.yaml").read_text() == "edited: 1\n"


def test_an_objective_of_another_class_has_its_own_numbers(model):
    held = model("--config", "method/npo", "--model.forget", "SimNPO")["forget"]
    assert held == {
        "class_path": "etw_lightning.forget.SimNPO",
        "init_args": {"beta": 4.5, "delta": 0.0},
    }


def test_so_has_one_in_a_later_file_and_one_within_another(model):
    Path("later.yaml").write_text("model: {forget: {class_path: SimNPO, init_args: {delta: 1}}}\n")
    held = model("--config", "method/npo", "--config", "later.yaml")
    assert held["forget"]["init_args"] == {"beta": 4.5, "delta": 1.0}
    Path("inner.yaml").write_text(
        "model: {weighting: {class_path: Random, init_args: {seed: 3, of: "
        "{class_path: WGA, init_args: {beta: 3}}}}}\n"
    )
    held = model("--config", "inner.yaml", "--model.weighting.of", "TNPO")["weighting"]
    assert held["init_args"]["seed"] == 3
    assert held["init_args"]["of"]["init_args"]["beta"] == 4.0


def test_the_same_class_named_again_keeps_what_was_written_for_it(model):
    Path("later.yaml").write_text("model: {forget: {init_args: {beta: 3.0}}}\n")
    files = ("--config", "method/npo", "--config", "later.yaml")
    for words in ((), ("--model.forget", "NPO"), ("--model.forget", "etw_lightning.forget.NPO")):
        assert model(*files, *words)["forget"]["init_args"] == {"beta": 3.0}


def test_a_number_typed_before_its_class_is_refused(command, home):
    words = ("--config", "method/npo", "--model.forget.beta", "3", "--model.forget", "SimNPO")
    result = command(*QUICKSTART, *words)
    assert (result.status, result.err) == (
        2,
        "error: model.forget.beta stands before model.forget, which chooses its class anew; give "
        "it behind.\n",
    )


def test_a_key_that_stands_twice_in_a_file_is_refused(command, home):
    Path("twice.yaml").write_text("model:\n  lr: 1.0e-4\n  warmup: 0.1\n  lr: 2.0e-4\n")
    result = command(*QUICKSTART, "--config", "twice.yaml", "--print_config")
    assert (result.status, result.err) == (
        2,
        "error: model.lr must stand once in a mapping of config 'twice.yaml'; got it in line 2 and "
        "again in line 4.\n",
    )


def test_a_class_under_its_former_name_is_refused(command, home):
    words = ("--trainer.callbacks+=etw_lightning.retain_budget.RetainBudget",)
    result = command(*QUICKSTART, *words)
    assert (result.status, result.err) == (
        2,
        "error: command line: etw_lightning.retain_budget.RetainBudget is now "
        "etw_lightning.callbacks.RetainBudget; write that name.\n",
    )


def test_a_tilde_is_the_home_folder_where_a_path_begins(monkeypatch):
    monkeypatch.setenv("HOME", "/users/me")
    settings = {
        "output_dir": "~/runs",
        "data": {"root": "~", "split": "~/a.jsonl+~/b.jsonl", "system_prompt": "~/x"},
        "callbacks": [{"init_args": {"path": "~/x"}}, "~"],
        "name": "a~/b",
        "count": 3,
    }
    expand_home(settings)
    assert settings == {
        "output_dir": "/users/me/runs",
        "data": {
            "root": "/users/me",
            "split": "/users/me/a.jsonl+/users/me/b.jsonl",
            "system_prompt": "~/x",
        },
        "callbacks": [{"init_args": {"path": "/users/me/x"}}, "/users/me"],
        "name": "a~/b",
        "count": 3,
    }


def test_paths_of_a_run_may_begin_with_a_tilde(command, tofu_args, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = tmp_path / "runs" / "one"
    folder.mkdir(parents=True)
    (folder / "note.txt").write_text("mine")
    result = command(*tofu_args, "--output_dir=~/runs/one")
    assert result.err == (
        f"error: output_dir '{folder}' is no run's folder: it holds 'note.txt', which no run has "
        "written; give a new folder, or an empty one.\n"
    )
    result = command(*tofu_args, "--data.root=~/absent", "--output_dir=~/runs/two")
    assert f"data.root must be a folder; '{tmp_path}/absent' is not one." in result.err


@pytest.mark.parametrize(
    "names",
    [(), (".hidden",), ("slurm-3.out", "log.txt"), ("results.json", "note.txt"), (".lock",)],
)
def test_folders_that_a_run_may_use(tmp_path, names):
    for name in names:
        (tmp_path / name).write_text("")
    check_place(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)


@pytest.mark.parametrize("name", ["model/config.json", "thesis.tex", "checkpoints/best.pt"])
def test_a_folder_of_others_is_not_overwritten(tmp_path, name):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("mine")
    with pytest.raises(InputError, match=f"it holds '{name.split('/')[0]}', which no run has"):
        check_place(tmp_path)
    assert path.read_text() == "mine"


# The same command again, and Ctrl-C.

STEP = "etw_lightning.training.module:UnlearningModule.training_step"


@pytest.fixture
def words(tofu_args, retain_model_dir, tmp_path):
    """A whole run of six steps."""
    callbacks = json.dumps([{"class_path": "ForgetQuality"}])
    flags = (f"--data.retain_model={retain_model_dir}", f"--trainer.callbacks={callbacks}")
    return [*tofu_args, *flags, f"--output_dir={tmp_path / 'run'}"]


def test_a_run_killed_after_its_results_is_finished(command, words, tmp_path):
    place = "etw_lightning.commands.run.fit:remove_checkpoints"
    killed = [*words, "--no_save_model"]
    assert run_forked(killed, Fault(place, 1, signal.SIGKILL)) == -9
    results = (tmp_path / "run" / "results.json").read_bytes()
    again = command(*killed)
    assert (again.status, again.err) == (0, "")
    assert again.out.startswith(f"finished: {tmp_path / 'run' / 'results.json'} holds this run's")
    assert (tmp_path / "run" / "results.json").read_bytes() == results
    assert not saved_checkpoints(tmp_path / "run")
    other = command(*killed, "--model.lr=3e-3")
    assert other.status == 2
    assert "holds a finished run; give another folder" in other.err
    # This one is to leave a model, which is not there.
    assert command(*words).status == 2


def test_ctrl_c_writes_a_checkpoint_and_the_same_command_goes_on(words, tmp_path):
    log = tmp_path / "log"
    assert run_forked(words, Fault(STEP, 2, signal.SIGINT), log) == 130
    (saved,) = saved_checkpoints(tmp_path / "run")
    assert log.read_text().splitlines()[-1] == (
        f"stopped by SIGINT after step {saved.step}; the same command goes on from {saved.folder}"
    )
    assert run_forked(words, log=log) == 0
    assert f"going on from {saved.folder}" in log.read_text()


def test_a_command_in_the_process_of_the_tests_leaves_its_signals_as_they_were(command, home):
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    before = [signal.getsignal(number) for number in numbers]
    (home / "others").mkdir()
    (home / "others" / "notes.txt").write_text("mine")
    words = ("fit", "--config", "quickstart", "--output_dir", home / "others", "--overwrite")
    assert command(*words).status == 2
    assert [signal.getsignal(number) for number in numbers] == before


def _as_at_a_terminal():
    """Let Ctrl-C reach a process, which it does not where tests run in the background."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


#: Runs the program, and interrupts it as soon as it imports a module.
_INTERRUPTED = """
import os, runpy, signal, sys

class Interrupts:
    def find_spec(self, name, *_):
        if name == sys.argv[1]:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupts())
runpy.run_module("etw_lightning", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize("module", ["etw_lightning.commands.entry", "yaml"])
def test_ctrl_c_before_anything_is_imported_is_one_line(home, module):
    result = subprocess.run(
        [sys.executable, "-c", _INTERRUPTED, module, "--version"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
        preexec_fn=_as_at_a_terminal,
    )
    assert (result.returncode, result.stdout) == (130, "")
    assert result.stderr == "interrupted; nothing was written\n"


def test_nothing_slow_is_imported_before_ctrl_c_is_one_line():
    """Until the handler stands Python answers it, with a traceback."""
    what = "import etw_lightning.__main__, sys; print(*sys.modules)"
    result = subprocess.run(
        [sys.executable, "-S", "-c", what],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
    )
    assert {"etw_lightning.__main__", "signal"} <= set(result.stdout.split())
    assert not {"typing", "re", "importlib"} & set(result.stdout.split())


@pytest.mark.parametrize("command_name", ["fit", "evaluate"])
def test_ctrl_c_in_the_first_second_is_one_line(home, command_name):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-m", "etw_lightning", command_name, "--config", "quickstart"],
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        preexec_fn=_as_at_a_terminal,
    )
    maps = Path(f"/proc/{process.pid}/maps")
    # Libraries are being imported once the first of them has been mapped.
    while "libtorch" not in maps.read_text():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert len(said.splitlines()) == 1, said
    assert said.startswith("stopped by SIGINT before the first step; ")
