"""Kernels against formulas over whole logits, float64: values, gradients and divergences."""

import pytest
import torch

from etw_lightning.kernels.distributions import HeadDistributions, TopLogps
from etw_lightning.kernels.divergences import cross_entropy, kl_divergence, mean_squares
from etw_lightning.kernels.head import linear_scores, linear_statistics
from etw_lightning.kernels.logits import LogitTransform

NUM, WIDTH, VOCABULARY = 7, 5, 13


def drawn(*shape, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("chunk_size", [1, 3, 7, 50])
@pytest.mark.parametrize("temperature", [0.7, 1.0, 3.0])
@pytest.mark.parametrize("has_bias", [True, False])
def test_scores_and_gradients_are_those_of_whole_logits(chunk_size, temperature, has_bias):
    parts = [drawn(NUM, WIDTH), drawn(VOCABULARY, WIDTH, seed=1)]
    parts += [drawn(VOCABULARY, seed=2)] if has_bias else []
    labels = torch.tensor([0, 12, 3, 3, 7, 1, 5])
    slope = drawn(NUM, seed=3)

    ours = [part.clone().requires_grad_() for part in parts]
    found = linear_scores(
        ours[0], ours[1], labels, *ours[2:], temperature=temperature, chunk_size=chunk_size
    )
    theirs = [part.clone().requires_grad_() for part in parts]
    logits = theirs[0] @ theirs[1].T + (theirs[2] if has_bias else 0)
    logps = logits - logits.exp().sum(-1, keepdim=True).log()
    expected = logps[torch.arange(NUM), labels]
    torch.testing.assert_close(found.logps, expected, rtol=1e-12, atol=1e-12)
    p = (logits.detach() / temperature).softmax(-1)
    torch.testing.assert_close(found.entropies, -(p * p.log()).sum(-1), rtol=1e-12, atol=1e-12)

    (found.logps * slope).sum().backward()
    (expected * slope).sum().backward()
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("scale", "cap", "size"), [(0.5, None, None), (1.0, 2.0, None), (3.0, 1.5, 11), (1.0, None, 9)]
)
def test_logits_that_a_model_scales_caps_and_cuts(scale, cap, size):
    """``cap * tanh(scale * x / cap)`` of the first ``size`` tokens."""
    hidden, weight = drawn(NUM, WIDTH), drawn(VOCABULARY, WIDTH, seed=1)
    labels, slope = torch.tensor([0, 8, 3, 3, 7, 1, 5]), drawn(NUM, seed=3)
    transform = LogitTransform(scale, cap, size)
    ours = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()]
    kept, _ = transform.cut(ours[1], None)
    found = linear_scores(ours[0], kept, labels, chunk_size=3, transform=transform)
    theirs = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()]
    logits = scale * (theirs[0] @ theirs[1][:size].T)
    logits = logits if cap is None else cap * (logits / cap).tanh()
    logps = logits.log_softmax(-1)
    expected = logps[torch.arange(NUM), labels]
    torch.testing.assert_close(found.logps, expected, rtol=1e-12, atol=1e-12)
    entropies = -(logps.exp() * logps).sum(-1)
    torch.testing.assert_close(found.entropies, entropies.detach(), rtol=1e-12, atol=1e-12)
    (found.logps * slope).sum().backward()
    (expected * slope).sum().backward()
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("has_bias", [True, False])
def test_a_whole_head_is_cut_before_it_is_described(has_bias):
    """Logits of the tokens that are left out are larger than all others, and count for nothing."""
    hidden, weight = drawn(NUM, WIDTH), drawn(VOCABULARY, WIDTH, seed=1)
    bias = drawn(VOCABULARY, seed=2)
    bias[9:] = 50.0
    bias = bias if has_bias else None
    transform = LogitTransform(0.5, 2.0, 9)
    labels = torch.tensor([0, 8, 3, 3, 7, 1, 5])
    plain = hidden @ weight[:9].T + (0 if bias is None else bias[:9])
    p = (2.0 * (0.5 * plain / 2.0).tanh()).softmax(-1)
    logps = p.log()
    entropies = -(p * logps).sum(-1)
    told = linear_statistics(hidden, weight, labels, bias, chunk_size=3, transform=transform)
    scores = linear_scores(hidden, weight, labels, bias, chunk_size=3, transform=transform)
    exact = {"rtol": 1e-10, "atol": 1e-12}
    for found in (told, scores):
        torch.testing.assert_close(found.logps, logps[torch.arange(NUM), labels], **exact)
        torch.testing.assert_close(found.entropies, entropies, **exact)
    variances = (p * (logps + entropies[:, None]).square()).sum(-1)
    torch.testing.assert_close(told.variances, variances, **exact)
    assert told.matches.tolist() == (p.argmax(-1) == labels).tolist()
    every = HeadDistributions(hidden, weight, bias, 3, transform)
    torch.testing.assert_close(every.log_probs(), logps, **exact)


def test_the_entropy_of_a_near_certain_prediction_keeps_its_digits():
    """Two tokens, a gap of 20 nats: H = log(1 + e^-20) + 20 e^-20 / (1 + e^-20)."""
    hidden = torch.tensor([[20.0]])
    scores = linear_scores(hidden, torch.tensor([[1.0], [0.0]]), torch.tensor([0]))
    small = torch.tensor(-20.0, dtype=torch.float64).exp()
    expected = torch.log1p(small) + 20 * small / (1 + small)
    assert scores.entropies.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("held", [1, 4, VOCABULARY - 1, VOCABULARY])
def test_divergences_from_the_likeliest_tokens_and_one_bucket(held):
    """Of all tokens but those that are held, the sums of both distributions are compared."""
    logps = drawn(NUM, VOCABULARY).log_softmax(-1)
    target = drawn(NUM, VOCABULARY, seed=1, scale=2.0).log_softmax(-1)
    top, ids = target.topk(held)
    expected_kl, expected_ce = [], []
    for row in range(NUM):
        chosen = ids[row].tolist()
        others = [token for token in range(VOCABULARY) if token not in chosen]
        p, q = logps[row].exp(), target[row].exp()
        pairs = [(q[token], p[token]) for token in chosen]
        pairs += [(q[others].sum(), p[others].sum())] if others else []
        expected_kl.append(sum(a * (a / b).log() for a, b in pairs))
        expected_ce.append(-sum(a * b.log() for a, b in pairs))
    given = TopLogps(top, ids)
    kl, ce = kl_divergence(logps, given), cross_entropy(logps, given)
    torch.testing.assert_close(kl, torch.stack(expected_kl), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(ce, torch.stack(expected_ce), rtol=1e-9, atol=1e-9)


def test_means_of_squares_are_each_sequences_own():
    states, wanted = drawn(5, 3), drawn(5, 3, seed=1)
    rows = torch.tensor([0, 0, 2, 2, 2])
    found = mean_squares(states, wanted, rows, 4)
    gaps = (states - wanted).square().mean(-1)
    expected = [gaps[:2].mean().item(), 0, gaps[2:].mean().item(), 0]
    assert found.tolist() == pytest.approx(expected)
