"""Where a model's body and its decoder's layers are, in models of every build."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    GitConfig,
    Llama4TextConfig,
    LlamaConfig,
    OPTConfig,
)

from etw_lightning.schema import InputError
from etw_lightning.tuning.decoder import body_of, find_layers, hidden_of, layers_of, listening

SIZES = {"vocab_size": 40, "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2}
SPECIAL = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}


def build(config, **fields):
    return AutoModelForCausalLM.from_config(config(**{**SIZES, **SPECIAL, **fields})).eval()


@pytest.fixture
def llama():
    return build(LlamaConfig, intermediate_size=16)


def test_the_body_of_most_is_their_base_model(llama):
    assert body_of(llama) is llama.model
    assert find_layers(llama) is llama.model.layers


def test_llama_4_names_the_composite_model_it_is_a_part_of():
    experts = {"intermediate_size_mlp": 16, "num_local_experts": 2, "num_key_value_heads": 1}
    lm = build(Llama4TextConfig, intermediate_size=16, head_dim=8, **experts)
    assert lm.base_model is lm
    assert body_of(lm) is lm.model
    assert find_layers(lm) is lm.model.layers


def test_a_body_within_a_body():
    lm = build(OPTConfig, ffn_dim=16)
    assert body_of(lm) is lm.model
    assert find_layers(lm) is lm.model.decoder.layers


def test_a_tower_with_as_many_layers_is_left_out():
    """It comes first, and has more weights."""
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    vision = {**tower, "num_attention_heads": 2, "image_size": 16, "patch_size": 8}
    lm = build(GitConfig, intermediate_size=16, vision_config=vision)
    lists = [part for part in lm.git.modules() if isinstance(part, nn.ModuleList)]
    assert len(lists[0]) == len(lists[-1]) == 2
    assert find_layers(lm) is lm.git.encoder.layer is not lists[0]


def test_of_several_lists_it_is_the_one_with_the_weights(llama):
    llama.model.layers, others = nn.ModuleList(), llama.model.layers
    llama.model.first = nn.ModuleList([nn.Linear(1, 1), nn.Linear(1, 1)])
    llama.model.layers = others
    assert find_layers(llama) is others


def test_layers_that_are_counted_otherwise(llama):
    llama.config.num_hidden_layers = 4
    assert find_layers(llama) is llama.model.layers


def test_two_stacks_are_none(llama):
    half = nn.ModuleList([llama.model.layers[1]])
    llama.model.layers = nn.ModuleList([llama.model.layers[0]])
    llama.model.others = half
    assert find_layers(llama) is None
    with pytest.raises(InputError, match="the decoder layers of LlamaForCausalLM can't be found"):
        layers_of(llama)


def test_what_layers_say(llama):
    ids = torch.arange(5)[None]
    with torch.no_grad(), listening(llama, (0,)) as heard:
        llama(input_ids=ids)
    listed = llama(input_ids=ids, output_hidden_states=True).hidden_states
    assert list(heard) == [0]
    torch.testing.assert_close(heard[0], listed[1])


def test_a_layer_that_runs_twice_has_no_one_state(llama):
    layer = llama.model.layers[0]
    forward = llama.model.forward

    def twice(**inputs):
        forward(**inputs)
        return forward(**inputs)

    llama.model.forward = twice
    with (
        pytest.raises(InputError, match="LlamaForCausalLM runs layer 0 more than once"),
        listening(llama, (0,)),
    ):
        llama(input_ids=torch.arange(5)[None])
    assert not layer._forward_hooks


@pytest.mark.parametrize("wrap", [lambda one: one, lambda one: (one, 1), lambda one: [one, 1]])
def test_an_output_may_come_with_more(wrap):
    states = torch.zeros(2, 3, 4)
    assert hidden_of(wrap(states)) is states
    with pytest.raises(InputError, match="several states of each token"):
        hidden_of(wrap(states[None]))


def test_a_model_that_is_no_transformers_model():
    """As the tests' own, whose body is a method."""
    lm = SimpleNamespace(base_model=str)
    assert body_of(lm) is str
