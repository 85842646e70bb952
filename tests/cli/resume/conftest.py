"""A run of three epochs that tests break off, and what it leaves where nothing does."""

import json

import pytest
from faults import left_behind, run_forked

from etw_lightning.models.loading import load_model, load_tokenizer

CALLBACKS = [{"class_path": "ForgetQuality"}, {"class_path": "ModelUtility"}]


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
