"""What holds for every batch: of ETW weights, of the weighted loss and of the fused head."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import Positionwise, random_rows

from etw_lightning.forget import GA
from etw_lightning.kernels import linear_scores
from etw_lightning.models import LabelScorer
from etw_lightning.schema import IGNORE_INDEX
from etw_lightning.signals import Counts, TokenSignals, reduce_terms
from etw_lightning.weighting import ETW, Uniform

VOCABULARY = 17
few = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 10**6)
temperatures = st.sampled_from([0.5, 1.0, 2.0, 10.0])
reductions = st.sampled_from(["token", "sequence"])


@st.composite
def batches(draw):
    """Toy model and right-padded rows; some rows may have no labelled token, not all."""
    generator = torch.Generator().manual_seed(draw(seeds))
    lengths = draw(st.lists(st.integers(1, 8), min_size=1, max_size=5))
    lengths[draw(st.integers(0, len(lengths) - 1))] = 6
    prompts = [draw(st.integers(0, 4)) for _ in lengths]
    ids, mask, labels = random_rows(generator, VOCABULARY, lengths, prompts)
    scale = draw(st.sampled_from([0.1, 1.0, 4.0]))
    embedding, head = scale * torch.randn(2, VOCABULARY, 4, generator=generator).double()
    return Positionwise(embedding, head), ids, mask, labels


def signals_of(lm, ids, mask, labels, temperature=1.0, chunk_size=256):
    return LabelScorer(lm, chunk_size)(ids, mask, labels, {"entropies"}, temperature)


def loss_of(lm, ids, mask, labels, reduction="token", temperature=1.0, counts=None, **kwargs):
    signals = signals_of(lm, ids, mask, labels, temperature, **kwargs)
    terms = GA()(signals, ETW(temperature=temperature)(signals))
    return reduce_terms(terms, signals, counts or counts_of(labels), reduction)


def counts_of(labels):
    labelled = labels != IGNORE_INDEX
    return Counts(int(labelled.sum()), int(labelled.any(1).sum()))


def gradients(lm, loss):
    return torch.autograd.grad(loss, list(lm.parameters()))


def same(actual, expected, tolerance=1e-10):
    actual, expected = (
        (value,) if torch.is_tensor(value) else value for value in (actual, expected)
    )
    return len(actual) == len(expected) and all(
        torch.allclose(a, b, rtol=tolerance, atol=tolerance)
        for a, b in zip(actual, expected, strict=True)
    )


@few
@given(batches(), temperatures)
def test_weights_of_a_sequence_sum_to_its_tokens(batch, temperature):
    signals = signals_of(*batch, temperature)
    weights = ETW(temperature=temperature)(signals)
    assert (weights >= 0).all()
    counts = torch.bincount(signals.rows, minlength=signals.num_rows).double()
    assert same(signals.row_sums(weights), counts)


@few
@given(st.lists(st.floats(0, 20, width=32), min_size=1, max_size=6), st.integers(0, 5))
def test_any_entropies_give_finite_weights_that_sum_to_n(entropies, split):
    """Zeros and numbers too small to be divided by included."""
    values = torch.tensor(entropies)
    rows = (torch.arange(len(values)) >= split).long()
    signals = TokenSignals(values.long(), rows, 2, torch.zeros(len(values)), entropies=values)
    weights = ETW()(signals)
    assert torch.isfinite(weights).all()
    counts = torch.bincount(rows, minlength=2).float()
    # A sum of subnormal numbers has fewer digits than float32's 24 bits.
    assert same(signals.row_sums(weights), counts, 1e-5)


@few
@given(batches(), reductions, temperatures)
def test_weights_carry_no_gradient(batch, reduction, temperature):
    lm, *rows = batch
    signals = signals_of(lm, *rows, temperature)
    weights = ETW(temperature=temperature)(signals)
    assert not weights.requires_grad
    counts = counts_of(rows[-1])
    fixed = torch.tensor(weights.tolist(), dtype=torch.float64)
    constant = reduce_terms(fixed * signals.logps, signals, counts, reduction)
    moving = loss_of(lm, *rows, reduction, temperature)
    assert same(gradients(lm, moving), gradients(lm, constant))


@few
@given(batches())
def test_high_temperature_is_uniform(batch):
    signals = signals_of(*batch, temperature=1e6)
    assert same(ETW(temperature=1e6)(signals), Uniform()(signals), 1e-6)


@few
@given(batches())
def test_no_entropy_anywhere_is_uniform(batch):
    lm, *rows = batch
    # One logit 1e6 above all others at every position: entropy exactly 0.
    certain = torch.zeros_like(lm.head.weight)
    certain[3, 0] = 1e6
    lm = Positionwise(torch.ones_like(lm.embedding), certain)
    signals = signals_of(lm, *rows)
    assert (signals.entropies == 0).all()
    assert (ETW()(signals) == 1).all()


@few
@given(batches(), reductions, seeds)
def test_ignored_positions_do_not_matter(batch, reduction, seed):
    """What stands where nothing is predicted next may be any token, with any logits."""
    lm, ids, mask, labels = batch
    is_used = torch.zeros_like(labels, dtype=torch.bool)
    is_used[:, :-1] = labels[:, 1:] != IGNORE_INDEX
    noise = torch.randint(VOCABULARY, ids.shape, generator=torch.Generator().manual_seed(seed))
    changed = torch.where(is_used, ids, noise)
    before = loss_of(lm, ids, mask, labels, reduction)
    after = loss_of(lm, changed, mask, labels, reduction)
    assert torch.equal(before, after)
    assert same(gradients(lm, before), gradients(lm, after))


@few
@given(batches(), reductions)
def test_a_batch_equals_its_rows(batch, reduction):
    lm, ids, mask, labels = batch
    counts = counts_of(labels)
    whole = loss_of(lm, ids, mask, labels, reduction)
    shares = []
    for row, length in enumerate(mask.sum(1).tolist()):
        one = (tensor[row : row + 1, :length] for tensor in (ids, mask, labels))
        shares.append(loss_of(lm, *one, reduction, counts=counts))
    assert same(sum(shares), whole)
    assert same(gradients(lm, sum(shares)), gradients(lm, whole))


@few
@given(batches(), reductions, st.integers(1, 5), st.randoms(use_true_random=False))
def test_padding_and_order_do_not_matter(batch, reduction, extra, random):
    lm, ids, mask, labels = batch
    order = random.sample(range(len(ids)), len(ids))
    fills = (5, 0, IGNORE_INDEX)
    other = [
        torch.nn.functional.pad(tensor[order], (0, extra), value=fill)
        for tensor, fill in zip((ids, mask, labels), fills, strict=True)
    ]
    before, after = (loss_of(lm, *rows, reduction) for rows in ((ids, mask, labels), other))
    assert same(before, after)
    assert same(gradients(lm, before), gradients(lm, after))


@few
@given(batches(), st.integers(1, 60), temperatures)
def test_chunk_size_does_not_matter(batch, chunk_size, temperature):
    lm, *rows = batch
    before = loss_of(lm, *rows, temperature=temperature)
    after = loss_of(lm, *rows, temperature=temperature, chunk_size=chunk_size)
    assert same(before, after)
    assert same(gradients(lm, before), gradients(lm, after))


@few
@given(seeds, st.integers(2, 40), st.sampled_from([0.01, 0.5, 2.0, 10.0]))
def test_bounds_of_the_entropy_of_a_label_probability(seed, vocabulary, scale):
    """h(p) <= H <= h(p) + (1 - p) ln(V - 1), h the binary entropy of the label's p."""
    logits = scale * torch.randn(6, vocabulary, generator=torch.Generator().manual_seed(seed))
    labels = torch.arange(6) % vocabulary
    eye = torch.eye(vocabulary, dtype=torch.float64)
    logps, entropies = linear_scores(logits.double(), eye, labels)
    p = logps.exp()
    rest = -torch.expm1(logps)
    lowest = -(p * logps) - torch.xlogy(rest, rest)
    assert (entropies >= lowest - 1e-9).all()
    assert (entropies <= lowest + rest * math.log(vocabulary - 1) + 1e-9).all()


@few
@given(batches(), reductions)
def test_weights_of_one_are_no_weights(batch, reduction):
    signals = signals_of(*batch)
    counts = counts_of(batch[-1])
    plain = reduce_terms(signals.logps, signals, counts, reduction)
    uniform = Uniform()(signals)
    assert not uniform.requires_grad
    assert torch.equal(reduce_terms(GA()(signals, uniform), signals, counts, reduction), plain)
    # Equal entropies, whatever they are, are no weights either.
    flat = ETW()(replace(signals, entropies=torch.full_like(signals.logps, 0.37)))
    assert same(flat, uniform)


@pytest.mark.parametrize("reduction", ["token", "sequence"])
def test_no_label_at_all_is_no_loss(reduction):
    ids = torch.ones(2, 3, dtype=torch.long)
    labels = torch.full_like(ids, IGNORE_INDEX)
    lm = Positionwise(torch.randn(VOCABULARY, 4), torch.randn(VOCABULARY, 4))
    loss = loss_of(lm, ids, torch.ones_like(ids), labels, reduction)
    loss.backward()
    assert loss == 0
    assert all((parameter.grad == 0).all() for parameter in lm.parameters())
