"""A path of a class of the user's own that is wrong is told why, wherever it stands."""

import shlex

import pytest

from etw_lightning.commands import parser
from etw_lightning.commands.refusals.own_classes import check_classes
from etw_lightning.schema import InputError

PARTS = """
from etw_lightning.weighting import TokenWeighting

number = 3


class Fitting(TokenWeighting):
    def __call__(self, signals):
        return signals.logps


class Another:
    pass
"""
#: A path, and what is said of it.
WRONG = {
    "own_absent.Mine": "there is no module 'own_absent'; put own_absent.py into",
    "own_parts_here.Mine": "module 'own_parts_here' has no 'Mine'.",
    "own_parts_here.number": "must be a subclass of etw_lightning.weighting.TokenWeighting; got 3.",
    "own_parts_here.Another": (
        "must be a subclass of etw_lightning.weighting.TokenWeighting; got a class of no "
        "other. Write class Another(TokenWeighting), with its methods."
    ),
    "own_raises.Mine": (
        "module 'own_raises' can't be imported: KeyError: 'table' (own_raises.py, line 2)."
    ),
    "own_broken.Mine": "module 'own_broken' can't be imported: invalid syntax",
}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_parts_here.py").write_text(PARTS)
    (tmp_path / "own_raises.py").write_text("held = {}\nheld['table']\n")
    (tmp_path / "own_broken.py").write_text("class Broken(:\n")
    return tmp_path


def refusal(*words, files=()):
    with pytest.raises(InputError) as caught:
        check_classes(words, files, parser.CLASSES)
    return str(caught.value)


@pytest.mark.parametrize("path", WRONG)
@pytest.mark.parametrize(
    "typed",
    [
        "--model.weighting PATH",
        "--model.weighting=PATH",
        "--model.weighting.class_path PATH",
        "'--model.weighting={class_path: PATH, init_args: {power: 2}}'",
    ],
)
def test_a_wrong_path_is_told_why(path, typed):
    words = shlex.split(typed.replace("PATH", path))
    message = refusal("fit", *words, "--model.lr=3")
    assert message.startswith(f"model.weighting {path!r}")
    assert WRONG[path] in message


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("model: {forget: own_raises.Mine}", "model.forget"),
        ("trainer:\n  callbacks:\n  - class_path: own_raises.Mine", "trainer.callbacks"),
        ("trainer: {logger: {class_path: own_raises.Mine}}", "trainer.logger"),
        (
            "model: {weighting: {class_path: Random, init_args: {of: own_raises.Mine}}}",
            "model.weighting.of",
        ),
    ],
)
def test_so_it_is_in_a_file(folder, text, key):
    path = folder / "run.yaml"
    path.write_text(text)
    assert refusal("fit", files=[path]).startswith(f"{key} 'own_raises.Mine': module 'own_raises' ")


def test_what_fits_is_left_to_the_parser_and_texts_that_look_like_paths_are_no_classes(folder):
    words = [
        "--model.weighting=own_parts_here.Fitting",
        "--model.weighting.table=own_raises.csv",
        "--trainer.callbacks+=lightning.pytorch.callbacks.Timer",
        "--model.retain=NNL",
        "--model.forget=etw_lightning.forget.Absent",
        "--data.forget_split=own_raises.csv",
        "--model.weighting",
    ]
    check_classes(words, [], parser.CLASSES)
