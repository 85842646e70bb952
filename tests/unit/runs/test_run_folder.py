"""The folder of a run: a new one has a name of its own."""

import re

import pytest

from etw_lightning.runs.folder import run_folder
from etw_lightning.schema import InputError


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ETW_RUN_STAMP", raising=False)
    monkeypatch.setattr("time.strftime", lambda form: "20300102-030405")


def test_two_runs_of_one_second_have_folders_of_their_own(tmp_path, monkeypatch):
    names = []
    for _ in range(3):
        monkeypatch.delenv("ETW_RUN_STAMP", raising=False)
        folder = run_folder(None, ["configs/some.yaml"])
        folder.mkdir(parents=True)
        names.append(folder.as_posix())
    stem = "runs/some/20300102-030405"
    assert names == [stem, f"{stem}-1", f"{stem}-2"]


def test_processes_that_a_run_starts_take_its_folder():
    first = run_folder(None, ["some.yaml"])
    first.mkdir(parents=True)
    assert run_folder(None, ["some.yaml"]) == first


def test_a_run_that_is_found_is_gone_on_with(tmp_path):
    found = tmp_path / "runs" / "some" / "earlier"
    assert run_folder(None, ["some.yaml"], unfinished=lambda parent: found).name == "earlier"


def test_evaluations_are_told_by_their_name():
    assert re.fullmatch(r"evaluate-\d+-\d+", run_folder(None, ["a.yaml"], "evaluate-").name)


@pytest.mark.parametrize("name", ["", "  "])
def test_no_name_is_no_folder(name):
    with pytest.raises(InputError, match="output_dir must be a folder"):
        run_folder(name, [])
