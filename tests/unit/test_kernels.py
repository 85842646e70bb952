"""The fused head: memory, dtypes and what it refuses. Its numbers: parity/test_etw_formula.py."""

import pytest
import torch

from etw_lightning import kernels
from etw_lightning.kernels import linear_scores

NUM, WIDTH, VOCABULARY = 10, 4, 31


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(NUM, WIDTH, generator=generator, requires_grad=True)
    weight = torch.randn(VOCABULARY, WIDTH, generator=generator, requires_grad=True)
    return hidden, weight, torch.arange(NUM)


@pytest.mark.parametrize("chunk_size", [1, 4, 10, 100])
def test_no_more_than_a_chunk_of_logits_at_a_time(inputs, monkeypatch, chunk_size):
    made, saved = [], []
    original = kernels._float_logits

    def spy(hidden, *rest):
        made.append(len(hidden))
        return original(hidden, *rest)

    monkeypatch.setattr(kernels, "_float_logits", spy)
    hooks = torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: saved.append(tuple(tensor.shape)) or tensor, lambda tensor: tensor
    )
    with hooks:
        scores = linear_scores(*inputs, chunk_size=chunk_size)
    scores.logps.sum().backward()
    assert max(made) == min(chunk_size, NUM)
    assert sum(made) == 2 * NUM  # once forward, once backward
    assert (NUM, VOCABULARY) not in saved


def test_entropies_only_when_asked_for_and_never_with_a_gradient(inputs):
    scores = linear_scores(*inputs, entropy=False)
    assert scores.entropies is None
    scores = linear_scores(*inputs)
    assert scores.logps.requires_grad
    assert not scores.entropies.requires_grad
    torch.testing.assert_close(linear_scores(*inputs, entropy=False).logps, scores.logps)


def test_temperature_is_the_entropy_s_alone(inputs):
    cold, hot = (linear_scores(*inputs, temperature=t) for t in (0.5, 3.0))
    assert torch.equal(cold.logps, hot.logps)
    assert (cold.entropies < hot.entropies).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(inputs, dtype):
    hidden, weight = (tensor.detach().to(dtype).requires_grad_() for tensor in inputs[:2])
    scores = linear_scores(hidden, weight, inputs[2])
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert scores.logps.dtype == scores.entropies.dtype == wide
    scores.logps.sum().backward()
    assert hidden.grad.dtype == weight.grad.dtype == dtype


def test_inputs_are_left_as_they_were(inputs):
    before = [tensor.detach().clone() for tensor in inputs]
    bias = torch.ones(VOCABULARY, requires_grad=True)
    linear_scores(*inputs, bias, chunk_size=3).logps.sum().backward()
    assert all(torch.equal(a, b) for a, b in zip(inputs, before, strict=True))
    assert (bias == 1).all()


def test_inputs_need_not_be_contiguous(inputs):
    hidden, weight, labels = inputs
    plain = linear_scores(hidden, weight, labels, chunk_size=3)
    strided = torch.stack([hidden, hidden], -1)[..., 0], weight.T.contiguous().T, labels
    assert not strided[0].is_contiguous()
    assert not strided[1].is_contiguous()
    scores = linear_scores(*strided, chunk_size=3)
    torch.testing.assert_close(scores, plain)
    (expected,) = torch.autograd.grad(plain.logps.sum(), hidden)
    (actual,) = torch.autograd.grad(scores.logps.sum(), hidden)
    torch.testing.assert_close(actual, expected)


def test_a_second_derivative_is_refused(inputs):
    """It would treat the normalizers as constants, so an error is right."""
    hidden, *_ = inputs
    (first,) = torch.autograd.grad(linear_scores(*inputs).logps.sum(), hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="inplace"):
        first.sum().backward()
