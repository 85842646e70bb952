"""On one GPU, in bfloat16: each strategy trains, saves, goes on, exports, and is loaded again."""

import math

import pytest
import torch
from sharded import assert_near, save_resume_export, write_texts

from etw_lightning.commands.export import export
from etw_lightning.models.fixed_text import text_logits
from etw_lightning.models.loading import load_model

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")

#: Sums on a GPU come in no fixed order, and bfloat16 has eight bits.
TOLERANCE = 0.02


@pytest.mark.parametrize("name", ["single", "fsdp", "zero2", "zero3"])
def test_a_strategy_trains_resumes_and_exports(name, tiny_model_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("ETW_CACHE", str(tmp_path / "cache"))
    if name.startswith("zero"):
        pytest.importorskip("deepspeed")
    straight, weights, again, resumed = save_resume_export(
        name,
        tiny_model_dir,
        write_texts(tmp_path / "rows"),
        tmp_path,
        on_cpu=False,
        devices=1,
        trainer={"accelerator": "cuda", "precision": "bf16-mixed"},
    )
    assert all(math.isfinite(value) for step in straight for value in step.values())
    assert_near(again, straight[3:], TOLERANCE)
    for key, weight in weights.items():
        torch.testing.assert_close(resumed[key], weight, rtol=TOLERANCE, atol=TOLERANCE)
    saved = dict(load_model(str(tmp_path / "model")).named_parameters())
    for key, weight in weights.items():
        torch.testing.assert_close(saved[key.removeprefix("lm.")], weight.float(), rtol=0, atol=0)
    assert export([f"--checkpoint={tmp_path / 'half.ckpt'}"]) == 0
    assert text_logits(load_model(str(tmp_path / "half-model"))).isfinite().all()
