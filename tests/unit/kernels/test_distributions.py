"""Whole distributions in chunks: the same numbers and gradients as all at once."""

import pytest
import torch

from etw_lightning.kernels.distributions import GivenDistributions, HeadDistributions, TopLogps


@pytest.fixture
def parts():
    generator = torch.Generator().manual_seed(0)
    sizes = ((7, 5), (11, 5), (11,), (7, 11))
    return [torch.randn(*size, generator=generator, dtype=torch.float64) for size in sizes]


def divergence(logps, reference, labels):
    gap = (reference.logps.exp() * (reference.logps - logps)).sum(-1)
    return gap + logps.gather(-1, labels[:, None])[:, 0]


@pytest.mark.parametrize("chunk_size", [1, 3, 64])
@pytest.mark.parametrize("has_bias", [True, False])
def test_chunks_change_neither_values_nor_gradients(parts, chunk_size, has_bias):
    hidden, weight, bias, other = (part.clone().requires_grad_() for part in parts)
    bias = bias if has_bias else None
    labels = torch.arange(7) % 11
    live = HeadDistributions(other[:, :5], weight, bias, chunk_size)
    chunked = HeadDistributions(hidden, weight, bias, chunk_size).map(divergence, live, labels)
    inputs = [part for part in (hidden, weight, bias) if part is not None]
    found = torch.autograd.grad(chunked.square().sum(), inputs)

    logits = hidden @ weight.T + (0 if bias is None else bias)
    reference = (other[:, :5] @ weight.T + (0 if bias is None else bias)).log_softmax(-1).detach()
    whole = divergence(logits.log_softmax(-1), TopLogps(reference), labels)
    expected = torch.autograd.grad(whole.square().sum(), inputs)
    torch.testing.assert_close(chunked, whole, rtol=1e-12, atol=1e-12)
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-12)


def test_no_positions_give_no_terms_that_still_have_a_gradient(parts):
    hidden, weight = (part.clone().requires_grad_() for part in parts[:2])
    none = HeadDistributions(hidden[:0], weight).map(lambda logps: logps.sum(-1))
    assert none.shape == (0,)
    none.sum().backward()
    assert hidden.grad.abs().sum() == weight.grad.abs().sum() == 0


def test_a_slice_is_the_same_positions(parts):
    hidden, weight, bias, _ = parts
    every = HeadDistributions(hidden, weight, bias)
    assert len(every[2:5]) == 3
    # How a product of matrices is summed may depend on its number of rows, by the processor.
    torch.testing.assert_close(every[2:5].log_probs(), every.log_probs()[2:5], rtol=0, atol=1e-12)
    given = GivenDistributions(every.log_probs())
    assert torch.equal(given[2:5].log_probs(), every.log_probs()[2:5])


def test_half_precision_is_worked_in_float32(parts):
    hidden, weight = (part.to(torch.bfloat16) for part in parts[:2])
    with torch.autocast("cpu", torch.bfloat16):
        found = HeadDistributions(hidden, weight).log_probs()
    expected = (hidden.float() @ weight.float().T).log_softmax(-1)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)


def test_the_rest_of_what_is_held():
    logps = torch.tensor([[0.5, 0.25], [0.75, 0.25]]).log()
    ids = torch.tensor([[0, 1], [3, 2]])
    assert TopLogps(logps).rest.tolist() == [0, 0], "the whole vocabulary"
    torch.testing.assert_close(TopLogps(logps, ids).rest, torch.tensor([0.25, 0.0]))
    tiny = TopLogps(logps, ids, torch.tensor([-1.5, -30.0]))
    assert tiny.log_rest.tolist() == [-1.5, -30.0]
    assert tiny[1:].rest.item() == pytest.approx(9.4e-14, rel=0.01)
    assert tiny[1:].ids.tolist() == [[3, 2]]


def test_a_chunk_is_of_256_positions_unless_it_is_given():
    made = []
    every = HeadDistributions(torch.ones(300, 1), torch.ones(2, 1))
    assert every.map(lambda logps: made.append(len(logps)) or logps.sum(-1)).shape == (300,)
    assert made == [256, 44]
