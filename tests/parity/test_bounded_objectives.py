"""JensUn, FLAT and the JS retain term against plain float64 formulas, value and gradient."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from etw_lightning.forget import FLAT, JensUn
from etw_lightning.kernels.distributions import GivenDistributions, HeadDistributions, TopLogps
from etw_lightning.kernels.divergences import js_divergence
from etw_lightning.kernels.signals import TokenSignals
from etw_lightning.retain import JS

VOCABULARY = 6
#: Labelled tokens of forget answers and second answers; one of each is empty.
LENGTHS, OTHERS = (4, 0, 5, 2), (2, 3, 0, 3)


def answers(seed, lengths):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(sum(lengths), VOCABULARY, generator=generator, dtype=torch.float64)
    logits.requires_grad_()
    labels = torch.randint(VOCABULARY, (sum(lengths),), generator=generator)
    logps = logits.log_softmax(-1)
    signals = TokenSignals(
        labels=labels,
        rows=torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)),
        num_rows=len(lengths),
        logps=logps.gather(1, labels[:, None])[:, 0],
        distributions=GivenDistributions(logps),
    )
    return signals, logits


def softmax(logits):
    shares = np.exp(logits - logits.max(-1, keepdims=True))
    return shares / shares.sum(-1, keepdims=True)


def divergence(p, q):
    """Jensen-Shannon in natural logarithms, from its definition."""
    half = (p + q) / 2
    pairs = [zip(one, half, strict=True) for one in (p, q)]
    return sum(a * math.log(a / h) for pair in pairs for a, h in pair if a > 0) / 2


def jensun(logits, other_labels, weights):
    found, start, other_start = [], 0, 0
    shares = softmax(logits)
    for length, other in zip(LENGTHS, OTHERS, strict=True):
        for place in range(length):
            target = np.zeros(VOCABULARY)
            if other:
                target[other_labels[other_start + place % other]] = 1
            here = weights[start + place] * divergence(shares[start + place], target)
            found.append(here if other else 0.0)
        start, other_start = start + length, other_start + other
    return np.array(found)


def flat(kind, logits, labels, other_logits, other_labels, weights):
    """By the definitions of the conjugates: f*(u) of each f."""
    maps = {
        "total_variation": (lambda v: math.tanh(v) / 2, lambda u: u),
        "jensen_shannon": (
            lambda v: math.log(2 / (1 + math.exp(-v))),
            lambda u: -math.log(2 - math.exp(u)),
        ),
        "pearson": (lambda v: v, lambda u: u * u / 4 + u),
        "kl": (lambda v: v, lambda u: math.exp(u - 1)),
    }
    g, conjugate = maps[kind]
    picked = softmax(logits)[np.arange(len(labels)), labels] * weights
    other_picked = softmax(other_logits)[np.arange(len(other_labels)), other_labels]
    found, start, other_start = [], 0, 0
    for length, other in zip(LENGTHS, OTHERS, strict=True):
        own = picked[start : start + length]
        wanted = other_picked[other_start : other_start + other]
        mean, other_mean = (x.mean() if len(x) else 0.0 for x in (own, wanted))
        found.append(conjugate(g(mean)) - g(other_mean) if length else 0.0)
        start, other_start = start + length, other_start + other
    return np.array(found)


def slopes(function, logits):
    """Central differences of a sum."""
    found = np.zeros_like(logits)
    for place in np.ndindex(logits.shape):
        step = np.zeros_like(logits)
        step[place] = 1e-5
        found[place] = (function(logits + step).sum() - function(logits - step).sum()) / 2e-5
    return found


@pytest.fixture
def problem():
    forget, logits = answers(0, LENGTHS)
    other, other_logits = answers(1, OTHERS)
    weights = torch.linspace(0.2, 1.7, len(forget.labels), dtype=torch.float64)
    return replace(forget, alternative=other), logits, other_logits, weights


def assert_twin(terms, logits, twin):
    given = logits.detach().numpy()
    np.testing.assert_allclose(terms.detach().numpy(), twin(given), rtol=0, atol=1e-12)
    (gradient,) = torch.autograd.grad(terms.sum(), logits, retain_graph=True)
    np.testing.assert_allclose(gradient.numpy(), slopes(twin, given), rtol=0, atol=1e-9)


def test_jensun_is_the_divergence_from_the_second_answers_tokens_in_turn(problem):
    signals, logits, _, weights = problem
    labels = signals.alternative.labels.numpy()
    assert_twin(JensUn()(signals, weights), logits, lambda z: jensun(z, labels, weights.numpy()))


def test_jensun_ends_at_nothing_and_begins_at_log_2():
    for share, expected in ((1.0, 0.0), (0.0, math.log(2))):
        logps = torch.tensor([[share, 1 - share]], dtype=torch.float64).log()
        signals, _ = answers(0, (1,))
        signals = replace(signals, distributions=GivenDistributions(logps.clamp(min=-1e9)))
        other = replace(signals, labels=torch.tensor([0]))
        found = JensUn()(replace(signals, alternative=other), torch.ones(1))
        assert found.item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("kind", ["total_variation", "jensen_shannon", "pearson", "kl"])
def test_flat_is_the_variational_gap_of_both_answers(problem, kind):
    signals, logits, other_logits, weights = problem
    labels, others = signals.labels.numpy(), signals.alternative.labels.numpy()
    terms = FLAT(kind)(signals, weights)

    def twin(own, other):
        return flat(kind, own, labels, other, others, weights.numpy())

    assert_twin(terms, logits, lambda z: twin(z, other_logits.detach().numpy()))
    assert_twin(terms, other_logits, lambda z: twin(logits.detach().numpy(), z))


def test_an_unknown_divergence_is_refused():
    with pytest.raises(ValueError, match=r"model.forget.divergence must be total_v.*'tv'"):
        FLAT("tv")


def test_the_retain_term_is_the_divergence_from_the_target_model():
    signals, logits = answers(2, LENGTHS)
    reference = answers(3, LENGTHS)[1].detach()
    wanted = softmax(reference.numpy())

    def twin(given):
        pairs = zip(softmax(given), wanted, strict=True)
        return np.array([divergence(p, q) for p, q in pairs])

    whole = GivenDistributions(reference.log_softmax(-1))
    assert_twin(JS()(replace(signals, reference_distributions=whole)), logits, twin)
    ordered = reference.log_softmax(-1).sort(descending=True)
    cached = TopLogps(ordered.values, ordered.indices)
    assert_twin(JS()(replace(signals, reference_distributions=cached)), logits, twin)
    # Known by its largest entries: the others are one bucket, on both sides.
    top = TopLogps(ordered.values[:, :2], ordered.indices[:, :2])
    names = ordered.indices[:, :2].numpy()

    def coarse(shares):
        held = np.take_along_axis(shares, names, 1)
        return np.concatenate([held, 1 - held.sum(1, keepdims=True)], 1)

    def coarse_twin(given):
        pairs = zip(coarse(softmax(given)), coarse(wanted), strict=True)
        return np.array([divergence(p, q) for p, q in pairs])

    assert_twin(JS()(replace(signals, reference_distributions=top)), logits, coarse_twin)


def test_a_certain_target_is_no_infinity():
    """float32 gives exact zeros: 0 log 0 is 0, and so is the gradient of what stays at 0."""
    logits = torch.tensor([[200.0, 0.0, -200.0]], requires_grad=True)
    target = TopLogps(torch.tensor([[-200.0, 0.0, -400.0]]).log_softmax(-1))
    found = js_divergence(logits.log_softmax(-1), target)
    assert found.item() == pytest.approx(math.log(2), abs=1e-6)
    (gradient,) = torch.autograd.grad(found.sum(), logits)
    assert gradient.isfinite().all()


def test_the_chunks_of_the_head_do_not_matter(problem):
    signals, _, _, weights = problem
    generator = torch.Generator().manual_seed(5)
    hidden = torch.randn(len(signals.labels), 4, generator=generator, dtype=torch.float64)
    head = torch.randn(VOCABULARY, 4, generator=generator, dtype=torch.float64)
    heads = [HeadDistributions(hidden, head, None, size) for size in (1, 3, 256)]
    found = [JensUn()(replace(signals, distributions=one), weights) for one in heads]
    for one in found[1:]:
        torch.testing.assert_close(one, found[0], rtol=1e-12, atol=1e-12)
