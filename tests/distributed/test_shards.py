"""Models in shards: who holds how much, what they answer, and what the commands make of them."""

import contextlib
import ctypes
import io
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from sharded import build, make_strategy, run_forked, write_texts
from small_models import llama_config
from toy import tofu_words

from etw_lightning.models.loading import load_model
from etw_lightning.scoring.retain_results import load_records

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")

ROOT = Path(__file__).resolve().parents[2]
#: Options of each kind of shards; that of a test's strategy wins over a file's.
SHARDS = {
    "fsdp": [f"--config={ROOT / 'configs/strategy/fsdp.yaml'}"],
    "zero3": [
        '--trainer.strategy={"class_path": "sharded.CPUDeepSpeed", "init_args": '
        '{"stage": 3, "process_group_backend": "gloo"}}'
    ],
}
#: Set where a test is run by a process of its own.
_ALONE = "ETW_TEST_ALONE"
#: Number of the C library's option from which size on blocks are mapped one by one.
_MMAP_THRESHOLD = -3
#: A large model's weights, bytes: far more than what a process allocates besides.
LARGE = 4 * 6 * (4 * 640 * 640 + 3 * 640 * 1280)


@pytest.fixture(autouse=True)
def _cheap(monkeypatch):
    torch.set_num_threads(1)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    # Once here, not in every process that is forked.
    pytest.importorskip("deepspeed")


def save_large(folder, tokenizer_dir):
    from transformers import AutoTokenizer, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir)
    whole = {"num_key_value_heads": 8, "tie_word_embeddings": True}
    config = llama_config(len(tokenizer), 640, 6, heads=8, max_position_embeddings=512, **whole)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="module")
def large_model_dir(tmp_path_factory, tokenizer_dir):
    """Made by a process of its own: what it lets go of would be used again, and not be counted."""
    folder = tmp_path_factory.mktemp("large")
    run_forked(save_large, 1, folder / "out", folder, tokenizer_dir)
    return folder


def peak():
    """Return the most memory this process has held since ``clear_refs``, bytes."""
    text = Path("/proc/self/status").read_text()
    return 1024 * int(text.split("VmHWM:")[1].split()[0])


def measure_loading(name, model_dir, root):
    """Return by how much memory rises at most while the model gets to its shards."""
    trainer, module, data = build(
        model_dir,
        root,
        lr=1e-5,
        trainer={"strategy": make_strategy(name), "devices": 2, "max_steps": 1},
    )
    grown = []
    configure = module.configure_model

    def measured():
        Path("/proc/self/clear_refs").write_text("5")
        before = peak()
        configure()
        grown.append(peak() - before)

    module.configure_model = measured
    trainer.fit(module, datamodule=data)
    return grown[0]


def measure_both(name, models, root):
    """Measure the second model; with the first one everything is imported and set up."""
    # Large blocks are given back at once, so that only what is held is counted.
    ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, 1 << 18)
    return [measure_loading(name, model_dir, root) for model_dir in models][-1]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_only_the_first_process_holds_a_whole_model(request, tmp_path):
    """The other one holds its half and a layer's worth; the first shows that this is measured."""
    if _ALONE not in os.environ:
        # By a process of its own: what other tests have left in this one's heap would be counted.
        test = f"{Path(__file__)}::{request.node.name}"
        command = [sys.executable, "-m", "pytest", "-m", "slow", "-n", "0", test]
        environment = {**os.environ, _ALONE: "1"}
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout
        return
    root = write_texts(tmp_path / "rows")
    models = [request.getfixturevalue(name) for name in ("tiny_model_dir", "large_model_dir")]
    for name in SHARDS:
        first, second = run_forked(measure_both, 2, tmp_path / name, name, models, root)
        assert first > LARGE
        # Its half, a layer of six, and pages shared with the process it was forked from.
        assert second < 0.75 * LARGE


def run_command(arguments, cache):
    """Run a command in this process, with a cache of its own; return what it printed."""
    from etw_lightning.commands.cli import main

    os.environ["ETW_CACHE"] = str(cache)
    out = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(out):
        sys.argv = ["etw_lightning", *arguments]
        assert main() == 0
    return out.getvalue()


def assert_alike(found, expected):
    """Compare what JSON holds: numbers up to rounding, all else exactly."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert_alike(found[name], value)
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_alike(one, other)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-5)
    else:
        assert found == expected


def records_of(folder):
    return {name: [row.to_json() for row in rows] for name, rows in load_records(folder).items()}


@pytest.mark.parametrize("name", [pytest.param("fsdp", marks=pytest.mark.slow), "zero3"])
def test_records_of_shards_are_those_of_one_process(name, tiny_model_dir, tmp_path):
    """Thirteen, five, one and three rows: one process has a batch less, or none."""
    command = tofu_words(tmp_path / "rows", tiny_model_dir)
    command += ["--metrics=probability,rouge,truth_ratio,mia_gradient_norm"]
    for folder, world, options in (("one", 1, []), ("two", 2, SHARDS[name])):
        given = [f"--trainer.devices={world}", f"--output_dir={tmp_path / folder}"]
        arguments = ["evaluate", *options, *command, *given]
        run_forked(run_command, world, tmp_path / "out", arguments, tmp_path / f"cache_{folder}")
    expected = records_of(tmp_path / "one")
    assert all(row["generation"] for row in expected["retain"])
    assert_alike(records_of(tmp_path / "two"), expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", SHARDS)
def test_fit_in_shards_leaves_what_ddp_leaves(name, tiny_model_dir, tmp_path):
    """With a cached reference, generations, and a last step that no evaluation has followed."""
    root = write_texts(tmp_path / "rows")
    command = [
        "--data.benchmark=jsonl",
        f"--data.root={root}",
        "--data.forget_split=forget",
        "--data.retain_split=retain",
        "--data.batch_size=2",
        "--data.eval_batch_size=4",
        "--data.max_new_tokens=4",
        f"--model.pretrained={tiny_model_dir}",
        f"--config={ROOT / 'configs/method/npo.yaml'}",
        "--model.lr=1e-3",
        "--model.share_beginnings=false",
        "--trainer.callbacks+=SetScores",
        "--trainer.callbacks.every_n_epochs=2",
        "--trainer.max_epochs=2",
        "--trainer.max_steps=6",
        "--trainer.accelerator=cpu",
        "--trainer.devices=2",
        "--trainer.enable_progress_bar=false",
    ]
    for folder, options in (("ddp", ["--trainer.strategy=ddp"]), (name, SHARDS[name])):
        arguments = ["fit", *options, *command, f"--output_dir={tmp_path / folder}"]
        first, second = run_forked(
            run_command, 2, tmp_path / "out", arguments, tmp_path / f"cache_{folder}"
        )
        assert "model: " in first
        assert "results: " in first
        assert "results: " not in second
    metrics = [
        json.loads((tmp_path / folder / "results.json").read_text())["metrics"]
        for folder in (name, "ddp")
    ]
    assert metrics[0]
    assert_alike(*metrics)
    assert_alike(records_of(tmp_path / name), records_of(tmp_path / "ddp"))
    weights, expected = (
        load_model(str(tmp_path / folder / "model")).state_dict() for folder in (name, "ddp")
    )
    for key, weight in expected.items():
        torch.testing.assert_close(weights[key], weight, rtol=0, atol=1e-5)
