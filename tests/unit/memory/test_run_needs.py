"""A run's needs: the precision of weights, what trains, an adapter, what a checkpoint takes."""

from dataclasses import replace

import pytest
import torch
from small_models import llama_config
from transformers import LlamaForCausalLM

from etw_lightning.memory.outline import TraceError
from etw_lightning.memory.run_needs import (
    RunShape,
    find_sizes,
    needs_by_strategy,
    precision_dtypes,
    run_needs,
    run_outline,
)
from etw_lightning.schema import InputError

CONFIG = llama_config(500, 64, tie_word_embeddings=False)
SHAPE = RunShape(rows=4, tokens=16, on_cuda=False)
COUNT = sum(weight.numel() for weight in LlamaForCausalLM(CONFIG).parameters())
LORA = {"peft_type": "LORA", "r": 4, "target_modules": ["q_proj"]}


@pytest.mark.parametrize(
    ("dtype", "precision", "plain", "engine"),
    [
        ("float32", "32-true", (torch.float32, None), (torch.float32, None)),
        ("bfloat16", "32-true", (torch.bfloat16, None), (torch.bfloat16, None)),
        ("float32", "bf16-true", (torch.bfloat16, None), (torch.bfloat16, None)),
        ("float32", "16-mixed", (torch.float32, torch.float16), (torch.float16, None)),
        ("float32", "64-true", (torch.float64, None), (torch.float64, None)),
    ],
)
def test_precision_decides_the_weights(dtype, precision, plain, engine):
    assert precision_dtypes(dtype, precision) == plain
    assert precision_dtypes(dtype, precision, deepspeed=True) == engine


def test_everything_trains_with_two_means():
    needs = run_needs(CONFIG, SHAPE)
    assert (needs.num_weights, needs.num_trained) == (COUNT, COUNT)
    assert (needs.weights, needs.trained, needs.state) == (4 * COUNT, 4 * COUNT, 8 * COUNT)
    assert needs.root + 2 * needs.layer == needs.weights
    assert needs.largest == 4 * 500 * 64
    assert needs.evaluation == 0


def test_an_adapter_alone_has_gradients_and_state():
    peft = pytest.importorskip("peft")
    lora = peft.LoraConfig(r=4, target_modules=["q_proj"])
    model = peft.get_peft_model(LlamaForCausalLM(CONFIG), lora)
    trained, everything = model.get_nb_trainable_parameters()
    needs = run_needs(CONFIG, replace(SHAPE, peft=LORA))
    assert (needs.num_trained, needs.num_weights) == (trained, everything)
    assert needs.state == 8 * trained


def test_an_adapter_follows_a_true_precision():
    pytest.importorskip("peft")
    outline = run_outline(CONFIG, replace(SHAPE, peft=LORA, precision="bf16-true"))
    assert {weight.dtype for weight in outline.lm.parameters()} == {torch.bfloat16}
    wide = run_outline(CONFIG, replace(SHAPE, peft=LORA, dtype="bfloat16"))
    assert {weight.dtype for weight in wide.trained} == {torch.float32}


def test_an_adapter_made_from_numbers_is_not_traced():
    pytest.importorskip("peft")
    with pytest.raises(TraceError, match="SHIRA is made from numbers"):
        run_outline(CONFIG, replace(SHAPE, peft={**LORA, "peft_type": "SHIRA", "r": 2}))


def test_bad_settings_are_refused_by_their_keys():
    with pytest.raises(InputError, match=r"model\.train_only must match"):
        run_needs(CONFIG, replace(SHAPE, train_only=["nothing"]))


def test_a_model_that_is_no_language_model_is_refused():
    from transformers import ViTConfig

    with pytest.raises(InputError, match=r"model\.pretrained must be a causal language model"):
        run_outline(ViTConfig(), SHAPE)


def test_a_key_value_cache_is_counted():
    shape = replace(SHAPE, eval_rows=2, eval_tokens=16)
    less, more = (run_needs(CONFIG, replace(shape, new_tokens=count)) for count in (1, 11))
    # Keys and values of two layers, two heads of 16; on a CPU twice, for what is freed between.
    assert more.evaluation - less.evaluation == 2 * 4 * 2 * 10 * (2 * 2 * 2 * 16)
    less, more = (
        run_needs(CONFIG, replace(shape, new_tokens=count, on_cuda=True)) for count in (1, 11)
    )
    assert more.evaluation - less.evaluation == 4 * 2 * 10 * (2 * 2 * 2 * 16)


def test_a_live_reference_is_kept_and_saved_once_more():
    live = replace(SHAPE, reference="live")
    assert run_needs(CONFIG, live).reference == 4 * COUNT
    assert find_sizes(CONFIG, SHAPE).checkpoint == 3 * 4 * COUNT
    assert find_sizes(CONFIG, live).checkpoint == 4 * 4 * COUNT
    assert find_sizes(CONFIG, live).model == 4 * COUNT


def test_gradients_apart_are_there_in_a_step_and_remembered_ones_always():
    plain = run_needs(CONFIG, SHAPE)
    apart = run_needs(CONFIG, replace(SHAPE, gradients_apart=2, gradients_kept=1))
    assert (plain.apart, apart.apart) == (0, 2 * 4 * COUNT)
    assert apart.state == plain.state + 4 * COUNT


def test_deepspeed_saves_float32_weights_beside_those_in_16_bits():
    sizes = find_sizes(CONFIG, replace(SHAPE, precision="bf16-mixed"), deepspeed=True)
    assert sizes.checkpoint == (2 + 12) * COUNT


def test_mixed_precision_is_16_bits_under_deepspeed():
    needs = needs_by_strategy(CONFIG, replace(SHAPE, precision="bf16-mixed"))
    assert needs["fsdp"].weights == 4 * COUNT
    assert needs["deepspeed_zero3"].weights == 2 * COUNT
    same = needs_by_strategy(CONFIG, SHAPE)
    assert same["fsdp"] is same["deepspeed_zero3"]


def test_a_run_that_is_called_small_is_far_below_its_bound():
    shape = replace(SHAPE, tokens=64, rows=8)
    needs, sizes = run_needs(CONFIG, shape), find_sizes(CONFIG, shape)
    assert max(needs.forward, *(moment.working for moment in needs.moments)) < sizes.working / 2
