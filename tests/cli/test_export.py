"""``export`` turns any checkpoint into a folder, and says in one line what it can't use."""

import json
import os
import shutil

import pytest
import torch
import yaml
from toy import write_manifest

from etw_lightning.models.checkpoints import describe_model
from etw_lightning.models.fixed_text import text_logits
from etw_lightning.models.loading import load_model


@pytest.fixture
def run(tiny_model_dir, tmp_path):
    """A run's folder with a checkpoint of two steps; the second holds other weights."""
    lm = load_model(str(tiny_model_dir))
    for step in (3, 10):
        weights = {f"scorer.lm.{name}": value * step for name, value in lm.state_dict().items()}
        folder = tmp_path / "run" / "checkpoints" / f"step-{step:08d}"
        folder.mkdir(parents=True)
        content = {"state_dict": weights, **describe_model(lm, str(tiny_model_dir))}
        torch.save(content, folder / "state.ckpt")
        write_manifest(folder)
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("given", "step"),
    [("", 10), ("checkpoints/step-00000003", 3), ("checkpoints/step-00000003/state.ckpt", 3)],
)
def test_a_checkpoint_becomes_a_folder(command, run, given, step):
    result = command("export", f"--checkpoint={run / given}")
    folder = run / "exported" / f"step-{step:08d}"
    assert (result.status, result.err) == (0, "")
    assert result.out.endswith(f"model: {folder}\n")
    checkpoint = run / "checkpoints" / f"step-{step:08d}" / "state.ckpt"
    saved = load_model(str(folder))
    assert torch.equal(text_logits(saved), text_logits(load_model(str(checkpoint))))


def test_weights_are_saved_in_the_precision_that_is_asked_for(command, run, tmp_path):
    folder = tmp_path / "narrow"
    words = ("--dtype=bfloat16", f"--output_dir={folder}")
    assert command("export", f"--checkpoint={run}", *words).status == 0
    assert load_model(str(folder), "bfloat16").dtype == torch.bfloat16
    assert (folder / "model.safetensors").stat().st_size < 0.6 * (
        run / "checkpoints" / "step-00000010" / "state.ckpt"
    ).stat().st_size


def test_a_folder_is_replaced_only_if_asked(command, run):
    assert command("export", f"--checkpoint={run}").status == 0
    again = command("export", f"--checkpoint={run}")
    assert (again.status, again.out) == (2, "")
    assert "output_dir" in again.err
    assert "--overwrite" in again.err
    assert command("export", f"--checkpoint={run}", "--overwrite").status == 0


@pytest.mark.parametrize("place", ["", "checkpoints", "notes", "config.yaml"])
def test_only_a_model_is_replaced(command, run, place):
    (run / "notes").mkdir()
    (run / "notes" / "diary.txt").write_text("kept")
    (run / "config.yaml").write_text("kept")
    before = sorted(run.rglob("*"))
    words = (f"--checkpoint={run}", f"--output_dir={run / place}", "--overwrite")
    result = command("export", *words)
    assert (result.status, result.out) == (2, "")
    assert result.err.startswith(f"error: output_dir {str(run / place)!r} is no saved model")
    assert result.err.count("\n") == 1
    assert sorted(run.rglob("*")) == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "export: the following arguments are required: --checkpoint"),
        (["--checkpoint=gone.ckpt"], "checkpoint: checkpoint 'gone.ckpt' is not there"),
        (["--checkpoint=."], "checkpoint: checkpoint '.' holds no checkpoint"),
        (["--checkpoint=weights.bin"], "checkpoint: checkpoint 'weights.bin' is no .ckpt file; "),
        (["--checkpoint=x", "--out=y"], "export: unrecognized arguments: --out=y"),
    ],
)
def test_what_cannot_be_used_is_one_line(command, tmp_path, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights.bin").touch()
    result = command("export", *words)
    assert (result.status, result.out) == (2, "")
    assert result.err.startswith(f"error: {said}")
    assert result.err.count("\n") == 1


class Act:
    """A pickle of this runs something when it is read."""

    def __reduce__(self):
        return (os.mkdir, ("was_run",))


def test_nothing_in_a_checkpoint_is_run(command, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = run / "checkpoints" / "step-00000010" / "state.ckpt"
    torch.save({**torch.load(path, weights_only=True), "more": Act()}, path)
    write_manifest(path.parent)
    result = command("export", f"--checkpoint={run}")
    assert result.status == 2
    assert "holds posix.mkdir, more than weights and plain values" in result.err
    assert not (tmp_path / "was_run").exists()


def test_an_adapter_in_shards_is_refused_before_anything_is_read(command, configs, tmp_path):
    result = command(
        "fit",
        f"--config={configs / 'quickstart.yaml'}",
        f"--config={configs / 'strategy' / 'fsdp.yaml'}",
        "--model.pretrained=gone/away",
        "--model.peft={peft_type: LORA, r: 4, target_modules: all-linear}",
        "--trainer.accelerator=cpu",
        f"--output_dir={tmp_path / 'run'}",
    )
    assert result.status == 2
    assert result.err.startswith("error: model.peft must be null with trainer.strategy ModelPara")
    assert not (tmp_path / "run").exists()


@pytest.fixture
def finished(tiny_model_dir, tmp_path):
    """A finished run's folder that has kept no checkpoint."""
    folder = tmp_path / "done"
    shutil.copytree(tiny_model_dir, folder / "model")
    (folder / "results.json").write_text(json.dumps({"finished": True, "command": "fit"}))
    return folder


def test_a_finished_run_hands_on_its_model(command, finished, tmp_path):
    result = command("export", f"--checkpoint={finished}")
    assert (result.status, result.err) == (0, "")
    assert result.out.splitlines()[-1] == f"model: {finished / 'model'}"
    assert not (finished / "exported").exists()
    copy = tmp_path / "a" / "copy"
    result = command("export", f"--checkpoint={finished}", f"--output_dir={copy}")
    assert (result.status, result.err) == (0, "")
    assert result.out.splitlines()[-1] == f"model: {copy}"
    files = {path.name: path.read_bytes() for path in (finished / "model").iterdir()}
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == files
    assert [path.name for path in copy.parent.iterdir()] == ["copy"]
    # As of a checkpoint: not over another one, and in another precision if asked.
    again = ("export", f"--checkpoint={finished}", f"--output_dir={copy}")
    assert command(*again).status == 2
    assert command(*again, "--overwrite", "--dtype=bfloat16").status == 0
    assert load_model(str(copy), "bfloat16").dtype == torch.bfloat16
    assert (copy / "model.safetensors").stat().st_size < 0.6 * len(files["model.safetensors"])


def test_what_can_not_be_handed_on_is_one_line(command, finished):
    place = finished / "model"
    result = command("export", f"--checkpoint={finished}", "--dtype=bfloat16")
    assert result.status == 2
    assert "give --output_dir for a copy" in result.err
    result = command("export", f"--checkpoint={finished}", f"--output_dir={place}", "--overwrite")
    assert result.status == 2
    assert "is where the model is" in result.err
    (finished / "results.json").write_text(json.dumps({"finished": False}))
    result = command("export", f"--checkpoint={finished}")
    assert result.status == 2
    assert "holds no checkpoint" in result.err


def test_a_task_vector_is_taken_the_other_way(
    command, tmp_path, monkeypatch, tiny_model_dir, retain_model_dir
):
    """The "fine-tuned" model has .9 of each weight, so that going the other way gives 1.1."""
    from safetensors.torch import load_file

    monkeypatch.chdir(tmp_path)
    run = tmp_path / "tuned"
    shutil.copytree(retain_model_dir, run / "model")
    settings = {"model": {"pretrained": str(tiny_model_dir), "forget": None}}
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    outcome = command("export", "--checkpoint", run, "--negate", "1", "--output_dir", "moved")
    assert (outcome.status, outcome.err) == (0, "")
    start, moved = (
        load_file(folder / "model.safetensors") for folder in (tiny_model_dir, tmp_path / "moved")
    )
    tuned = load_file(retain_model_dir / "model.safetensors")
    for name, weight in start.items():
        wanted = weight.double() - (tuned[name].double() - weight.double())
        assert torch.equal(moved[name], wanted.to(weight.dtype)), name
    again = command("export", "--checkpoint", run, "--negate", "1", "--output_dir", "moved")
    assert again.status == 2
    assert "is there already" in again.err
    # Neither the run's own model nor the one that it began with is ever replaced.
    for place in (run / "model", tiny_model_dir):
        words = ("--negate", "1", "--output_dir", place, "--overwrite")
        said = command("export", "--checkpoint", run, *words)
        assert (said.status, said.out) == (2, "")
        assert said.err == (
            f"error: output_dir {str(place)!r} is where the model is; give another folder.\n"
        )
        assert load_file(place / "model.safetensors").keys() == start.keys()
    for place, wrong in (
        ("", "output_dir must be a folder; got ''"),
        (run / "config.yaml" / "x", "output_dir must be a folder; '"),
    ):
        said = command("export", "--checkpoint", run, "--negate", "1", "--output_dir", place)
        assert (said.status, said.err.count("\n")) == (2, 1)
        assert said.err.startswith(f"error: {wrong}")
    for odd in ({"model": 3}, {"model": settings["model"], "seed_everything": "x"}):
        (run / "config.yaml").write_text(yaml.safe_dump(odd))
        said = command("export", "--checkpoint", run, "--negate", "1", "--output_dir", "more")
        assert said.err.startswith("error: negate: checkpoint '")
    (run / "config.yaml").write_text(yaml.safe_dump({"model": {"pretrained": "x", "forget": {}}}))
    other = command("export", "--checkpoint", run, "--negate", "0.5", "--output_dir", "more")
    assert other.status == 2
    assert "must be the folder of a finished run of fit that fine-tuned" in other.err
    assert command("export", "--checkpoint", run, "--negate", "0").err == (
        "error: export: argument --negate: must be a number > 0; got '0'; export --help lists what "
        "there is.\n"
    )
