"""Forget objectives of whole distributions: plain formulas, limits, chunks."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from etw_lightning.forget import CEU, ME, PDU, UNDIAL
from etw_lightning.forget.distributions import _lowered
from etw_lightning.kernels.distributions import GivenDistributions, HeadDistributions, TopLogps
from etw_lightning.kernels.divergences import cross_entropy, kl_divergence
from etw_lightning.kernels.signals import TokenSignals
from etw_lightning.schema import InputError

#: Sequence of each token: row 1 has none, row 2 fewer than some objectives leave out.
ROWS = torch.tensor([0, 0, 0, 2, 3, 3])
VOCABULARY = 9
#: Each with what its constructor's default does not show.
OBJECTIVES = [UNDIAL(), UNDIAL(2.5), CEU(), CEU(0), CEU(2), PDU(), ME()]


def near(found, wanted):
    np.testing.assert_allclose(found.detach().numpy(), np.asarray(wanted), rtol=0, atol=1e-10)


def top(logps, ids):
    """Return the distributions known at some tokens only."""
    return TopLogps(logps.gather(-1, ids), ids)


@pytest.fixture
def inputs():
    """Logits of the model and of the reference, labels and weights of six tokens."""
    generator = torch.Generator().manual_seed(3)
    size = (len(ROWS), VOCABULARY)
    logits = 2 * torch.randn(size, dtype=torch.float64, generator=generator)
    reference = 2 * torch.randn(size, dtype=torch.float64, generator=generator)
    labels = torch.randint(VOCABULARY, (len(ROWS),), generator=generator)
    weights = torch.rand(len(ROWS), dtype=torch.float64, generator=generator)
    return logits.requires_grad_(), reference, labels, weights


def signals(distributions, labels, reference=None, rows=ROWS, num_rows=4):
    logps = torch.zeros(len(labels), dtype=torch.float64)
    return TokenSignals(
        labels,
        rows,
        num_rows,
        logps,
        distributions=distributions,
        reference_distributions=reference,
    )


def softmax(logits):
    return [math.exp(z) / sum(math.exp(y) for y in logits) for z in logits]


def plain(objective, logits, reference, label, place):
    """Return the term of one token and its gradient by the logits."""
    size = len(logits)
    p = softmax(logits)
    if isinstance(objective, PDU):
        best = max(range(size), key=lambda v: logits[v])
        margin = logits[best] - sum(logits) / size
        return margin**2, [2 * margin * ((v == best) - 1 / size) for v in range(size)]
    if isinstance(objective, ME):
        entropy = sum(-x * math.log(x) for x in p)
        return math.log(size) - entropy, [x * (math.log(x) + entropy) for x in p]
    if isinstance(objective, CEU):
        if place < objective.skip_first:
            return 0.0, [0.0] * size
        left = 1 - p[label]
        q = [0.0 if v == label else p[v] / left for v in range(size)]
    else:
        q = softmax([z - objective.strength * (v == label) for v, z in enumerate(reference)])
    term = sum(-q[v] * math.log(p[v]) for v in range(size))
    return term, [p[v] - q[v] for v in range(size)]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=repr)
def test_value_and_gradient_are_the_formula_s(objective, inputs):
    logits, reference, labels, weights = inputs
    given = GivenDistributions(logits.log_softmax(-1))
    said = signals(given, labels, GivenDistributions(reference.log_softmax(-1)))
    terms = objective(said, weights)
    incoming = torch.arange(1.0, 7.0, dtype=torch.float64)
    (terms * incoming).sum().backward()
    values, grads = [], []
    for token, place in enumerate([0, 1, 2, 0, 0, 1]):
        row = logits[token].tolist(), reference[token].tolist(), labels[token].item()
        value, grad = plain(objective, *row, place)
        weight = weights[token].item()
        values.append(weight * value)
        grads.append([weight * incoming[token].item() * part for part in grad])
    near(terms, values)
    near(logits.grad, grads)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=repr)
@pytest.mark.parametrize("chunk_size", [1, 3, 64])
@pytest.mark.parametrize("num_held", [None, 4])
def test_chunks_of_a_head_do_not_matter(objective, chunk_size, num_held, inputs):
    _, reference, labels, weights = inputs
    generator = torch.Generator().manual_seed(5)

    def leaf(*size):
        return torch.randn(size, dtype=torch.float64, generator=generator).requires_grad_()

    parts = leaf(len(ROWS), 5), leaf(VOCABULARY, 5), leaf(VOCABULARY)
    frozen = GivenDistributions(reference.log_softmax(-1))
    if num_held:
        others = reference.scatter(-1, labels[:, None], -torch.inf).topk(num_held - 1).indices
        frozen = top(reference.log_softmax(-1), torch.cat([others, labels[:, None]], -1))
    whole = GivenDistributions(nn.functional.linear(*parts).log_softmax(-1))
    found = []
    for distributions in (whole, HeadDistributions(*parts, chunk_size)):
        terms = objective(signals(distributions, labels, frozen), weights)
        found.append((terms, *torch.autograd.grad(terms.square().sum(), parts)))
    for one, other in zip(*found, strict=True):
        near(one, other.detach())


@pytest.mark.parametrize("objective", OBJECTIVES, ids=repr)
def test_weights_multiply(objective, inputs):
    logits, reference, labels, weights = inputs
    said = signals(
        GivenDistributions(logits.log_softmax(-1)),
        labels,
        GivenDistributions(reference.log_softmax(-1)),
    )
    near(objective(said, weights), weights * objective(said, torch.ones_like(weights)).detach())


@pytest.mark.parametrize("objective", OBJECTIVES, ids=repr)
def test_a_batch_equals_its_rows(objective, inputs):
    logits, reference, labels, weights = inputs
    said = signals(
        GivenDistributions(logits.log_softmax(-1)),
        labels,
        GivenDistributions(reference.log_softmax(-1)),
    )
    parts = []
    for row in range(4):
        here = said.rows == row
        parts.append(objective(said.slice_rows(row, row + 1), weights[here]))
    near(objective(said, weights), torch.cat(parts).detach())


@pytest.mark.parametrize("objective", OBJECTIVES, ids=repr)
def test_no_tokens_are_no_terms_with_a_gradient(objective):
    hidden = torch.zeros(0, 2, requires_grad=True)
    none = torch.zeros(0, dtype=torch.long)
    said = signals(
        HeadDistributions(hidden, torch.zeros(3, 2)), none, TopLogps(torch.zeros(0, 3)), none, 2
    )
    terms = objective(said, torch.zeros(0))
    terms.sum().backward()
    assert terms.shape == (0,)
    assert hidden.grad.shape == (0, 2)


# Numbers worked out by hand.


def one(probabilities, reference=None):
    """Return one token, labelled 0."""

    def log(numbers):
        return torch.tensor([numbers], dtype=torch.float64).log()

    known = reference and TopLogps(log(reference))
    rows = labels = torch.tensor([0])
    return signals(GivenDistributions(log(probabilities)), labels, known, rows, 1)


def test_undial_by_hand():
    # Odds 9:1 with log 9 off are even; -log sqrt(.2 * .8) = log 2.5.
    term = UNDIAL(math.log(9))(one([0.2, 0.8], [0.9, 0.1]), torch.ones(1))
    assert term.item() == pytest.approx(math.log(2.5), abs=1e-10)


def test_ceu_by_hand():
    # q = (0, 1/2, 1/2): -log .25 = log 4.
    term = CEU(0)(one([0.5, 0.25, 0.25]), torch.full((1,), 3.0))
    assert term.item() == pytest.approx(3 * math.log(4), abs=1e-10)


def test_pdu_by_hand():
    # Logits 3 log 2, 0, 0 are 8:1:1; the margin is 2 log 2.
    term = PDU()(one([0.8, 0.1, 0.1]), torch.ones(1))
    assert term.item() == pytest.approx((2 * math.log(2)) ** 2, abs=1e-10)


def test_me_by_hand():
    # H = 1.5 log 2 of at most 2 log 2.
    term = ME()(one([0.5, 0.25, 0.125, 0.125]), torch.ones(1))
    assert term.item() == pytest.approx(0.25 * math.log(2), abs=1e-10)


# Limits.


@pytest.mark.parametrize("num_held", [None, 3, VOCABULARY])
def test_undial_of_strength_0_is_distillation_of_itself(num_held, inputs):
    logits, _, labels, weights = inputs
    logps = logits.log_softmax(-1)
    reference = logps.detach()
    known = GivenDistributions(reference)
    if num_held:
        known = top(reference, reference.topk(num_held).indices)
    (grad,) = torch.autograd.grad(
        UNDIAL(0.0)(signals(GivenDistributions(logps), labels, known), weights).sum(), logits
    )
    near(grad, torch.zeros_like(grad))


def test_undial_of_a_strength_beyond_all_numbers_on_itself_is_ceu(inputs):
    logits, _, labels, weights = inputs
    logps = logits.log_softmax(-1)
    said = signals(GivenDistributions(logps), labels, GivenDistributions(logps.detach()))
    found = [objective(said, weights) for objective in (UNDIAL(1e4), CEU(0))]
    near(found[0], found[1].detach())
    grads = [torch.autograd.grad(f.sum(), logits, retain_graph=True)[0] for f in found]
    near(grads[0], grads[1])


@pytest.mark.parametrize("objective", [PDU(), ME()], ids=repr)
def test_uniform_predictions_are_the_goal(objective):
    logits = torch.zeros(1, VOCABULARY, dtype=torch.float64, requires_grad=True)
    said = signals(
        GivenDistributions(logits.log_softmax(-1)), torch.tensor([0]), None, torch.tensor([0]), 1
    )
    term = objective(said, torch.ones(1))
    (grad,) = torch.autograd.grad(term.sum(), logits)
    near(term, [0.0])
    near(grad, torch.zeros_like(grad))


def test_pdu_does_not_see_a_shift(inputs):
    logits, _, labels, weights = inputs
    found = [
        PDU()(signals(GivenDistributions(given), labels), weights)
        for given in (logits, logits + 7, logits.log_softmax(-1))
    ]
    near(found[0], found[1].detach())
    near(found[0], found[2].detach())


def test_me_where_the_model_is_certain_has_a_value_and_no_gradient():
    """The authors' code, KL(uniform || p), has one: the docstring names it."""
    logits = torch.zeros(1, VOCABULARY, dtype=torch.float64)
    logits[0, 2] = 50.0
    logits.requires_grad_()
    logps = logits.log_softmax(-1)
    said = signals(GivenDistributions(logps), torch.tensor([2]), None, torch.tensor([0]), 1)
    term = ME()(said, torch.ones(1))
    (grad,) = torch.autograd.grad(term.sum(), logits, retain_graph=True)
    near(term, [math.log(VOCABULARY)])
    assert grad.abs().max() < 1e-19
    code = -logps.mean() - math.log(VOCABULARY)
    (grad,) = torch.autograd.grad(code, logits)
    near(code, 50 * (1 - 1 / VOCABULARY) - math.log(VOCABULARY))
    near(grad[0, 2], 1 - 1 / VOCABULARY)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=repr)
@pytest.mark.parametrize("gap", [20.0, 120.0, 1e4])
def test_certain_predictions_stay_finite(objective, gap):
    """The label stands ``gap`` above all others, in the model and in the reference; float32."""
    logits = torch.zeros(3, VOCABULARY)
    logits[:, 4] = gap
    logits.requires_grad_()
    logps = logits.log_softmax(-1)
    labels, rows = torch.tensor([4, 4, 4]), torch.tensor([0, 0, 0])
    for known in (GivenDistributions(logps), top(logps.detach(), torch.tensor([[4, 0]] * 3))):
        said = signals(GivenDistributions(logps), labels, known, rows, 1)
        terms = objective(said, torch.ones(3))
        (grad,) = torch.autograd.grad(terms.sum(), logits, retain_graph=True)
        assert terms.isfinite().all()
        assert grad.isfinite().all()


# A reference known by its largest entries.


def test_a_bucket_is_a_token_of_a_smaller_vocabulary(inputs):
    """Value and gradient, in a plain loop over held tokens and one for all others."""
    logits, reference, labels, weights = inputs
    others = reference.scatter(-1, labels[:, None], -torch.inf).topk(3).indices
    ids = torch.cat([labels[:, None], others], -1)
    said = signals(
        GivenDistributions(logits.log_softmax(-1)), labels, top(reference.log_softmax(-1), ids)
    )
    terms = UNDIAL(2.5)(said, weights)
    terms.sum().backward()
    values, grads = [], []
    for token in range(len(ROWS)):
        p, weight = softmax(logits[token].tolist()), weights[token].item()
        lowered = reference[token].clone()
        lowered[labels[token]] -= 2.5
        q, held = softmax(lowered.tolist()), ids[token].tolist()
        p_rest = sum(x for v, x in enumerate(p) if v not in held)
        q_rest = sum(x for v, x in enumerate(q) if v not in held)
        value = -sum(q[v] * math.log(p[v]) for v in held) - q_rest * math.log(p_rest)
        values.append(weight * value)
        grads.append(
            [weight * (x - (q[v] if v in held else q_rest * x / p_rest)) for v, x in enumerate(p)]
        )
    near(terms, values)
    near(logits.grad, grads)


@pytest.mark.parametrize("measure", [cross_entropy, kl_divergence])
def test_buckets_bound_from_below_and_are_exact_where_all_is_held(measure, inputs):
    logits, reference, _, _ = inputs
    logps, known = logits.log_softmax(-1).detach(), reference.log_softmax(-1)
    exact = measure(logps, TopLogps(known))
    found = [measure(logps, top(known, known.topk(size).indices)) for size in range(1, 10)]
    for smaller, larger in itertools.pairwise(found):
        assert (smaller <= larger + 1e-12).all()
    near(found[-1], exact)
    # One bucket of one token is that token.
    near(found[-2], exact)
    assert (found[0] < exact - 1e-3).all()


def test_all_held_leaves_no_bucket_of_nothing(inputs):
    """An empty bucket would have log 0, and no gradient at all."""
    logits, reference, _, _ = inputs
    known = reference.log_softmax(-1)
    ids = torch.randperm(VOCABULARY).expand(len(ROWS), -1)
    (grad,) = torch.autograd.grad(
        kl_divergence(logits.log_softmax(-1), top(known, ids)).sum(), logits
    )
    near(grad, logits.softmax(-1).detach() - reference.softmax(-1))


def test_the_rest_is_not_one_minus_a_rounded_sum():
    """The held token has all but 1e-30: log of the rest is -69, not log 0; float32."""
    logits = torch.tensor([[0.0, -69.0, -69.0]], requires_grad=True)
    known = TopLogps(torch.tensor([[0.5]]).log(), torch.tensor([[0]]))
    term = cross_entropy(logits.log_softmax(-1), known)
    (grad,) = torch.autograd.grad(term.sum(), logits)
    assert term.item() == pytest.approx(0.5 * (69 - math.log(2)), rel=1e-6)
    np.testing.assert_allclose(grad, [[0.5, -0.25, -0.25]], atol=1e-6)


# What an objective says of itself.


def test_declarations():
    own = {"distributions"}
    assert UNDIAL().needs == own | {"reference_distributions"}
    assert CEU().needs == PDU().needs == ME().needs == own
    for part in OBJECTIVES:
        assert (part.level, part.group, part.takes_weights) == ("token", "forget", True)
        assert part.layers == ()
        assert part.skipped_tokens == (part.skip_first if isinstance(part, CEU) else 0)
    assert (UNDIAL().strength, CEU().skip_first) == (10.0, 1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: UNDIAL(-1.0), r"model\.forget\.strength must be a finite number >= 0; got -1\.0"),
        (
            lambda: UNDIAL(math.nan),
            r"model\.forget\.strength must be a finite number >= 0; got nan",
        ),
        (
            lambda: UNDIAL(math.inf),
            r"model\.forget\.strength must be a finite number >= 0; got inf",
        ),
        (lambda: UNDIAL("x"), r"model\.forget\.strength must be a finite number >= 0; got 'x'"),
        (lambda: CEU(-1), r"model\.forget\.skip_first must be a whole number >= 0; got -1"),
        (lambda: CEU(1.5), r"model\.forget\.skip_first must be a whole number >= 0; got 1\.5"),
    ],
)
def test_bad_numbers_are_named(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_a_reference_that_holds_all_tokens_is_lowered_where_it_lies():
    """The meta device stands for any that is not the CPU: torch refuses to mix the two."""
    held = TopLogps(torch.zeros(2, 3, device="meta"))
    labels = torch.zeros(2, dtype=torch.long, device="meta")
    assert _lowered(held, labels, 1.0).logps.device.type == "meta"
