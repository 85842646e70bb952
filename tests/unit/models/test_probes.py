"""What a model is asked when it is loaded: whether it looks ahead, drops out, can recompute."""

import itertools
import re
import warnings

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BertGenerationConfig,
    CTRLConfig,
    GPT2Config,
    LlamaConfig,
    MixtralConfig,
    OPTConfig,
    PhimoeConfig,
)

from etw_lightning.memory.run_needs import RunShape, run_outline
from etw_lightning.models.label_scorer import LabelScorer
from etw_lightning.models.noise import describe_noise, settle_noise
from etw_lightning.models.probes import check_reading
from etw_lightning.schema import InputError
from etw_lightning.tuning.trainable import recompute_activations

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
SPECIAL = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2}
QUIET_GPT2 = {**GPT2, "attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
MOE = {"num_key_value_heads": 1, "num_local_experts": 4, "intermediate_size": 32}


def build(config, **fields):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = config(vocab_size=40, **{**SIZES, **SPECIAL, **fields})
        return AutoModelForCausalLM.from_config(made).eval()


def states(lm, ids):
    out = lm.base_model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    return out.last_hidden_state


# Reading.


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("config", "fields"), [(LlamaConfig, {}), (GPT2Config, GPT2), (OPTConfig, {"ffn_dim": 32})]
)
def test_a_causal_model_passes_and_stays_as_it_was(config, fields, dtype):
    lm = build(config, **fields).to(dtype).train()
    before, state = states(lm.eval(), torch.arange(9)[None]), torch.get_rng_state()
    check_reading(lm.train())
    describe_noise(lm)
    assert lm.training
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(states(lm.eval(), torch.arange(9)[None]), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_that_looks_ahead_is_refused(dtype):
    lm = build(BertGenerationConfig, is_decoder=False, initializer_range=0.3).to(dtype)
    with pytest.raises(InputError, match=r"^data.retain_model: BertGeneration.* looks ahead"):
        LabelScorer(lm).check_head("data.retain_model")
    LabelScorer(build(BertGenerationConfig, is_decoder=True)).check_head()


def test_a_model_that_answers_elsewhere_is_refused(monkeypatch):
    lm = build(LlamaConfig)
    forward = lm.model.forward

    def longer(**inputs):
        out = forward(**inputs)
        out.last_hidden_state = torch.nn.functional.pad(out.last_hidden_state, (0, 0, 3, 0))
        return out

    monkeypatch.setattr(lm.model, "forward", longer)
    with pytest.raises(InputError, match=r"LlamaForCausalLM answers at other positions"):
        check_reading(lm)


def test_a_model_that_heeds_padding_is_refused(monkeypatch):
    lm = build(LlamaConfig)
    forward = lm.model.forward

    def shifted(attention_mask, **inputs):
        out = forward(attention_mask=attention_mask, **inputs)
        out.last_hidden_state = out.last_hidden_state + (attention_mask == 0).sum()
        return out

    monkeypatch.setattr(lm.model, "forward", shifted)
    with pytest.raises(InputError, match=r"something else of a row that is padded"):
        check_reading(lm)


SAID = "LlamaForCausalLM says of a few tokens what is no finite number: its weights are broken"
HEAD = "the output head of LlamaForCausalLM holds what is no finite number: its weights are broken"


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ("model.embed_tokens", SAID),
        ("model.norm", SAID),
        ("model.layers.1.mlp.up_proj", SAID),
        ("lm_head", HEAD),
    ],
)
@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_broken_weights_are_refused_for_that(part, said, number):
    lm = build(LlamaConfig)
    with torch.no_grad():
        weight = lm.get_submodule(part).weight
        # One row of a head that no probe may ask for, and all of what every row goes through.
        (weight[17, 3:4] if part == "lm_head" else weight).fill_(number)
    with pytest.raises(InputError, match=f"^data.retain_model: {said}"):
        LabelScorer(lm).check_head("data.retain_model")


# Noise.

NOISY = [
    (GPT2Config, GPT2, "resid_pdrop 0.1, embd_pdrop 0.1, attn_pdrop 0.1"),
    (MixtralConfig, {**MOE, "router_jitter_noise": 0.3}, "router_jitter_noise 0.3"),
    (OPTConfig, {"ffn_dim": 32, "dropout": 0.0, "layerdrop": 0.2}, "layerdrop 0.2"),
    (PhimoeConfig, {**MOE, "input_jitter_noise": 0.3}, "input_jitter_noise 0.3"),
]


@pytest.mark.parametrize(("config", "fields", "said"), NOISY)
def test_noise_is_named(config, fields, said):
    found = describe_noise(build(config, **fields))
    assert set(found.split(", ")) >= set(said.split(", "))


@pytest.mark.parametrize(
    ("config", "fields"),
    [
        (LlamaConfig, {}),
        (GPT2Config, QUIET_GPT2),
        # Named, but no part of the language model.
        (GPT2Config, {**QUIET_GPT2, "summary_first_dropout": 0.1}),
        (MixtralConfig, MOE),
    ],
)
def test_no_noise_needs_no_word(config, fields):
    lm = build(config, **fields)
    assert describe_noise(lm) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not settle_noise(lm, None, reads_cache=True)


@pytest.mark.parametrize("recomputes", [False, True])
@pytest.mark.parametrize(("config", "fields", "said"), NOISY)
def test_a_quiet_model_trains_on_what_is_scored(config, fields, said, recomputes):
    lm = build(config, **fields)
    ids = torch.randint(3, 40, (3, 9), generator=torch.Generator().manual_seed(1))
    wanted = states(lm, ids)
    wanted.square().sum().backward()
    grads = {name: weight.grad for name, weight in lm.named_parameters()}
    lm.zero_grad()
    scorer = LabelScorer(lm)
    scorer.is_quiet = settle_noise(lm, "off", reads_cache=False)
    assert scorer.is_quiet
    calls = []
    if recomputes:
        recompute_activations(lm)
    handle = scorer.layer_stack[0].self_attn if hasattr(scorer.layer_stack[0], "self_attn") else lm
    handle.register_forward_pre_hook(lambda *_: calls.append(1))
    scorer.train()
    for _ in range(3):
        found = states(lm, ids)
        torch.testing.assert_close(found, wanted)
    calls.clear()
    found.square().sum().backward()
    # Activations are still computed anew where that was asked for.
    assert len(calls) == (1 if recomputes and handle is not lm else 0)
    for name, weight in lm.named_parameters():
        if grads[name] is None:
            # An expert that no token came to.
            assert weight.grad is None
            continue
        torch.testing.assert_close(weight.grad, grads[name], rtol=1e-4, atol=1e-4)
    scorer.eval()
    assert not any(module.training for module in lm.modules())


@pytest.mark.parametrize(
    ("dropout", "reads_cache", "is_quiet", "line"),
    [
        (None, False, False, "trains with .*attn_pdrop 0.1.*--model.dropout off"),
        (None, True, True, "has .*attn_pdrop 0.1.*left out: cached reference"),
        ("off", True, True, None),
        ("off", False, True, None),
        ("as_configured", False, False, None),
        ("as_configured", True, False, "trains with .*attn_pdrop 0.1"),
    ],
)
def test_what_is_decided_unasked_is_said(dropout, reads_cache, is_quiet, line):
    lm = build(GPT2Config, **GPT2)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        assert settle_noise(lm, dropout, reads_cache=reads_cache) == is_quiet
    assert len(seen) == (line is not None)
    if line is not None:
        assert re.search(line, str(seen[0].message))


def test_noise_that_can_not_be_left_out_is_refused(monkeypatch):
    lm = build(LlamaConfig)
    forward = lm.model.forward

    passes = itertools.count(1)

    def noisy(**inputs):
        out = forward(**inputs)
        out.last_hidden_state = out.last_hidden_state * next(passes)
        return out

    monkeypatch.setattr(lm.model, "forward", noisy)
    with pytest.raises(InputError, match=r"model.dropout off can't be had of LlamaForCausalLM"):
        settle_noise(lm, "off", reads_cache=False)


# Recomputed activations.


def test_a_class_that_can_not_recompute_is_one_line():
    lm = build(CTRLConfig, n_embd=16, n_layer=2, n_head=2, dff=32)
    with pytest.raises(InputError, match=r"^model.gradient_checkpointing can't be had of CTRLLM"):
        recompute_activations(lm)


def test_so_it_is_from_the_outline_that_check_makes():
    config = CTRLConfig(vocab_size=40, n_embd=16, n_layer=2, n_head=2, dff=32)
    shape = RunShape(rows=2, tokens=4, gradient_checkpointing=True)
    with pytest.raises(InputError, match=r"model.gradient_checkpointing"):
        run_outline(config, shape)
