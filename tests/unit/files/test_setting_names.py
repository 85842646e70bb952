"""A setting that has two names is told under the one that was typed."""

import warnings

import pytest

from etw_lightning.commands import attack as command
from etw_lightning.commands.quiet import be_quiet
from etw_lightning.files.setting_names import as_typed, renamed
from etw_lightning.schema import InputError

TOLD = "Lower model.lr or model.forget_weight, not model.forget_weights."


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["fit", "--model.lambda", "0.3"], "model.lambda"),
        (["fit", "--model.lambda=0.3"], "model.lambda"),
        (["model.lambda"], "model.lambda"),
        (["fit", "--model.forget_weight", "0.3"], "model.forget_weight"),
        # Under both names: of the last one typed, which counts, nothing is known here.
        (["--model.lambda=1", "--model.forget_weight=2"], "model.forget_weight"),
        (["--data.root", "runs/model.lambda"], "model.forget_weight"),
        ([], "model.forget_weight"),
    ],
)
def test_the_forget_terms_weight_is_named_as_it_was_typed(words, name):
    told = TOLD.replace("model.forget_weight,", f"{name},")
    assert as_typed(TOLD, words) == told


def test_a_lambda_of_auto_is_told_as_such():
    said = "model.forget_unit gradient can't be had; model.forget_unit loss can."
    own = "model.lambda auto can't be had; model.forget_unit loss can."
    assert as_typed(said, ["--model.lambda", "auto"]) == own
    assert as_typed(said, ["--model.lambda=auto"]) == own
    assert as_typed(said, ["--model.lambda", "1"]) == said
    assert as_typed(said, ["--model.lambda=auto", "--model.forget_unit=gradient"]) == said


def test_an_argument_of_a_class_is_named_as_it_was_typed():
    said = "model.weighting.temperature must be > 0."
    typed = "model.weighting.init_args.temperature"
    assert as_typed(said, [f"--{typed}=-1"]) == f"{typed} must be > 0."
    assert as_typed(said, [typed, "model.weighting.temperature"]) == said
    assert as_typed(said, ["model.weighting.temperature"]) == said


def test_what_stands_within_a_setting_is_renamed_with_it():
    names = {"data.rows": "requests.rows", "data.root": "root"}
    assert renamed("data.rows.a: my.data.root, data.root.", names) == (
        "requests.rows.a: my.data.root, root."
    )


def test_warnings_are_told_so_too(monkeypatch):
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    with warnings.catch_warnings():
        be_quiet(["fit", "--model.lambda", "3"])
        line = warnings.formatwarning(UserWarning("a larger model.forget_weight"), None, "", 0)
    assert line == "warning: a larger model.lambda\n"


def test_attack_names_its_own_options(monkeypatch):
    def refuse(*_, **__):
        raise InputError("data.retain_model 'x' is no model: --data.retain_model DIR")

    monkeypatch.setattr("etw_lightning.reports.finished_runs.read_run", refuse)
    with pytest.raises(InputError) as error:
        command.attack(["relearn", "--model", "run"])
    assert str(error.value) == "retain_model 'x' is no model: --retain_model DIR"
