"""A saved model says what the trained one says, also where an adapter was merged into it."""

import copy
import warnings

import pytest
import torch
from safetensors.torch import load_file

from etw_lightning.models import export
from etw_lightning.models.export import ExportError, export_model
from etw_lightning.models.fixed_text import text_logits
from etw_lightning.models.loading import load_model

LORA = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": "all-linear"}


@pytest.fixture(scope="module")
def loaded(tiny_model_dir):
    return load_model(str(tiny_model_dir))


@pytest.fixture
def adapted(tiny_model_dir):
    """Makes a copy of the model with an adapter that changes it by some strength."""
    pytest.importorskip("peft")
    from etw_lightning.tuning.adapters import add_adapter

    def make(strength, dtype="float32", **settings):
        lm = load_model(str(tiny_model_dir), dtype)
        torch.manual_seed(0)
        adapter = add_adapter(lm, {**LORA, **settings})
        with torch.no_grad():
            for name, weight in lm.named_parameters():
                if "lora_B" in name:
                    weight.normal_(std=strength)
        return lm, adapter

    return make


def test_a_plain_model_is_saved_whole(loaded, tiny_tokenizer, tiny_model_dir, tmp_path):
    folder = export_model(loaded, tiny_tokenizer, tmp_path / "model")
    saved = load_file(folder / "model.safetensors")
    assert saved.keys() == load_file(tiny_model_dir / "model.safetensors").keys()
    assert torch.equal(text_logits(load_model(str(folder))), text_logits(loaded))
    assert not (tmp_path / "model.part").exists()


@pytest.mark.parametrize("settings", [{}, {"use_dora": True}], ids=["LoRA", "DoRA"])
def test_an_adapter_is_merged(adapted, tiny_tokenizer, tiny_model_dir, tmp_path, settings):
    lm, adapter = adapted(0.2, **settings)
    lm.train()
    with adapter.switched_off():
        before = text_logits(lm)
    trained = text_logits(lm)
    weights = {name: weight.clone() for name, weight in lm.state_dict().items()}
    folder = export_model(lm, tiny_tokenizer, tmp_path / "model", adapter)

    saved, start = (load_file(d / "model.safetensors") for d in (folder, tiny_model_dir))
    assert saved.keys() == start.keys()
    assert not (folder / "adapter_config.json").exists()
    assert "peft" not in (folder / "config.json").read_text()
    plain = load_model(str(folder))
    torch.testing.assert_close(text_logits(plain), trained, rtol=0, atol=1e-4)
    assert (trained - before).abs().max() > 1
    assert plain.config.to_dict() == load_model(str(tiny_model_dir)).config.to_dict() | {
        "_name_or_path": plain.config._name_or_path
    }

    # The trained model goes on as it was.
    assert lm.training
    assert all(torch.equal(weight, weights[name]) for name, weight in lm.state_dict().items())
    with adapter.merged():
        assert torch.equal(text_logits(lm), text_logits(plain))


def test_half_precision_is_merged_within_its_rounding(adapted, tiny_tokenizer, tmp_path):
    lm, adapter = adapted(0.2, "bfloat16")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        folder = export_model(lm, tiny_tokenizer, tmp_path / "model", adapter)
    saved = load_file(folder / "model.safetensors")
    assert {weight.dtype for weight in saved.values()} == {torch.bfloat16}


def test_an_effect_that_rounding_loses_is_said(adapted, tiny_tokenizer, tmp_path):
    lm, adapter = adapted(1e-4, "bfloat16")
    with pytest.warns(UserWarning, match=r"Merged into bfloat16 weights, \d+% .* --model.dtype fl"):
        export_model(lm, tiny_tokenizer, tmp_path / "model", adapter)


def test_a_saved_model_that_differs_is_refused_and_kept(
    loaded, tiny_tokenizer, tmp_path, monkeypatch
):
    broken = copy.deepcopy(loaded)
    with torch.no_grad():
        broken.lm_head.weight[0] += 0.1
    monkeypatch.setattr(export, "load_model", lambda *_: broken)
    with pytest.raises(ExportError, match=r"model\.part differs from the trained one"):
        export_model(loaded, tiny_tokenizer, tmp_path / "model")
    assert (tmp_path / "model.part").exists()
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(("difference", "is_refused"), [(1e-3, True), (1e-5, False)])
def test_logits_may_differ_by_rounding_alone(
    loaded, tiny_tokenizer, tmp_path, monkeypatch, difference, is_refused
):
    """The library writes the very bits; 1e-4 is what another order of sums may change."""
    other = copy.deepcopy(loaded)
    with torch.no_grad():
        other.lm_head.weight[0] += 1
        moved = (text_logits(other) - text_logits(loaded)).abs().max()
        other.lm_head.weight[0] += difference / moved - 1
    found = (text_logits(other) - text_logits(loaded)).abs().max().item()
    assert found == pytest.approx(difference, rel=0.2)
    monkeypatch.setattr(export, "load_model", lambda *_: other)
    if is_refused:
        with pytest.raises(ExportError, match="differs from the trained one"):
            export_model(loaded, tiny_tokenizer, tmp_path / "model")
    assert is_refused or export_model(loaded, tiny_tokenizer, tmp_path / "model").is_dir()


def test_a_merge_that_says_something_else_is_refused(adapted, tiny_tokenizer, tmp_path):
    lm, adapter = adapted(0.2)
    plain = adapter.merged_copy()
    with torch.no_grad():
        plain.model.norm.weight *= 1.001
    adapter.merged_copy = lambda: plain
    with pytest.raises(ExportError, match="differs from the trained one"):
        export_model(lm, tiny_tokenizer, tmp_path / "model", adapter)
