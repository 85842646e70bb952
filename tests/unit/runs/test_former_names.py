"""A checkpoint from before classes moved is of the same run as one with their present names."""

from types import SimpleNamespace

import pytest

from etw_lightning.runs.key import run_key
from etw_lightning.runs.newer_options import is_of
from etw_lightning.runs.resume import check_same_run, is_same_run, manifest_of
from etw_lightning.schema import InputError

OLD = "etw_lightning.retain_budget.RetainBudget"
NEW = "etw_lightning.callbacks.RetainBudget"


def settings(path, budget=0.1):
    callback = {"class_path": path, "init_args": {"budget": budget}}
    return {"seed_everything": 3, "conventions": "definition", "trainer": {"callbacks": [callback]}}


def saved(path):
    """A checkpoint whose manifest was written under these names, with the key of that time."""
    manifest = {**manifest_of(settings(NEW)), "key": "0" * 12}
    manifest["settings"]["trainer"] = settings(path)["trainer"]
    return SimpleNamespace(manifest=manifest, folder="step-1")


def test_names_do_not_count_and_values_do():
    assert run_key(settings(OLD)) == run_key(settings(NEW))
    assert run_key(settings(OLD)) != run_key(settings(OLD, 0.2))


@pytest.mark.parametrize("path", [OLD, NEW])
def test_the_run_goes_on(path):
    now = settings(NEW)
    assert is_of(saved(path).manifest, now)
    assert is_same_run(now, saved(path))
    check_same_run(now, saved(path))


def test_a_run_of_other_values_does_not():
    now = settings(NEW, 0.2)
    assert not is_of(saved(OLD).manifest, now)
    with pytest.raises(InputError, match=r"^trainer\.callbacks is .* checkpoint of a run with"):
        check_same_run(now, saved(OLD))
