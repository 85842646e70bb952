"""Hostile files and names at the command line: one line, status 2, nothing run; and no network."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import hostile
import pytest
import torch
import yaml

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def marker(tmp_path):
    """A folder that no test may leave behind."""
    return tmp_path / "marker"


@pytest.fixture
def refused(refused, marker, monkeypatch):
    """Run a command that must be refused, without code being run; return the line."""
    # Whoever asks at the terminal would be told yes.
    monkeypatch.setattr("builtins.input", lambda *_: "y")

    def call(*args):
        line = refused(*args)
        assert not marker.exists()
        return line

    return call


@pytest.fixture
def fit(tofu_args, retain_model_dir):
    """``fit`` on TOFU's shape, that lacks nothing."""
    return [*tofu_args, f"--data.retain_model={retain_model_dir}"]


# Pickles.


@pytest.mark.parametrize("write", [hostile.pickled, hostile.saved])
def test_a_hostile_checkpoint(refused, marker, fit, args, write):
    path = write(marker, marker.parent / "evil.ckpt")
    start = f"--model.pretrained={path}"
    assert refused(*fit, start).startswith("model.pretrained: checkpoint ")
    assert refused(*args, start).startswith("model.pretrained: checkpoint ")
    assert refused(*fit, f"--ckpt_path={path}").startswith("ckpt_path: checkpoint ")
    unsafe = refused(*fit, f"--ckpt_path={path}", "--weights_only=false")
    assert unsafe.startswith("weights_only must be true or left out; got false")


def test_settings_in_a_checkpoint_do_not_reach_the_run(refused, marker, fit):
    own = {"config": "{}", "generation_config": "{}", "tokenizer": "t", "settings": "{}"}
    stolen = {"pretrained": "quickstart:evil", "optimizer": {"class_path": "os.mkdir"}}
    content = {"state_dict": {}, "etw_lightning": own, "hyper_parameters": stolen}
    torch.save(content, marker.parent / "evil.ckpt")
    text = refused(*fit, f"--ckpt_path={marker.parent / 'evil.ckpt'}")
    assert "holds other weights than this run trains" in text


def test_a_classifier_with_pickled_weights(refused, marker, args, classifier_dir):
    folder = hostile.with_pickled_weights(marker, classifier_dir, marker.parent / "pickled")
    text = refused(*args, "--metrics=gibberish", f"--gibberish_classifier={folder}")
    assert text.startswith(
        f"gibberish_classifier {str(folder)!r} holds its weights in pytorch_mode"
    )


@pytest.mark.parametrize("name", ["records/forget.jsonl.gz", "records/provenance.json"])
def test_a_pickle_in_a_results_folder(refused, marker, tofu_args, name):
    folder = marker.parent / "results"
    hostile.pickled(marker, folder / "records" / "forget.jsonl.gz")
    hostile.pickled(marker, folder / name)
    text = refused(*tofu_args, f"--data.retain_results={folder}")
    assert text.startswith(f"data.retain_results: {folder}/records/")


@pytest.mark.parametrize("given", [[], ["--ckpt_path={own}"]])
def test_a_checkpoint_that_lightning_finds_by_itself(refused, marker, fit, monkeypatch, given):
    folder = marker.parent / "run"
    path = hostile.saved(marker, folder / "hpc_ckpt_1.ckpt")
    for name, value in {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "1", "SLURM_JOB_NAME": "x"}.items():
        monkeypatch.setenv(name, value)
    words = [word.format(own=path) for word in given]
    text = refused(*fit, *words, f"--output_dir={folder}")
    assert text.startswith(f"output_dir {str(folder)!r} holds 'hpc_ckpt_1.ckpt', which Lightning")


# Models and data sets.


def with_code(*places):
    return hostile.with_code(*places, model_type="evil")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (hostile.with_pickled_weights, "holds its weights in pytorch_model.bin, a pickle"),
        (with_code, "could not be loaded: it needs Python code of its own"),
    ],
)
def test_a_hostile_model(refused, marker, fit, args, tiny_model_dir, make, said):
    folder = make(marker, tiny_model_dir, marker.parent / "m")
    start, retain = "model.pretrained", "data.retain_model"
    for words, key in ((fit, start), (args, start), (fit, retain)):
        assert refused(*words, f"--{key}={folder}").startswith(f"{key} {str(folder)!r} {said}")


def test_a_data_set_with_a_script(refused, marker, fit):
    folder = marker.parent / "evil"
    folder.mkdir()
    (folder / "evil.py").write_text(hostile.code(marker))
    text = refused(*fit, "--data.root=null", f"--data.hub={folder}")
    assert "Dataset scripts are no longer supported" in text


# Names that leave their folder.


@pytest.mark.parametrize("subcommand", ["fit", "check"])
@pytest.mark.parametrize("key", ["annotations", "forget_split"])
def test_marked_rows_that_name_a_file_elsewhere(refused, marker, fit, subcommand, key):
    """A folder of ``save_to_disk`` lists its files; this one lists another's."""
    from datasets import Dataset

    folder, other = marker.parent / "saved", marker.parent / "other"
    for place in (folder, other):
        Dataset.from_list([{"question": "q", "answer": "a"}]).save_to_disk(place)
    state = json.loads((folder / "state.json").read_text())
    state["_data_files"] = [{"filename": f"../other/{state['_data_files'][0]['filename']}"}]
    (folder / "state.json").write_text(json.dumps(state))
    more = []
    if key == "forget_split":
        more = ["--data.benchmark=jsonl", "--data.retain_split=retain90"]
        more += ["--trainer.callbacks=null", "--data.retain_model=null"]
        shutil.copytree(folder, marker.parent / "root" / "saved")
        shutil.copytree(other, marker.parent / "root" / "other")
        more += [f"--data.root={marker.parent / 'root'}"]
    given = "saved" if key == "forget_split" else folder
    text = refused(subcommand, *fit[1:], *more, f"--data.{key}={given}")
    assert "names '../other/data-00000-of-00001.arrow', which is not in it; give a folder" in text


@pytest.mark.parametrize("subcommand", ["fit", "check"])
@pytest.mark.parametrize("write", [hostile.pickled, hostile.saved])
def test_marked_rows_in_a_pickle(refused, marker, fit, subcommand, write):
    path = write(marker, marker.parent / "marks.pth")
    text = refused(subcommand, *fit[1:], f"--data.annotations={path}")
    assert text.startswith(f"data.annotations: {str(path)!r} can't be read (")


@pytest.mark.parametrize("key", ["forget_split", "retain_split"])
@pytest.mark.parametrize("benchmark", ["tofu", "jsonl"])
def test_a_split_outside_of_the_data(refused, fit, tofu_dir, key, benchmark):
    words = [f"--data.benchmark={benchmark}", "--data.forget_split=forget10"]
    words += ["--data.retain_split=retain90", f"--data.{key}=../../evil"]
    if benchmark == "jsonl":
        words += ["--trainer.callbacks=null", "--data.retain_model=null"]
    assert refused(*fit, *words).startswith(f"data.{key} must ")


@pytest.mark.parametrize("name", ["../../evil", "/evil"])
def test_a_set_outside_of_a_results_folder(refused, marker, tofu_args, name):
    from etw_lightning.schema import Record
    from etw_lightning.scoring.retain_results import save_records

    folder = marker.parent / "results"
    row = Record("forget", "forget/0", "a", answer_loss=1.0)
    save_records(folder, {"forget": [row]})
    (folder / "records" / "provenance.json").write_text(json.dumps({"sets": {name: {}}}))
    text = refused(*tofu_args, f"--data.retain_results={folder}")
    assert f"provenance.json names a set {name!r}; " in text


@pytest.mark.parametrize("name", ["records", "model", "config.yaml"])
def test_a_run_is_not_written_through_a_link(refused, marker, fit, name):
    folder, outside = marker.parent / "run", marker.parent / "outside"
    folder.mkdir()
    outside.mkdir()
    (folder / name).symlink_to(outside)
    text = refused(*fit, f"--output_dir={folder}", "--overwrite")
    assert text.startswith(
        f"output_dir {str(folder)!r} holds the link {name!r}, which leads out of"
    )
    assert list(outside.iterdir()) == []


SAVES = "lightning.pytorch.callbacks.ModelCheckpoint"
CSV = "lightning.pytorch.loggers.CSVLogger"
SIMPLE = "lightning.pytorch.profilers.SimpleProfiler"


@pytest.mark.parametrize(
    ("key", "setting"),
    [
        ("default_root_dir", "{out}"),
        ("logger.save_dir", {"logger": {"class_path": CSV, "init_args": {"save_dir": "{out}"}}}),
        (
            "callbacks.dirpath",
            {"callbacks": [{"class_path": SAVES, "init_args": {"dirpath": "{out}"}}]},
        ),
        (
            "callbacks.filename",
            {"callbacks": [{"class_path": SAVES, "init_args": {"filename": "../../evil"}}]},
        ),
        (
            "profiler.dirpath",
            {"profiler": {"class_path": SIMPLE, "init_args": {"dirpath": "{out}"}}},
        ),
    ],
)
def test_a_config_that_writes_elsewhere(refused, marker, fit, key, setting):
    outside = marker.parent / "outside"
    given = setting if isinstance(setting, dict) else {key: setting}
    text = yaml.safe_dump({"trainer": given}).replace("{out}", str(outside))
    (marker.parent / "over.yaml").write_text(text)
    said = refused(fit[0], fit[1], "--config", marker.parent / "over.yaml", *fit[2:])
    assert said.startswith(f"trainer.{key} must ")
    assert not outside.exists()


@pytest.fixture
def sweep(marker, home, monkeypatch):
    """Write a sweep's file beside the current folder, with these changes; return its words."""
    method = marker.parent / "etw.yaml"
    method.write_text("model: {}\n")

    def call(command, **changes):
        given = {
            "config": [str(ROOT / "configs" / "quickstart.yaml")],
            "output_dir": str(marker.parent / "sweep"),
            "methods": {str(method): {}},
            "select": {"maximise": "forget_quality"},
        }
        path = marker.parent / "sweep.yaml"
        path.write_text(yaml.safe_dump({**given, **changes}))
        return ["sweep", command, "--config", path]

    return call


@pytest.mark.parametrize("name", ["plan", "run", "report"])
def test_a_sweep_that_writes_elsewhere(refused, marker, sweep, name):
    text = refused(*sweep(name, grid={"model./../../evil": [1, 2]}))
    assert "which is no folder of the sweep's own" in text
    (marker.parent / "...yaml").write_text("model: {}\n")
    text = refused(*sweep(name, methods={str(marker.parent / "...yaml"): {}}))
    assert text.startswith("methods...: a run would write to '..', which is no folder of the sweep")
    (marker.parent / "sweep").mkdir()
    (marker.parent / "outside").mkdir()
    (marker.parent / "sweep" / "etw").symlink_to(marker.parent / "outside")
    assert refused(*sweep(name)).startswith("run 'etw' of the sweep: ")


# The network.

#: Imported by every Python before anything else: whoever looks up a host, or calls one that is not
#: this machine, is written down and fails.
GUARD = """
import os
import socket


def note(what):
    with open(os.environ["TRIED"], "a") as log:
        log.write(f"{what}\\n")
    raise OSError(f"no network here: {what}")


def guarded(call):
    def checked(self, address):
        if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1"):
            note(f"connect {address}")
        return call(self, address)

    return checked


def look_up(host, *args, **kwargs):
    if host not in (None, "", "localhost", "127.0.0.1", "::1"):
        note(f"look up {host}")
    return resolve(host, *args, **kwargs)


resolve = socket.getaddrinfo
socket.getaddrinfo = look_up
socket.gethostbyname = lambda host: note(f"look up {host}")
socket.socket.connect = guarded(socket.socket.connect)
socket.socket.connect_ex = guarded(socket.socket.connect_ex)
"""
NAME = "somebody/tiny"


@pytest.fixture
def guarded(tmp_path, home, tiny_model_dir):
    """Run words in a process without a network, whose cache holds a model; and what it tried."""
    (tmp_path / "guard").mkdir()
    (tmp_path / "guard" / "sitecustomize.py").write_text(GUARD)
    store, commit = tmp_path / "hf" / "hub" / "models--somebody--tiny", "0123456789" * 4
    shutil.copytree(tiny_model_dir, store / "snapshots" / commit)
    (store / "refs").mkdir()
    (store / "refs" / "main").write_text(commit)
    tried = tmp_path / "tried"

    def call(*words, **variables):
        given = {
            "PYTHONPATH": f"{tmp_path / 'guard'}:{ROOT}",
            "HF_HOME": str(tmp_path / "hf"),
            "TRIED": str(tried),
            **variables,
        }
        result = subprocess.run(
            [sys.executable, *map(str, words)],
            env=os.environ | given,
            capture_output=True,
            text=True,
            check=False,
        )
        return result, tried.read_text().splitlines() if tried.exists() else []

    return call


def test_the_guard_sees_who_calls(guarded):
    source = "from etw_lightning.files.hub import hub_answers; print(hub_answers())"
    result, tried = guarded("-c", source, HF_HUB_OFFLINE="0")
    assert result.stdout == "False\n", result.stderr
    assert tried == ["look up huggingface.co"]


@pytest.mark.parametrize("offline", ["0", pytest.param("1", marks=pytest.mark.slow)])
def test_a_run_on_what_is_here_calls_nobody(guarded, fit, home, offline):
    folder = home.parent / "run"
    words = ["-m", "etw_lightning", *fit, "--trainer.max_epochs=1", f"--output_dir={folder}"]
    # A name is looked up, unless that is forbidden; a folder never.
    words += [f"--model.pretrained={NAME}"] if offline == "1" else []
    result, tried = guarded(*words, HF_HUB_OFFLINE=offline)
    assert (result.returncode, tried) == (0, []), result.stderr
    assert json.loads((folder / "results.json").read_text())["finished"] is True


@pytest.mark.slow
def test_a_name_that_is_not_stored_is_one_line_offline(guarded, fit):
    words = ["-m", "etw_lightning", *fit, "--model.pretrained=nobody/nothing"]
    result, tried = guarded(*words, HF_HUB_OFFLINE="1")
    assert (result.returncode, tried) == (2, [])
    assert result.stderr == (
        "error: model.pretrained 'nobody/nothing' could not be loaded: the hub can't be reached "
        "and there is no local copy. Give a folder in Hugging Face layout or a .gguf file: "
        "--model.pretrained DIR\n"
    )
