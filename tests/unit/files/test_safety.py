"""Pickles, foreign code and names that leave their folder: refused in one line, nothing is run."""

import ast
import json
import pickle
import shutil
from pathlib import Path

import hostile
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import etw_lightning
from etw_lightning.benchmarks.source import Source
from etw_lightning.files.foreign_models import check_attention, check_weights
from etw_lightning.files.places import check_links, check_written, is_below, require_inside
from etw_lightning.models.checkpoints import check_resume, checkpoint_model, describe_model
from etw_lightning.models.loading import check_stored, load_config, load_model, load_tokenizer
from etw_lightning.schema import InputError, Record
from etw_lightning.scoring.gibberish_classifier import check_classifier, clean_probabilities
from etw_lightning.scoring.retain_results import load_provenance, load_retain_results, save_records
from etw_lightning.sweeps.grid import Sweep
from etw_lightning.sweeps.rules import Select
from etw_lightning.sweeps.runs import expand


@pytest.fixture
def marker(tmp_path):
    """A folder that no test may leave behind."""
    return tmp_path / "marker"


@pytest.fixture
def refused(marker, monkeypatch):
    """Call what must be refused in one line, without code being run; return the line."""
    # Whoever asks at the terminal would be told yes.
    monkeypatch.setattr("builtins.input", lambda *_: "y")

    def call(function, *args, **kwargs):
        with pytest.raises(InputError) as error:
            function(*args, **kwargs)
        assert not marker.exists()
        text = str(error.value)
        assert "\n" not in text
        return text

    return call


@pytest.mark.parametrize("write", [hostile.pickled, hostile.saved])
def test_the_pickles_are_hostile(marker, tmp_path, write):
    path = write(marker, tmp_path / "evil.ckpt")
    assert not marker.exists()
    if write is hostile.saved:
        torch.load(path, weights_only=False)
    else:
        pickle.loads(path.read_bytes())
    assert marker.exists()


# Pickles.


@pytest.mark.parametrize(
    ("write", "said"),
    [(hostile.pickled, "can't be read"), (hostile.saved, "more than weights and plain values")],
)
def test_a_hostile_checkpoint_is_refused(refused, marker, tmp_path, write, said):
    path = str(write(marker, tmp_path / "evil.ckpt"))
    for load in (load_model, load_config, load_tokenizer):
        text = refused(load, path)
        assert text.startswith(f"model.pretrained: checkpoint {path!r} ")
        assert said in text
    assert said in refused(check_resume, path, {}, ())


def test_pickled_weights_are_refused_with_the_way_to_convert_them(refused, marker, tiny_model_dir):
    folder = hostile.with_pickled_weights(marker, tiny_model_dir, marker.parent / "model")
    text = refused(load_model, str(folder))
    assert text.startswith(f"model.pretrained {str(folder)!r} holds its weights in pytorch_model.b")
    assert f'M.from_pretrained("{folder}").save_pretrained("{folder}")' in text


def test_the_way_to_convert_works(tmp_path, tiny_model_dir):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model_dir, folder)
    model = load_model(str(tiny_model_dir))
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(InputError) as error:
        load_model(str(folder))
    command = str(error.value).partition("python -c '")[2].rstrip("'")
    exec(command, {})
    weights = load_model(str(folder)).state_dict()
    assert weights.keys() == model.state_dict().keys()
    assert all(torch.equal(weights[name], one) for name, one in model.state_dict().items())


def test_a_pickle_beside_safetensors_is_not_read(marker, tmp_path, tiny_model_dir):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model_dir, folder)
    hostile.saved(marker, folder / "pytorch_model.bin")
    hostile.pickled(marker, folder / "training_args.bin")
    load_model(str(folder))
    load_tokenizer(str(folder))
    assert not marker.exists()


def test_an_adapter_with_pickled_weights_is_refused(refused, marker, tiny_model_dir):
    folder = marker.parent / "adapter"
    shutil.copytree(tiny_model_dir, folder)
    settings = {"peft_type": "LORA", "base_model_name_or_path": str(tiny_model_dir), "r": 2}
    text = json.dumps({**settings, "target_modules": ["q_proj"]})
    (folder / "adapter_config.json").write_text(text)
    hostile.saved(marker, folder / "adapter_model.bin")
    said = (
        f"model.pretrained {str(folder)!r} holds an adapter in adapter_model.bin, a pickle, which"
    )
    # With a model beside it, which the library would load and change, and without one.
    assert refused(load_model, str(folder)).startswith(said)
    assert refused(check_stored, str(folder)).startswith(said)
    (folder / "config.json").unlink()
    assert refused(load_model, str(folder)).startswith(said)


def test_a_classifier_with_pickled_weights_is_refused(refused, marker, classifier_dir):
    folder = hostile.with_pickled_weights(marker, classifier_dir, marker.parent / "classifier")
    text = refused(check_classifier, str(folder))
    assert text.startswith(f"gibberish_classifier {str(folder)!r} holds its weights in pytorch_mod")
    assert "AutoModelForSequenceClassification" in text
    assert refused(clean_probabilities, ["a"], str(folder)).startswith("gibberish_classifier ")


@pytest.mark.parametrize("name", ["records/forget.jsonl.gz", "records/provenance.json"])
def test_a_pickle_in_a_results_folder_is_not_read(refused, marker, tmp_path, name):
    folder = tmp_path / "results"
    save_records(folder, {"retain": [Record("retain", "retain/0", "a", answer_loss=1.0)]})
    hostile.pickled(marker, folder / name)
    assert refused(load_retain_results, folder).startswith(f"data.retain_results: {folder / name} ")
    hostile.pickled(marker, tmp_path / "TOFU_EVAL.json")
    refused(load_retain_results, tmp_path / "TOFU_EVAL.json")


def test_nothing_in_the_package_unpickles():
    """Only ``torch.load`` with ``weights_only`` reads what could be a pickle."""
    calls = []
    for path in Path(etw_lightning.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                name = ast.unparse(node.func)
                if name in ("pickle.load", "pickle.loads", "np.load", "numpy.load", "torch.load"):
                    given = {word.arg: ast.unparse(word.value) for word in node.keywords}
                    calls.append((path.name, name, given.get("weights_only")))
    assert calls
    assert all(call[1:] == ("torch.load", "True") for call in calls), calls


# Code of a model or a data set.


def test_a_model_that_needs_its_own_code_is_refused(refused, marker, tiny_model_dir):
    folder = hostile.with_code(marker, tiny_model_dir, marker.parent / "m", model_type="evil")
    for load in (load_model, load_config):
        text = refused(load, str(folder))
        assert text.startswith(f"model.pretrained {str(folder)!r} could not be loaded: it needs Py")


def test_a_configuration_of_the_library_does_not_open_the_door(refused, marker, tiny_model_dir):
    # The library knows the configuration, but has no causal model for it.
    folder = hostile.with_code(marker, tiny_model_dir, marker.parent / "m", model_type="vit")
    assert "it needs Python code of its own" in refused(load_model, str(folder))


def test_where_the_library_has_the_class_the_models_code_is_left_alone(marker, tiny_model_dir):
    folder = hostile.with_code(marker, tiny_model_dir, marker.parent / "m")
    assert type(load_model(str(folder))) is LlamaForCausalLM
    assert not marker.exists()


def test_a_tokenizer_that_needs_its_own_code_is_refused(refused, marker, tiny_model_dir):
    folder = hostile.with_code(
        marker,
        tiny_model_dir,
        marker.parent / "m",
        file="tokenizer_config.json",
        classes={"AutoTokenizer": ["evil.Slow", "evil.Fast"]},
        tokenizer_class="Evil",
    )
    (folder / "config.json").write_text(json.dumps({"model_type": "evil"}))
    text = refused(load_tokenizer, str(folder), key="data.tokenizer")
    assert text.startswith(f"data.tokenizer {str(folder)!r} could not be loaded: it needs Python")


@pytest.mark.parametrize("model_type", ["llama", "qwen2"])
def test_code_of_a_tokenizer_is_refused_beside_a_known_model(
    refused, marker, tiny_model_dir, model_type
):
    # The library would take another class by the model's type, without a word.
    folder = hostile.with_code(
        marker,
        tiny_model_dir,
        marker.parent / "m",
        file="tokenizer_config.json",
        classes={"AutoTokenizer": ["evil.Slow", None]},
        tokenizer_class="Evil",
    )
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    text = refused(load_tokenizer, str(folder), key="data.tokenizer")
    assert "it needs Python code of its own for its tokenizer Evil" in text


def test_a_classifier_that_needs_its_own_code_is_refused(refused, marker, classifier_dir):
    folder = hostile.with_code(
        marker,
        classifier_dir,
        marker.parent / "m",
        classes={"AutoConfig": "evil.C", "AutoModelForSequenceClassification": "evil.M"},
        model_type="evil",
    )
    assert "it needs Python code of its own" in refused(check_classifier, str(folder))


def test_code_in_a_checkpoints_configuration_is_not_run(refused, marker, tmp_path, tiny_model_dir):
    lm = load_model(str(tiny_model_dir))
    content = {"state_dict": lm.state_dict(), **describe_model(lm, str(tiny_model_dir))}
    config = json.loads(content["etw_lightning"]["config"])
    (tmp_path / "evil.py").write_text(hostile.code(marker))
    config |= {"model_type": "vit", "auto_map": {"AutoModelForCausalLM": f"{tmp_path}--evil.M"}}
    content["etw_lightning"]["config"] = json.dumps(config)
    torch.save(content, tmp_path / "evil.ckpt")
    text = refused(load_model, str(tmp_path / "evil.ckpt"))
    assert "it needs Python code of its own" in text
    with pytest.raises(ValueError, match="custom code"):
        checkpoint_model(str(tmp_path / "evil.ckpt"), "model.pretrained", torch.float32, {})


def test_a_model_that_asks_for_compiled_code_is_refused(refused, marker, tiny_model_dir):
    folder = hostile.with_code(
        marker, tiny_model_dir, marker.parent / "m", attn_implementation="evil/kernel"
    )
    for load in (load_model, load_config):
        text = refused(load, str(folder))
        assert "asks in its configuration for code from the hub" in text
    check_attention(LlamaConfig(attn_implementation="sdpa"), "m", "model.pretrained")


def test_the_script_of_a_data_set_is_not_run(refused, marker, tmp_path):
    folder = tmp_path / "evil"
    folder.mkdir()
    (folder / "evil.py").write_text(hostile.code(marker))
    text = refused(Source(hub=str(folder)).rows, "train")
    assert "Dataset scripts are no longer supported" in text


# Names that leave their folder.


@pytest.mark.parametrize("name", ["../../evil.safetensors", "/evil.safetensors", 7])
def test_the_files_of_a_model_lie_in_its_folder(refused, tmp_path, tiny_model_dir, name):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model_dir, folder)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model.safetensors", "b": name}}))
    assert f"names the file {name!r}, which is not in the" in refused(load_model, str(folder))
    index.write_text("[]")
    assert "is no index of a model's files" in refused(check_weights, folder, "model.pretrained")


@pytest.mark.parametrize("name", ["../../evil", "/evil", "a/b", ""])
def test_the_name_of_a_set_is_no_path(refused, tmp_path, name):
    folder = tmp_path / "results"
    text = refused(save_records, folder, {name: []})
    assert text.startswith(f"set name {name!r}: ")
    (folder / "records").mkdir(parents=True)
    (folder / "records" / "provenance.json").write_text(json.dumps({"sets": {name: {}}}))
    text = refused(load_provenance, folder)
    assert f"names a set {name!r}; names hold letters" in text


@pytest.mark.parametrize("name", ["records", "records/forget.jsonl.gz", "records/provenance.json"])
def test_links_out_of_a_results_folder_are_refused(refused, tmp_path, name):
    inside, outside = tmp_path / "results", tmp_path / "elsewhere"
    row = Record("forget", "forget/0", "a", answer_loss=1.0)
    save_records(outside, {"forget": [row]})
    (outside / "records" / "provenance.json").write_text("{}")
    if name != "records":
        save_records(inside, {"retain": [row]})
    inside.mkdir(exist_ok=True)
    (inside / name).symlink_to(outside / name)
    text = refused(load_retain_results, inside)
    assert text.startswith("data.retain_results: ")
    assert "leads out of the folder" in text


def test_a_link_within_the_folder_is_fine(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").symlink_to("a")
    require_inside(tmp_path / "b" / "new", tmp_path, "key")
    check_links(tmp_path)
    check_links(tmp_path / "absent")


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "../../evil.jsonl"])
def test_a_split_stays_in_the_data_folder(refused, tmp_path, name):
    root = tmp_path / "data" / "root"
    (root / "a").mkdir(parents=True)
    row = json.dumps({"question": "q", "answer": "a"})
    for place in (tmp_path, tmp_path / "data"):
        (place / "evil.jsonl").write_text(row)
    text = refused(Source(root=root).rows, name, "data.forget_split")
    assert text.startswith(f"data.forget_split must name a file in data.root {str(root)!r}, or ")
    assert refused(Source(root=root).rows, name).startswith("a split must name a file in data.root")
    # A whole path is one that the user chose.
    whole = str(tmp_path / "evil.jsonl")
    assert Source(root=root).rows(whole) == [json.loads(row)]


@pytest.mark.parametrize(
    ("method", "grid"),
    [("etw", {"model./../../evil": [1, 2]}), ("etw", {"a\\b": [1, 2]}), ("..", {}), (".", {})],
)
def test_a_run_of_a_sweep_has_a_folder_of_its_own(refused, tmp_path, method, grid):
    rule = Select("forget_quality", True, ())
    sweep = Sweep(("c",), str(tmp_path), {method: ("m", grid)}, {}, rule, ("forget_quality",))
    assert "which is no folder of the sweep's own" in refused(expand, sweep)


def test_a_run_of_a_sweep_is_not_written_through_a_link(refused, tmp_path):
    out, outside = tmp_path / "out", tmp_path / "elsewhere"
    out.mkdir()
    outside.mkdir()
    (out / "etw").symlink_to(outside)
    rule = Select("forget_quality", True, ())
    sweep = Sweep(("c",), str(out), {"etw": ("m", {})}, {}, rule, ("forget_quality",))
    assert refused(expand, sweep).startswith("run 'etw' of the sweep: ")


@pytest.mark.parametrize("name", ["records", "model", "config.yaml", "loop"])
def test_links_in_a_runs_folder_are_refused(refused, tmp_path, name):
    run = tmp_path / "run"
    run.mkdir()
    (run / name).symlink_to(run / ".." / "loop" if name == "loop" else tmp_path / "elsewhere")
    text = refused(check_links, run)
    assert text.startswith(f"output_dir {str(run)!r} holds the link {name!r}, which leads out")


SAVES = "lightning.pytorch.callbacks.ModelCheckpoint"
WRITTEN = [
    ("trainer.default_root_dir", {"default_root_dir": "/x"}),
    ("trainer.logger.save_dir", {"logger": {"class_path": "C", "init_args": {"save_dir": "logs"}}}),
    ("trainer.logger.name", {"logger": [{"class_path": "C", "init_args": {"name": "../a"}}]}),
    ("trainer.callbacks.dirpath", {"callbacks": [{"init_args": {"dirpath": "{run}/../a"}}]}),
    ("trainer.callbacks.dirpath", {"callbacks": [{"init_args": {"dirpath": "~/a"}}]}),
    ("trainer.callbacks.dirpath", {"callbacks": [{"init_args": {"dirpath": "s3://bucket/a"}}]}),
    ("trainer.callbacks.filename", {"callbacks": [{}, {"init_args": {"filename": "/a"}}]}),
    ("trainer.profiler.dirpath", {"profiler": {"init_args": {"dirpath": Path("/x")}}}),
]


def _filled(given, run):
    """Put the run's folder into nested settings."""
    if isinstance(given, dict):
        return {key: _filled(value, run) for key, value in given.items()}
    if isinstance(given, list):
        return [_filled(value, run) for value in given]
    return given.replace("{run}", run) if isinstance(given, str) else given


@pytest.mark.parametrize(("key", "trainer"), WRITTEN)
def test_settings_that_write_elsewhere_are_named(refused, tmp_path, key, trainer):
    run = tmp_path / "run"
    assert refused(check_written, _filled(trainer, str(run)), run).startswith(f"{key} must ")


def test_settings_that_write_into_the_run_are_fine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    inner = {"dirpath": "run/kept", "filename": "{epoch}-{step}", "every_n_epochs": 1}
    other = {"save_dir": str(tmp_path / "run"), "name": None, "version": 3}
    given = {"callbacks": [{"init_args": inner}], "logger": {"init_args": other}, "profiler": None}
    check_written(given, Path("run"))


@pytest.mark.parametrize(
    ("name", "is_in"), [("a", True), ("./a", True), ("..a", True), (".", True)]
)
def test_what_is_below(name, is_in):
    assert is_below(name) is is_in
