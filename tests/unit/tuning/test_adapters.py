"""Adapters: what trains, the model without them, the model with them merged, bad settings."""

import copy
import sys
import warnings

import pytest
import torch
from small_models import llama_config

pytest.importorskip("peft")

from etw_lightning.models.label_scorer import LabelScorer
from etw_lightning.schema import IGNORE_INDEX, InputError
from etw_lightning.tuning.adapters import MERGEABLE, add_adapter

IDS = torch.arange(24)[None] * 37 % 300
LABELS = torch.where(torch.arange(24)[None] < 5, IGNORE_INDEX, IDS)
TARGETS = {"target_modules": ["q_proj", "down_proj"]}
LORA = {"peft_type": "LORA", "r": 4, **TARGETS}
#: What a model this small needs besides, by kind.
FURTHER = {
    "BOFT": {"boft_block_size": 4},
    "FOURIERFT": {"n_frequency": 20, "init_weights": True},
    "IA3": {"feedforward_modules": ["down_proj"]},
    "LN_TUNING": {"target_modules": ["input_layernorm"]},
    "MISS": {"r": 4},
    "OFT": {"r": 0, "oft_block_size": 4},
    "ROAD": {"group_size": 4},
    "SHIRA": {"r": 2},
}
KINDS = {
    **{kind: {"peft_type": kind, **TARGETS, **FURTHER.get(kind, {})} for kind in MERGEABLE},
    "all linear layers": {"peft_type": "LORA", "r": 4, "target_modules": "all-linear"},
    "DoRA": {**LORA, "use_dora": True},
    "rank-stabilised": {**LORA, "use_rslora": True, "lora_alpha": 0.5},
    "dropout": {**LORA, "lora_dropout": 0.3},
    "embeddings": {"peft_type": "LORA", "r": 4, "target_modules": ["embed_tokens", "v_proj"]},
    "pattern": {"peft_type": "LORA", "r": 4, "target_modules": r".*layers\.1\..*_proj"},
    "a norm of its own": {**LORA, "modules_to_save": ["norm"]},
}


def says(lm):
    """Logits at all positions and log-probabilities of the labels, as the scorer reads them."""
    with torch.no_grad():
        logits = lm(input_ids=IDS, use_cache=False).logits
        logps = LabelScorer(lm)(IDS, torch.ones_like(IDS), LABELS).logps
    return logits, logps


def train(lm, steps=2):
    """Train all that trains, until the model says something else; returns the weights' names."""
    names = [name for name, weight in lm.named_parameters() if weight.requires_grad]
    weights = [weight for weight in lm.parameters() if weight.requires_grad]
    optimizer = torch.optim.SGD(weights, lr=1.0)
    lm.train()
    for _ in range(steps):
        optimizer.zero_grad()
        LabelScorer(lm)(IDS, torch.ones_like(IDS), LABELS).logps.mean().neg().backward()
        torch.nn.utils.clip_grad_norm_(weights, 0.3)
        optimizer.step()
    lm.eval()
    return names


def equal(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("settings", KINDS.values(), ids=KINDS)
def test_an_adapter_trains_alone_and_comes_off_and_merges(lm, settings):
    before, weights = says(lm), {name: w.clone() for name, w in lm.state_dict().items()}
    torch.manual_seed(0)
    adapter = add_adapter(lm, settings)
    assert adapter.lm is lm
    train(lm)
    trained = says(lm)
    assert (trained[0] - before[0]).abs().max() > 1e-2, "nothing was trained"

    # Switched off it is the model it was, bit for bit, and on again the trained one.
    flags = [weight.requires_grad for weight in lm.parameters()]
    lm.train()
    with adapter.switched_off():
        assert not lm.training
        assert equal(says(lm), before)
    assert lm.training
    lm.eval()
    assert equal(says(lm), trained)
    assert flags == [weight.requires_grad for weight in lm.parameters()]

    # A merged copy is a plain model that says the same, and leaves the trained one alone.
    kept = {name: weight.clone() for name, weight in lm.state_dict().items()}
    plain = adapter.merged_copy()
    assert plain.state_dict().keys() == weights.keys()
    assert not hasattr(plain, "peft_config")
    assert type(plain) is type(lm)
    for one, other in zip(says(plain), trained, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-4)
    assert equal(says(lm), trained)

    # In place it is that copy to the bit, and afterwards the weights are what they were.
    with adapter.merged():
        assert equal(says(lm), says(plain))
    assert lm.state_dict().keys() == kept.keys()
    assert all(torch.equal(weight, kept[name]) for name, weight in lm.state_dict().items())

    # The model's own weights did not move.
    own = {name.replace(".base_layer", ""): weight for name, weight in kept.items()}
    own |= {name.replace(".original_module", ""): weight for name, weight in own.items()}
    assert all(torch.equal(own[name], weight) for name, weight in weights.items())


def test_only_the_adapter_has_gradients(lm):
    adapter = add_adapter(lm, LORA)
    names = train(adapter.lm)
    assert len(names) == 8
    assert all("lora_" in name for name in names)
    assert all((w.grad is not None) == ("lora_" in name) for name, w in lm.named_parameters())


def test_a_gradient_survives_switching_off_between_forward_and_backward(lm):
    """As where the reference is asked after the forward pass of a step."""
    adapter = add_adapter(lm, LORA)
    train(lm)
    found = []
    for asks_between in (False, True):
        lm.zero_grad()
        loss = LabelScorer(lm)(IDS, torch.ones_like(IDS), LABELS).logps.mean()
        if asks_between:
            with torch.no_grad(), adapter.switched_off():
                says(lm)
        loss.backward()
        found.append([w.grad.clone() for w in lm.parameters() if w.requires_grad])
    assert equal(*found)


def test_a_weight_frozen_by_hand_stays_so_when_switched_on(lm):
    adapter = add_adapter(lm, LORA)
    frozen = next(weight for weight in lm.parameters() if weight.requires_grad)
    frozen.requires_grad_(False)
    with adapter.switched_off():
        pass
    assert not frozen.requires_grad


def test_switching_off_first_costs_no_gradient_under_autocast(lm):
    """A cast weight that is kept from the pass without gradients would have none."""
    adapter = add_adapter(lm, LORA)
    train(lm)
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad(), adapter.switched_off():
            says(lm)
        loss = LabelScorer(lm)(IDS, torch.ones_like(IDS), LABELS).logps.mean()
    lm.zero_grad()
    loss.backward()
    grads = [weight.grad for weight in lm.parameters() if weight.requires_grad]
    assert all(grad is not None and grad.abs().max() > 0 for grad in grads)


def test_the_seed_fixes_the_first_weights(loaded):
    found = []
    for seed in (0, 0, 1):
        lm = copy.deepcopy(loaded)
        torch.manual_seed(seed)
        add_adapter(lm, LORA)
        found.append([w for w in lm.parameters() if w.requires_grad])
    assert equal(found[0], found[1])
    assert not equal(found[0], found[2])


def test_dropout_works_in_training_alone(lm):
    torch.manual_seed(0)
    add_adapter(lm, {**LORA, "lora_dropout": 0.5})
    train(lm)
    assert equal(says(lm), says(lm))
    lm.train()
    assert not equal(says(lm), says(lm))


@pytest.mark.parametrize("is_first", [True, False], ids=["checkpointing first", "adapter first"])
def test_gradient_checkpointing_changes_no_gradient(lm, is_first):
    """Though the embeddings, where a checkpointed part begins, are frozen."""
    settings = {**LORA, "lora_dropout": 0.3}
    found = []
    for is_thrifty in (False, True):
        model = copy.deepcopy(lm)
        if is_thrifty and is_first:
            model.activation_checkpointing_enable({"use_reentrant": False})
        torch.manual_seed(0)
        add_adapter(model, settings)
        if is_thrifty and not is_first:
            model.activation_checkpointing_enable({"use_reentrant": False})
        assert model.is_activation_checkpointing == is_thrifty
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if "lora_B" in name:
                    weight.fill_(0.1)
        torch.manual_seed(1)
        with torch.inference_mode():
            says(model)
        model.train()
        LabelScorer(model)(IDS, torch.ones_like(IDS), LABELS).logps.mean().backward()
        found.append([w.grad for w in model.parameters() if w.requires_grad])
    for one, other in zip(*found, strict=True):
        assert one.abs().max() > 0
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", ["LORA", "IA3", "LOHA", "OFT", "BOFT", "HRA"])
def test_adapters_of_a_bfloat16_model_are_float32(loaded, kind):
    lm = copy.deepcopy(loaded).bfloat16()
    before = says(lm)
    adapter = add_adapter(lm, KINDS[kind])
    assert {w.dtype for w in lm.parameters() if w.requires_grad} == {torch.float32}
    train(lm)
    with adapter.switched_off():
        assert equal(says(lm), before)
    trained = says(lm)[0]
    plain = adapter.merged_copy()
    assert {weight.dtype for weight in plain.parameters()} == {torch.bfloat16}
    # Weights rounded to eight bits.
    assert (says(plain)[0] - trained).norm() < 0.05 * trained.norm()


@pytest.mark.parametrize("kind", ["LORA", "LN_TUNING"])
def test_nothing_is_warned_of(lm, kind):
    settings = LORA if kind == "LORA" else {"peft_type": kind}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        add_adapter(lm, settings)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, r"model\.peft\.peft_type must be a kind that can be merged .*LORA, .*; got None"),
        ({"peft_type": "PROMPT_TUNING"}, r"model\.peft\.peft_type must .*; got 'PROMPT_TUNING'"),
        ({"peft_type": "ADALORA", "total_step": 9}, r"peft_type must .*; got 'ADALORA'"),
        ({**LORA, "rr": 8}, r"model\.peft\.rr is not a setting of LORA; did you mean 'r'\?"),
        ({**LORA, "layer_replication": []}, r"model\.peft\.layer_replication is not a setting"),
        ({**LORA, "r": "8"}, r"model\.peft\.r must be a whole number; got '8'"),
        (
            {**LORA, "r": 10_000},
            r"model\.peft\.r must be at most \d+, the smaller side of .*_proj,",
        ),
        ({"peft_type": "lora"}, r"got 'lora'\. Did you mean 'LORA'\?$"),
        ({"peft_type": "PROMPT_TUNING"}, r"got 'PROMPT_TUNING'\.$"),
        (
            {"peft_type": "OFT", "r": 7, **TARGETS},
            r"model\.peft\.r is .*; got 7\. Leave r out, or set oft_block_size to 0\.",
        ),
        ({**LORA, "target_parameters": ["zz"]}, r"target_parameters must name weights .*'zz'"),
        ({**LORA, "exclude_modules": ["zz"]}, r"exclude_modules .*There are [^;]*_proj\.$"),
        ({**LORA, "r": 0}, r"model\.peft\.r is refused by peft: .*positive"),
        ({**LORA, "lora_alpha": 0}, r"model\.peft\.lora_alpha must be > 0; got 0"),
        ({**LORA, "lora_dropout": 1.0}, r"model\.peft\.lora_dropout must be .* below 1; got 1\.0"),
        ({**LORA, "use_dora": "yes"}, r"model\.peft\.use_dora must be true or false; got 'yes'"),
        ({**LORA, "bias": "all"}, r"model\.peft\.bias must be none; got 'all'"),
        ({**LORA, "init_lora_weights": "pissa"}, r"init_lora_weights must be true, gaussian"),
        ({**LORA, "init_lora_weights": "x"}, r"init_lora_weights must be true, gaussian or"),
        ({**LORA, "init_lora_weights": False}, r"init_lora_weights must be true, gaussian"),
        ({**LORA, "lora_bias": True}, r"model\.peft\.lora_bias is refused by peft: Impossible"),
        (
            {**LORA, "target_modules": ["q_proj", "c_attn"]},
            r"target_modules must name modules .*'c_attn' matches none\. There are q_proj, k_proj",
        ),
        ({**LORA, "target_modules": "q_proj"}, r"target_modules .*'q_proj' matches none"),
        ({**LORA, "target_modules": "q(proj"}, r"target_modules must be a regular expression"),
        ({**LORA, "rank_pattern": {"c_attn": 2}}, r"rank_pattern must name .*'c_attn'"),
        ({**LORA, "layers_to_transform": [0, 2]}, r"layers_to_transform must be from 0 to 1; got"),
        ({**LORA, "target_modules": ["lm_head"]}, r"must leave the output head as it is"),
        ({**LORA, "modules_to_save": ["lm_head"]}, r"must leave the output head as it is"),
        (
            {"peft_type": "FOURIERFT", "n_frequency": 20, **TARGETS},
            r"model\.peft\.init_weights .*this one starts away from",
        ),
    ],
)
def test_bad_settings_are_one_line(lm, settings, said):
    with pytest.raises(InputError, match=said) as found:
        add_adapter(lm, settings)
    assert "\n" not in str(found.value)


def test_tied_embeddings_are_refused(tiny_tokenizer):
    from transformers import LlamaForCausalLM

    config = llama_config(320, 16, 1, inner=16, heads=2, tie_word_embeddings=True)
    lm = LlamaForCausalLM(config).eval()
    with pytest.raises(InputError, match=r"which the embeddings are: it is read without"):
        add_adapter(copy.deepcopy(lm), {"peft_type": "LORA", "target_modules": ["embed_tokens"]})
    adapter = add_adapter(lm, {"peft_type": "LORA", "target_modules": "all-linear"})
    plain = adapter.merged_copy()
    assert plain.get_output_embeddings().weight is plain.get_input_embeddings().weight


def test_without_the_package_the_way_out_is_named(lm, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(InputError, match=r"model\.peft needs the package peft: pip install"):
        add_adapter(lm, LORA)
