"""How the quickstart's two models come about: side by side, once, whatever the threads."""

import sys
import threading
from dataclasses import replace

import pytest
import torch

from etw_lightning.training import quickstart_models
from etw_lightning.training.quickstart_models import Recipe, resolve

RECIPE = Recipe(passes=1, hidden_size=16, intermediate_size=32, num_layers=1, vocab_size=600)


class Beside:
    """Stands for the process of the other model, which it makes on a thread."""

    def __init__(self, command, **_):
        self.terminated = False
        self._work = threading.Thread(target=exec, args=(command[-1], {}))
        self._work.start()

    def terminate(self):
        self.terminated = True

    def wait(self):
        self._work.join(timeout=60)


@pytest.fixture
def made(tmp_path, monkeypatch):
    """What was trained, in its order, with the threads it had; files stand for the models."""
    monkeypatch.setenv("ETW_CACHE", str(tmp_path))
    found = []

    def train(role, folder, recipe):
        found.append((role, recipe.seed, torch.get_num_threads()))
        (folder / role).mkdir()

    monkeypatch.setattr(quickstart_models, "_train", train)
    return found


@pytest.fixture
def started(monkeypatch):
    """Processes that were started."""
    found = []

    def start(*args, **settings):
        found.append(Beside(*args, **settings))
        return found[-1]

    monkeypatch.setattr(quickstart_models.subprocess, "Popen", start)
    return found


@pytest.mark.parametrize("cores", [1, 2])
def test_the_other_model_is_made_beside_if_a_core_is_free(made, started, cores, monkeypatch):
    monkeypatch.setattr(quickstart_models, "num_cores", lambda: cores)
    folder = resolve("quickstart:target", 3)
    assert len(started) == cores - 1
    assert {role for role, *_ in made} == ({"target"} if cores == 1 else {"target", "retain"})
    assert {seed for _, seed, _ in made} == {3}
    other = resolve("quickstart:retain", 3)
    assert (folder.endswith("target"), other.endswith("retain")) == (True, True)
    assert sorted(role for role, *_ in made) == ["retain", "target"]
    assert len(started) == cores - 1


def test_a_model_that_is_missing_beside_one_that_is_there_is_made_alone(made, started, monkeypatch):
    monkeypatch.setattr(quickstart_models, "num_cores", lambda: 1)
    resolve("quickstart:retain", 0)
    monkeypatch.setattr(quickstart_models, "num_cores", lambda: 2)
    resolve("quickstart:target", 0)
    assert [role for role, *_ in made] == ["retain", "target"]
    assert not started


def test_a_broken_off_training_ends_the_other_one(made, started, monkeypatch):
    monkeypatch.setattr(quickstart_models, "num_cores", lambda: 2)

    def stop(*_):
        if threading.current_thread() is threading.main_thread():
            raise KeyboardInterrupt

    monkeypatch.setattr(quickstart_models, "_train", stop)
    with pytest.raises(KeyboardInterrupt):
        resolve("quickstart:target", 0)
    assert [process.terminated for process in started] == [True]


def test_an_interruption_while_the_other_one_is_waited_for_ends_it(made, started, monkeypatch):
    monkeypatch.setattr(quickstart_models, "num_cores", lambda: 2)
    waits = []

    def wait(process):
        waits.append(process)
        process._work.join(timeout=60)
        if len(waits) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(Beside, "wait", wait)
    with pytest.raises(KeyboardInterrupt):
        resolve("quickstart:target", 0)
    assert [process.terminated for process in started] == [True]
    assert len(waits) == 2


def test_where_no_process_can_be_started_one_model_is_made_after_the_other(made, monkeypatch):
    monkeypatch.setattr(quickstart_models, "num_cores", lambda: 2)
    monkeypatch.setattr(quickstart_models.sys, "executable", "")
    resolve("quickstart:target", 0)
    resolve("quickstart:retain", 0)
    assert [role for role, *_ in made] == ["target", "retain"]


def test_the_other_process_takes_no_module_of_the_current_folder(tmp_path, monkeypatch):
    """Where this one does not: a module of a library's name there would end it."""
    (tmp_path / "lightning.py").write_text("raise SystemExit")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    monkeypatch.setenv("ETW_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(quickstart_models, "num_cores", lambda: 2)
    recipe = replace(RECIPE, seed=2)
    with quickstart_models._other_beside("target", recipe):
        pass
    assert (quickstart_models._folder(recipe) / "retain").is_dir()


def test_one_thread_trains_and_the_runs_own_are_there_again(made, monkeypatch):
    monkeypatch.setattr(quickstart_models, "num_cores", lambda: 1)
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        resolve("quickstart:target", 0)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)
    assert made == [("target", 0, 1)]


@pytest.mark.slow
def test_two_processes_make_what_one_makes(tmp_path, monkeypatch):
    """To the byte: of small models, one of them by a process of its own."""
    weights = {}
    for cores in (1, 2):
        monkeypatch.setenv("ETW_CACHE", str(tmp_path / str(cores)))
        monkeypatch.setattr(quickstart_models, "num_cores", lambda cores=cores: cores)
        recipe = replace(RECIPE, seed=1)
        with quickstart_models._other_beside("target", recipe):
            quickstart_models._make("target", recipe)
        folder = quickstart_models._folder(recipe)
        assert (folder / "retain").is_dir() == (cores == 2)
        quickstart_models._make("retain", recipe)
        weights[cores] = [
            (folder / role / "model.safetensors").read_bytes() for role in ("target", "retain")
        ]
    assert weights[1] == weights[2]
