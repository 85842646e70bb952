"""Loading models, and scoring labelled tokens with them."""

import shutil
import weakref

import pytest
import torch
from refusals import message
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    CohereConfig,
    FalconH1Config,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    GraniteConfig,
    HyperCLOVAXConfig,
    InklingTextConfig,
    LlamaConfig,
    MiniCPM3Config,
    MptConfig,
    OPTConfig,
    Qwen2Config,
    RecurrentGemmaConfig,
    RobertaConfig,
)

from etw_lightning.data.encode import Encoder
from etw_lightning.kernels.logits import LogitTransform
from etw_lightning.models import loading as models
from etw_lightning.models.loading import (
    LabelScorer,
    check_vocabulary,
    load_config,
    load_model,
    load_tokenizer,
)
from etw_lightning.schema import IGNORE_INDEX, Example
from etw_lightning.scoring.batches import pad_rows

LOADERS = pytest.mark.parametrize("load", [load_model, load_config, load_tokenizer])


@pytest.fixture
def rows(tiny_tokenizer):
    """Three answers of different lengths, right-padded."""
    encoder = Encoder(tiny_tokenizer)
    encoded = [
        encoder.encode(Example(f"forget/{n}", "a mill by the river " * n, "What is there?"))
        for n in (1, 3, 2)
    ]
    ids, mask = pad_rows([row.input_ids for row in encoded], encoder.pad_id)
    labels, _ = pad_rows([row.labels for row in encoded], IGNORE_INDEX)
    return ids, mask, labels


# What can't be loaded.


@LOADERS
def test_a_missing_folder(load, tmp_path):
    text = message(load, str(tmp_path / "nowhere"))
    assert text.startswith(f"model.pretrained: there is no folder '{tmp_path}/nowhere'")
    assert "data.tokenizer" in message(load, "./nowhere", key="data.tokenizer")


@LOADERS
def test_a_folder_of_something_else(load, tmp_path):
    assert f"folder '{tmp_path}' holds no" in message(load, str(tmp_path))


@LOADERS
def test_a_missing_gguf_file(load, tmp_path):
    text = message(load, str(tmp_path / "model.gguf"))
    assert text == f"model.pretrained: there is no file '{tmp_path}/model.gguf'."


@LOADERS
def test_a_hub_name_without_a_connection(load, monkeypatch):
    monkeypatch.setattr(models, "hub_answers", lambda: False)
    text = message(load, "nobody/nothing")
    assert "'nobody/nothing' could not be loaded" in text
    assert "the hub can't be reached" in text


@LOADERS
def test_a_name_the_hub_would_not_take(load, monkeypatch):
    monkeypatch.setattr(models, "hub_answers", lambda: False)
    assert "could not be loaded" in message(load, "no such model")


def test_a_folder_without_weights(tiny_model_dir, tmp_path):
    folder = shutil.copytree(tiny_model_dir, tmp_path / "model")
    (folder / "model.safetensors").unlink()
    assert "model.safetensors" in message(load_model, str(folder))


def test_broken_weights(tiny_model_dir, tmp_path):
    folder = shutil.copytree(tiny_model_dir, tmp_path / "model")
    (folder / "model.safetensors").write_bytes(b"not a model")
    assert "could not be loaded" in message(load_model, str(folder))


def test_a_configuration_of_no_known_model(tiny_model_dir, tmp_path):
    folder = shutil.copytree(tiny_model_dir, tmp_path / "model")
    (folder / "config.json").write_text('{"model_type": "abacus"}')
    assert "abacus" in message(load_config, str(folder))


def test_a_vocabulary_larger_than_the_model_s(tiny_model_dir, tokenizer_dir):
    tokenizer, config = load_tokenizer(str(tokenizer_dir)), load_config(str(tiny_model_dir))
    check_vocabulary(tokenizer, config, "tiny")
    size = len(tokenizer)
    tokenizer.add_tokens(["one", "more"])
    text = message(check_vocabulary, tokenizer, config, "tiny")
    assert f"the tokenizer has {size + 2} tokens, the model only {size}." in text
    assert "'tiny'" in text


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_precision_asked_for_whatever_the_file_holds(tiny_model_dir, dtype):
    with torch.device("meta"):  # as where a strategy builds the model
        lm = load_model(str(tiny_model_dir), dtype)
    assert {parameter.dtype for parameter in lm.parameters()} == {getattr(torch, dtype)}
    assert {parameter.device.type for parameter in lm.parameters()} == {"cpu"}
    assert not lm.training


# The fused head of real model classes.

SIZES = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
MLA = {
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
}
MAMBA = {
    "num_key_value_heads": 1,
    "mamba_d_ssm": 32,
    "mamba_n_heads": 4,
    "mamba_d_head": 8,
    "mamba_d_state": 8,
    "mamba_chunk_size": 8,
}
SPECIAL = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}


def build(config, **fields):
    sizes = {**SIZES, **SPECIAL, "intermediate_size": 32, **fields}
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config(**sizes)).eval()


@pytest.mark.parametrize(
    ("config", "fields"),
    [
        (LlamaConfig, {}),
        (LlamaConfig, {"tie_word_embeddings": True}),
        (Qwen2Config, {"num_key_value_heads": 1}),
        (GPTNeoXConfig, {}),
        (GPT2Config, {"n_embd": 16, "n_layer": 2, "n_head": 2}),
        (Gemma2Config, {"final_logit_softcapping": None, "head_dim": 8, "num_key_value_heads": 1}),
        (Gemma2Config, {"final_logit_softcapping": 30.0, "head_dim": 8, "num_key_value_heads": 1}),
        (Gemma2Config, {"final_logit_softcapping": 0.5, "head_dim": 8, "num_key_value_heads": 1}),
        (CohereConfig, {"logit_scale": 0.0625}),
        (GraniteConfig, {"logits_scaling": 8.0}),
        (HyperCLOVAXConfig, {"logits_scaling": 0.5}),
        (MiniCPM3Config, {**MLA, "dim_model_base": 4}),
        (FalconH1Config, {**MAMBA, "lm_head_multiplier": 0.0195}),
        (
            RecurrentGemmaConfig,
            {"num_hidden_layers": 3, "lru_width": 16, "head_dim": 8, "attention_window_size": 16},
        ),
    ],
)
def test_fused_log_probabilities_are_the_library_s_loss(config, fields):
    lm = build(config, **fields).double()
    scorer = LabelScorer(lm, chunk_size=3)
    scorer.check_head()
    ids = torch.randint(3, 40, (1, 9), generator=torch.Generator().manual_seed(1))
    labels = ids.clone()
    labels[:, :4] = IGNORE_INDEX
    signals = scorer(ids, torch.ones_like(ids), labels, {"entropies", "distributions"})
    logits = lm(input_ids=ids).logits[0, 3:-1]
    plain = logits.log_softmax(-1)
    expected = plain.gather(-1, ids[0, 4:, None])[:, 0]
    torch.testing.assert_close(signals.logps, expected, rtol=1e-10, atol=1e-10)
    entropies = torch.distributions.Categorical(logits=logits).entropy()
    torch.testing.assert_close(signals.entropies, entropies, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(signals.distributions.log_probs(), plain, rtol=1e-10, atol=1e-10)
    mean = -lm(input_ids=ids, labels=labels).loss.double()  # the library's is float32
    torch.testing.assert_close(signals.logps.mean(), mean, rtol=1e-6, atol=1e-6)

    parameters = [parameter for parameter in lm.parameters() if parameter.requires_grad]
    fused = torch.autograd.grad(signals.logps.sum(), parameters)
    for one, other in zip(fused, torch.autograd.grad(expected.sum(), parameters), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("config", "fields", "expected"),
    [
        (Gemma2Config, {"head_dim": 8, "num_key_value_heads": 1}, LogitTransform(cap=30.0)),
        (
            Gemma2Config,
            {"head_dim": 8, "num_key_value_heads": 1, "final_logit_softcapping": 1.0},
            LogitTransform(cap=1.0),
        ),
        (CohereConfig, {"logit_scale": 0.0625}, LogitTransform(scale=0.0625)),
        (CohereConfig, {"logit_scale": 1.0}, None),
        (CohereConfig, {"logit_scale": 1.05}, LogitTransform(scale=1.05)),
        (GraniteConfig, {"logits_scaling": 8.0}, LogitTransform(scale=0.125)),
        (HyperCLOVAXConfig, {"logits_scaling": 8.0}, LogitTransform(scale=8.0)),
        # Named, and not heeded by the class.
        (MptConfig, {"d_model": 16, "n_layers": 2, "n_heads": 2, "logit_scale": 0.5}, None),
        (LlamaConfig, {}, None),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_becomes_of_the_logits_is_found(config, fields, expected, dtype):
    """Also of a fresh model, whose logits are too small for a soft cap to show."""
    scorer = LabelScorer(build(config, **fields).to(dtype).train())
    scorer.check_head()
    assert scorer.transform == expected
    assert scorer.lm.training
    assert scorer.frozen_copy().transform == expected


def test_a_cut_vocabulary_bounds_the_tokenizer(tiny_tokenizer):
    sizes = {"vocab_size": len(tiny_tokenizer) + 8, "unpadded_vocab_size": len(tiny_tokenizer)}
    check_vocabulary(tiny_tokenizer, InklingTextConfig(**sizes), "here")
    sizes["unpadded_vocab_size"] -= 1
    text = message(check_vocabulary, tiny_tokenizer, InklingTextConfig(**sizes), "here")
    assert f"the model only {len(tiny_tokenizer) - 1}" in text


@pytest.mark.parametrize("config", [BertConfig, RobertaConfig])
def test_a_head_behind_a_transform_is_refused_for_that(config):
    text = message(LabelScorer(build(config, is_decoder=True)).check_head, "data.retain_model")
    assert text.startswith("data.retain_model: ")
    assert "transforms its hidden states before the output head" in text


def test_logits_changed_by_numbers_of_its_own_are_refused(monkeypatch):
    lm = build(LlamaConfig)
    forward = lm.forward

    def shifted(**inputs):
        out = forward(**inputs)
        out.logits = out.logits + 0.1 * out.logits.square()
        return out

    monkeypatch.setattr(lm, "forward", shifted)
    text = message(LabelScorer(lm).check_head)
    assert "LlamaForCausalLM changes its logits in a way that its configuration does not" in text


@pytest.mark.parametrize("width", [16, 8])
def test_a_head_that_reads_a_part_of_the_body(width, monkeypatch):
    """OPT's own forward reads the decoder, and may make its states narrower first."""
    sizes = {"ffn_dim": 32, "word_embed_proj_dim": width}
    lm = build(OPTConfig, **sizes).train()
    scorer = LabelScorer(lm)
    scorer.check_head()
    lm.eval()
    ids = torch.arange(3, 12)[None]
    found = scorer(ids, torch.ones_like(ids), ids).logps
    own = lm(input_ids=ids).logits[0, :-1].log_softmax(-1)
    torch.testing.assert_close(found, own.gather(-1, ids[0, 1:, None])[:, 0])
    forward = lm.forward

    def halved(**inputs):
        out = forward(**inputs)
        out.logits = out.logits / 2
        return out

    monkeypatch.setattr(lm, "forward", halved)
    assert "data.retain_model: OPTForCausalLM" in message(scorer.check_head, "data.retain_model")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_checking_the_head_leaves_the_model_as_it_was(tiny_model_dir, rows, dtype):
    lm = load_model(str(tiny_model_dir)).to(dtype).train()
    before = lm(input_ids=rows[0]).logits
    LabelScorer(lm).check_head()
    assert lm.training
    assert torch.equal(lm(input_ids=rows[0]).logits, before)


# Signals.


def test_only_what_is_asked_for_is_computed(tiny_model_dir, rows):
    scorer = LabelScorer(load_model(str(tiny_model_dir)))
    signals = scorer(*rows)
    assert signals.logps.requires_grad
    for name in ("entropies", "distributions", "padded", "states", "reference_logps"):
        assert getattr(signals, name) is None


def test_signals_are_those_of_the_positions_before_the_labels(tiny_model_dir, rows):
    ids, mask, labels = rows
    lm = load_model(str(tiny_model_dir))
    needs = {"entropies", "distributions", "states", "padded"}
    signals = LabelScorer(lm)(ids, mask, labels, needs, layers=(0, 1))
    out = lm(input_ids=ids, attention_mask=mask, output_hidden_states=True)
    places = (labels[:, 1:] != IGNORE_INDEX).nonzero()
    assert signals.rows.tolist() == places[:, 0].tolist()
    assert signals.labels.tolist() == labels[places[:, 0], places[:, 1] + 1].tolist()
    # States are those of the labelled tokens themselves, behind each layer.
    tokens = (labels != IGNORE_INDEX).nonzero()
    assert torch.equal(signals.states.rows, tokens[:, 0])
    assert torch.equal(signals.states.layers[0], out.hidden_states[1][tokens[:, 0], tokens[:, 1]])
    normed = lm.model.norm(signals.states.layers[1])
    torch.testing.assert_close(normed, out.hidden_states[2][tokens[:, 0], tokens[:, 1]])
    everywhere = signals.padded.distributions.log_probs().reshape(out.logits.shape)
    torch.testing.assert_close(everywhere, out.logits.log_softmax(-1))
    plain = out.logits[places[:, 0], places[:, 1]].log_softmax(-1)
    torch.testing.assert_close(signals.distributions.log_probs(), plain)
    picked = plain.gather(-1, signals.labels[:, None])[:, 0]
    torch.testing.assert_close(signals.logps, picked)
    entropies = -(plain.exp() * plain).sum(-1)
    torch.testing.assert_close(signals.entropies, entropies)


def test_distributions_are_as_precise_as_log_probabilities_under_autocast(tiny_model_dir, rows):
    with torch.autocast("cpu", torch.bfloat16):
        signals = LabelScorer(load_model(str(tiny_model_dir)))(*rows, {"distributions"})
    distributions = signals.distributions.log_probs()
    assert distributions.dtype == signals.logps.dtype == torch.float32
    picked = distributions.gather(-1, signals.labels[:, None])[:, 0]
    torch.testing.assert_close(signals.logps, picked, rtol=1e-5, atol=1e-5)


def test_a_gradient_leaves_no_cast_behind_under_autocast(tiny_model_dir, rows):
    scorer = LabelScorer(load_model(str(tiny_model_dir))).eval()
    row = [part[:1] for part in rows]
    with torch.autocast("cpu", torch.bfloat16):
        alone = scorer.gradient_norm(*row)
    alive = weakref.WeakSet()

    class Storages(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            if function is torch.ops.aten._to_copy.default and out.dtype == torch.bfloat16:
                alive.add(out.untyped_storage())
            return out

    with torch.autocast("cpu", torch.bfloat16), torch.no_grad(), Storages():
        assert [scorer.gradient_norm(*row) for _ in range(2)] == [alone, alone]
        assert len(alive) == 0


def test_padding_and_company_do_not_matter(tiny_model_dir, rows):
    """A row scored alone, without padding, gives what it gives in the batch."""
    lm = load_model(str(tiny_model_dir)).double()
    scorer = LabelScorer(lm)
    together = scorer(*rows, needs={"entropies"})
    for number, length in enumerate(rows[1].sum(1).tolist()):
        alone = scorer(*(part[number : number + 1, :length] for part in rows), needs={"entropies"})
        whole = together.slice_rows(number, number + 1)
        torch.testing.assert_close(alone.logps, whole.logps, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(alone.entropies, whole.entropies, rtol=1e-10, atol=1e-10)


def test_the_frozen_copy_stays_what_the_model_was(tiny_model_dir, rows):
    scorer = LabelScorer(load_model(str(tiny_model_dir))).train()
    copy = scorer.frozen_copy()
    before = scorer(*rows).logps
    assert torch.equal(copy(*rows).logps, before)
    assert not copy(*rows).logps.requires_grad
    assert not copy.training
    with torch.no_grad():
        for parameter in scorer.parameters():
            parameter.add_(0.1)
    assert torch.equal(copy(*rows).logps, before)
    assert not torch.equal(scorer(*rows).logps, before)
