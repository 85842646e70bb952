"""What a step's tensors take, counted without numbers: by hand, and against a real model."""

from dataclasses import replace

import pytest
import torch
from small_models import llama_config
from torch import nn
from transformers import Gemma2Config, InklingTextConfig, LlamaConfig, LlamaForCausalLM

from etw_lightning.kernels import head
from etw_lightning.memory.outline import TraceError, build_outline
from etw_lightning.memory.step_trace import StepShape, trace_evaluation, trace_step

CONFIG = llama_config(3000, 64, 3, tie_word_embeddings=False)
SHAPE = StepShape(rows=4, tokens=32, labels=124, chunk_size=64)
HEAD = 3000 * 64


def outline(dtype=torch.float32, change=None, config=CONFIG):
    return build_outline(config, dtype, change=change)


def peaks(shape=SHAPE, **how):
    forward, moments = trace_step(outline(**how), shape)
    return forward, max(moment.working for moment in moments)


def test_weights_are_those_of_the_model():
    real, built = LlamaForCausalLM(CONFIG), outline()
    assert built.num_weights == sum(weight.numel() for weight in real.parameters())
    assert built.weights == 4 * built.num_weights
    layers = [4 * sum(one.numel() for one in layer.parameters()) for layer in real.model.layers]
    assert built.layer_sizes == layers


def test_a_tied_head_is_counted_once():
    tied = LlamaConfig.from_dict({**CONFIG.to_dict(), "tie_word_embeddings": True})
    assert outline().num_weights - outline(config=tied).num_weights == HEAD


def test_all_gradients_are_there_at_the_end():
    built = outline()
    _, moments = trace_step(built, SHAPE)
    assert max(moment.gradients for moment in moments) == built.weights
    assert all(weight.grad is None for weight in built.trained)


def test_frozen_weights_have_no_gradients():
    built = outline(change=lambda lm: lm.model.requires_grad_(False))
    forward, moments = trace_step(built, SHAPE)
    assert max(moment.gradients for moment in moments) == 4 * HEAD
    assert forward < peaks()[0]


@pytest.fixture
def nothing_kept(monkeypatch):
    """No probabilities are kept for the backward pass."""
    monkeypatch.setattr(head, "_ROOM", 0)


@pytest.mark.usefixtures("nothing_kept")
def test_a_chunk_of_logits_is_alive_in_the_forward_pass():
    more = peaks(replace(SHAPE, chunk_size=124))[0] - peaks(replace(SHAPE, chunk_size=64))[0]
    # Logits, float32, of which the exponentials are taken row by row.
    assert more == pytest.approx(4 * 3000 * 60, rel=0.02)


def test_what_is_kept_for_the_backward_pass_is_counted(monkeypatch):
    """A last chunk of logits is there in either case."""
    few = replace(SHAPE, chunk_size=4)
    kept = peaks(few)[0]
    monkeypatch.setattr(head, "_ROOM", 0)
    assert kept - peaks(few)[0] == pytest.approx(4 * 3000 * (SHAPE.labels - 4), rel=0.03)


def gemma(cap):
    sizes = {"head_dim": 16, "sliding_window": 8, "final_logit_softcapping": cap}
    given = {name: getattr(CONFIG, name) for name in ("vocab_size", "hidden_size")}
    return Gemma2Config(
        **given, **sizes, num_hidden_layers=1, intermediate_size=64, num_attention_heads=4
    )


@pytest.mark.usefixtures("nothing_kept")
def test_a_soft_cap_takes_a_chunk_more_in_the_backward_pass():
    plain, capped = (peaks(config=gemma(cap)) for cap in (None, 30.0))
    assert capped[0] == plain[0]
    assert capped[1] - plain[1] == pytest.approx(4 * 3000 * 64, rel=0.02)
    assert trace_evaluation(outline(config=gemma(30.0)), SHAPE) == trace_evaluation(
        outline(config=gemma(None)), SHAPE
    )


@pytest.mark.usefixtures("nothing_kept")
def test_a_soft_cap_is_counted_in_distributions_too():
    wide = replace(SHAPE, reads_distributions=True)
    plain, capped = (peaks(wide, config=gemma(cap))[1] for cap in (None, 30.0))
    assert capped > plain


def test_tokens_that_are_never_said_have_no_logits():
    assert outline(config=gemma(None)).transform is None
    sizes = {"vocab_size": 3000, "unpadded_vocab_size": 2000, "hidden_size": 64}
    built = outline(config=InklingTextConfig(**sizes, num_hidden_layers=1, num_attention_heads=4))
    assert built.transform.size == 2000


@pytest.mark.slow
def test_checkpointing_keeps_one_tensor_a_layer():
    def checkpoint(lm):
        lm.activation_checkpointing_enable({"use_reentrant": False})

    def kept(depth, change):
        config = LlamaConfig.from_dict({**CONFIG.to_dict(), "num_hidden_layers": depth})
        return peaks(config=config, change=change)[0]

    layer = kept(9, checkpoint) - kept(8, checkpoint)
    assert layer == 4 * 4 * 32 * 64
    assert kept(9, None) - kept(8, None) > 10 * layer


def test_autocast_keeps_a_copy_of_the_products_weights():
    low = replace(SHAPE, autocast=torch.bfloat16)
    built = outline(change=lambda lm: lm.activation_checkpointing_enable({"use_reentrant": False}))
    layers = sum(built.layer_sizes)
    forward, moments = trace_step(built, low)
    assert forward > layers // 2
    # With the forward pass the copies go.
    assert max(moment.working for moment in moments if moment.gradients > 4 * HEAD) < forward


def test_a_16_bit_head_is_copied_on_the_cpu_alone():
    dtype = torch.bfloat16
    here, there = (peaks(replace(SHAPE, on_cuda=flag), dtype=dtype)[1] for flag in (False, True))
    assert here - there == 4 * HEAD


def test_a_reference_and_distributions_take_more():
    forward, backward = peaks()
    assert peaks(replace(SHAPE, has_reference=True))[0] >= forward
    assert peaks(replace(SHAPE, reads_distributions=True))[1] > backward


def test_scoring_keeps_no_layer():
    assert trace_evaluation(outline(), SHAPE) < peaks()[0]


def test_a_model_that_reads_numbers_is_refused():
    class Reader(nn.Module):
        def forward(self, input_ids, attention_mask, use_cache):
            return torch.zeros(input_ids.sum().item())

    built = outline()
    built.lm.base_model_prefix, built.lm.reader = "reader", Reader()
    with pytest.raises(TraceError, match="LlamaForCausalLM can't be traced"):
        trace_step(built, SHAPE)


@pytest.mark.parametrize("name", ["rows", "tokens", "labels", "chunk_size"])
def test_an_empty_batch_is_refused(name):
    with pytest.raises(ValueError, match=f"{name} must be >= "):
        replace(SHAPE, **{name: 0})
