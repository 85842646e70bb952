"""A configuration is found by its name or its path; one of the current folder wins."""

import importlib
from pathlib import Path

import pytest
import yaml

from etw_lightning.files.config_files import find_config, resolve_words, shipped, shipped_folder
from etw_lightning.files.moved_classes import _NEW, check_current
from etw_lightning.files.yaml_checks import check_once, scalars
from etw_lightning.schema import InputError

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_all_files_are_shipped_complete_runs_first():
    assert shipped_folder() == ROOT / "configs"
    assert set(shipped().values()) == set((ROOT / "configs").rglob("*.yaml"))
    assert ["/" in name for name in shipped()] == sorted("/" in name for name in shipped())


@pytest.mark.parametrize(
    "given", ["method/npo", "method/npo.yaml", "configs/method/npo.yaml", "configs/method/npo"]
)
def test_a_shipped_one_is_found_by_each_of_its_names(given):
    assert find_config(given) == (ROOT / "configs/method/npo.yaml", "")


@pytest.mark.parametrize(
    ("file", "given"),
    [
        ("quickstart.yaml", "quickstart"),
        ("quickstart", "quickstart"),
        ("quickstart.yaml", "quickstart.yaml"),
        ("configs/quickstart.yaml", "quickstart"),
        ("configs/quickstart.yaml", "configs/quickstart.yaml"),
    ],
)
def test_a_file_of_the_current_folder_wins_and_a_line_says_so(here, file, given):
    Path(file).parent.mkdir(exist_ok=True)
    Path(file).write_text("model: {}\n")
    found = find_config(given)
    assert found.path == Path(file)
    assert found.note == (
        f"config {given}: '{file}' of the current folder is read, not the shipped configuration "
        f"of this name, '{ROOT / 'configs/quickstart.yaml'}'"
    )


def test_an_own_file_and_the_shipped_one_itself_need_no_line(here):
    Path("mine.yaml").write_text("model: {}\n")
    (here / "configs").symlink_to(ROOT / "configs")
    for given in ("mine", "mine.yaml", str(here / "mine.yaml"), "quickstart"):
        assert find_config(given).note == ""


def test_the_home_folder_is_known(here, monkeypatch):
    monkeypatch.setenv("HOME", str(here))
    Path("mine.yaml").write_text("model: {}\n")
    assert find_config("~/mine.yaml").path == here / "mine.yaml"


@pytest.mark.parametrize(
    ("given", "near"),
    [
        ("method/npoo", " Did you mean 'method/npo'"),
        ("npo", " Did you mean 'method/npo'"),
        ("configs/methods/npo.yaml", " Did you mean 'method/npo'"),
        ("tofu_forget11", " Did you mean 'tofu_forget10'"),
        ("own_runn.yaml", " Did you mean 'own_run.yaml'?"),
        ("/absent/zzz.yaml", " The command"),
    ],
)
def test_an_absent_file_is_called_absent_and_what_is_near_is_named(given, near):
    Path("own_run.yaml").write_text("model: {}\n")
    with pytest.raises(InputError) as error:
        find_config(given)
    assert str(error.value).startswith(f"config: there is no file '{given}'.{near}")


def test_names_among_words_become_paths():
    words = ["fit", "--config", "quickstart", "-c=method/npo", "--model.lr", "quickstart"]
    path = ROOT / "configs"
    resolved, found = resolve_words(words)
    assert resolved == [
        *("fit", "--config", str(path / "quickstart.yaml")),
        *(f"-c={path / 'method/npo.yaml'}", "--model.lr", "quickstart"),
    ]
    assert [one.path.name for one in found] == ["quickstart.yaml", "npo.yaml"]


def test_settings_in_place_of_a_file_are_left_alone():
    words = ["--config", "{model: {lr: 3}}", "--config=model: {lr: 3}"]
    assert resolve_words(words) == (words, [])


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("a: 1\nb: 2\na: 3\n", "a must stand once in a mapping of it; got it in line 1 and again"),
        ("m:\n  f: {init_args: {b: 1,\n    b: 2}}\n", "m.f.b must stand once"),
        ("t:\n  - {c: 1, c: 1}\n", "t.c must stand once"),
        ("m.l: 1\nm:\n  l: 2\n", "m.l must stand once in a mapping of it; got it in line 1 and"),
        ("m:\n  l: 2\nm.l: 1\n", "m.l must stand once in a mapping of it; got it in line 2 and"),
        ("m: {f: {init_args: {b: 1}, b: 2}}\n", "m.f.b must stand once"),
        ("t:\n  c+: [1]\n  c: [2]\n", "t.c must stand once"),
        ("t: {<<: {a: 1}, <<: {a: 2}}\n", "t.<< must stand once"),
        ("a: &x {b: 1, b: 2}\nc: *x\n", "a.b must stand once"),
        ("a: {'b': 1, \"b\": 2}\n", "a.b must stand once"),
        ("a: {b: {c: 1}, b: {d: 2}}\n", "a.b must stand once"),
        ("a: &x\n  b: [1, *x]\n", "it holds itself: an alias of what begins in line 1 is in it."),
    ],
)
def test_a_key_that_stands_twice_is_refused_by_its_name(text, key):
    with pytest.raises(InputError, match=key.replace(".", "[.]")):
        check_once(yaml.compose(text), "it")


def test_equal_keys_of_two_mappings_are_no_repetition():
    check_once(yaml.compose("a: {x: 1}\nb: {x: 1}\nc: [{x: 1}, {x: 2}]\n"), "it")
    # A mapping that is taken in is changed by what stands beside it, and may be taken in twice.
    check_once(yaml.compose("a: &a {x: 1, y: 2}\nb: {<<: *a, x: 3}\nc: {<<: *a}\n"), "it")


def test_many_aliases_are_looked_at_once():
    lines = ["l0: &l0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]" for n in range(1, 30)]
    check_once(yaml.compose("\n".join(lines)), "it")


@pytest.mark.parametrize("old", _NEW)
def test_each_former_name_leads_to_a_class(old):
    module, _, name = _NEW[old].rpartition(".")
    assert isinstance(getattr(importlib.import_module(module), name), type)
    with pytest.raises(InputError) as error:
        check_current([(old, 0)], "command line")
    assert str(error.value) == f"command line: {old} is now {_NEW[old]}; write that name."


@pytest.mark.parametrize("key", ["weighting", "forget", "retain", "callbacks"])
def test_the_names_that_files_use_are_current(key):
    module = importlib.import_module(f"etw_lightning.{key}")
    texts = [(f"etw_lightning.{key}.{name}", 0) for name in module.__all__]
    assert all(isinstance(getattr(module, name), type) for name in module.__all__)
    check_current(texts, "it")


def test_a_saved_configuration_with_a_former_name_is_refused_by_its_line(here):
    path = here / "config.yaml"
    path.write_text(
        "trainer:\n  callbacks:\n  - class_path: etw_lightning.retain_budget.RetainBudget\n"
    )
    with pytest.raises(InputError, match=r"line 3: etw_lightning\.retain_budget\.RetainBudget is"):
        check_current(scalars(path), f"config {str(path)!r}")
