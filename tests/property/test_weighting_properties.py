"""What holds for every batch: of all weights, of the weighted loss and of the fused head."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import Positionwise, random_rows

from etw_lightning.forget import GA
from etw_lightning.kernels.head import linear_scores
from etw_lightning.kernels.signals import Counts, TokenSignals, reduce_terms
from etw_lightning.models.loading import LabelScorer
from etw_lightning.schema import IGNORE_INDEX
from etw_lightning.weighting import (
    ATWU,
    ETW,
    TNPO,
    WGA,
    WTNPO,
    Annotated,
    Mixture,
    Product,
    Random,
    SatImp,
    Spacy,
    Surprisal,
    Uniform,
)
from etw_lightning.weighting.spread import row_aucs, row_ginis
from etw_lightning.weighting.within_rows import pool_words, units_of

VOCABULARY = 17
few = settings(max_examples=25, deadline=None)
#: For each of two dozen weightings.
fewer = settings(max_examples=10, deadline=None)
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


# Every weighting.

ANY_SPLIT = [
    Uniform(),
    ETW(),
    ETW(source="reference"),
    ETW(top_share=0.4),
    ETW(threshold=1.0),
    ETW(top_share=0.4, threshold=1.0, hard=True),
    ETW(unit="word"),
    ETW(unit="word", word_entropy="max", top_share=0.4, source="reference"),
    ETW(floor=3.0),
    ETW(unit="word", threshold=1.0, floor=3.0),
    WGA(beta=0.0),
    WGA(beta=5.0),
    TNPO(),
    WTNPO(),
    SatImp(),
    SatImp(beta1=0.0, beta2=1.0),
    Surprisal(),
    ATWU(),
    ATWU(beta=0.0),
    Annotated(),
    Spacy(),
    Random(of=ETW()),
    Random(of=ETW(), within="word"),
    Random(of=Product(ETW(), Annotated()), seed=5),
    Product(ETW(), TNPO()),
    Product(WGA(), Annotated(), normalise=False),
    Mixture(Surprisal(), Product(SatImp(), Spacy()), share=0.3),
]
OVER_BATCH = [ETW(normalise="batch"), ETW(normalise="batch", top_share=0.5)]
OVER_BATCH += [ETW(normalise="batch", unit="word", floor=3.0), Surprisal(normalise="batch")]
EVERY = ANY_SPLIT + OVER_BATCH
#: Those whose definition makes the weights of a sequence sum to its tokens.
SUM_TO_N = [Uniform(), ETW(), ETW(source="reference"), ETW(top_share=0.4), Surprisal()]
SUM_TO_N += [ETW(unit="word"), ETW(floor=3.0), ETW(unit="word", word_entropy="max", floor=0.5)]
SUM_TO_N += [
    Random(of=ETW(), within="word"),
    Random(of=ETW()),
    Mixture(ETW(), Surprisal(), share=0.3),
]

#: Of tokens: certain, hopeless, and any between.
any_logp = st.one_of(st.floats(-30, 0), st.sampled_from([0.0, -1e-15, -700.0, -1e30]))
any_entropy = st.one_of(st.floats(0, 12), st.sampled_from([0.0, 1e-300, 0.37]))


@st.composite
def words(draw, sizes):
    """Numbers of words, whose tokens stand together; some tokens are of none."""
    found = []
    for size in sizes:
        number = 0
        for _ in range(size):
            number += draw(st.integers(0, 1))
            found.append(number if draw(st.integers(0, 3)) else -1)
            number += found[-1] < 0
    return torch.tensor(found, dtype=torch.long)


@st.composite
def any_signals(draw):
    """Signals of up to 5 sequences of up to 7 tokens, ties and empty sequences among them.

    All of them carry gradients, which weights must not.
    """
    sizes = draw(st.lists(st.integers(0, 7), min_size=1, max_size=5))

    def values(strategy, dtype=torch.float64):
        number = sum(sizes)
        drawn = draw(st.lists(strategy, min_size=number, max_size=number))
        return torch.tensor(drawn, dtype=dtype)

    return TokenSignals(
        labels=values(st.integers(0, 30), torch.long),
        rows=torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes)),
        num_rows=len(sizes),
        logps=values(any_logp).requires_grad_(),
        entropies=values(any_entropy).requires_grad_(),
        marked=values(st.booleans(), torch.bool),
        words=draw(words(sizes)),
        importances=values(st.floats(0, 1)).requires_grad_(),
        reference_logps=values(any_logp).requires_grad_(),
        reference_entropies=values(any_entropy).requires_grad_(),
    )


def named(weightings):
    return pytest.mark.parametrize("weighting", weightings, ids=str)


@named(EVERY)
@fewer
@given(signals=any_signals())
def test_weights_are_finite_constants(weighting, signals):
    weights = weighting(signals)
    assert weights.shape == signals.logps.shape
    assert weights.dtype == signals.logps.dtype
    assert not weights.requires_grad
    assert torch.isfinite(weights).all()
    assert (weights >= 0).all()


@named(ANY_SPLIT)
@fewer
@given(signals=any_signals(), cut=st.integers(0, 5))
def test_weights_do_not_hang_on_the_other_rows(weighting, signals, cut):
    cut = min(cut, signals.num_rows)
    parts = [signals.slice_rows(0, cut), signals.slice_rows(cut, signals.num_rows)]
    assert same(torch.cat([weighting(part) for part in parts]), weighting(signals), 1e-12)


@named(SUM_TO_N)
@fewer
@given(signals=any_signals())
def test_normalised_weights_sum_to_the_tokens(weighting, signals):
    assert same(signals.row_sums(weighting(signals)), signals.row_counts())


@named(OVER_BATCH)
@few
@given(signals=any_signals())
def test_weights_over_the_batch_sum_to_its_tokens(weighting, signals):
    assert same(weighting(signals).sum(), signals.row_counts().sum())


@few
@given(any_signals(), st.floats(0, 12), st.booleans())
def test_a_threshold_leaves_all_of_a_sequence_s_weight_or_none(signals, threshold, hard):
    sums = signals.row_sums(ETW(threshold=threshold, hard=hard)(signals))
    has_any = signals.row_sums((signals.entropies >= threshold).double()) > 0
    assert same(sums, signals.row_counts() * has_any)


@few
@given(any_signals())
def test_a_product_sums_to_the_tokens_unless_it_is_all_0(signals):
    # Products too small for float64's 53 bits have no digits to sum.
    logps = signals.logps.detach().clamp(min=-30)
    signals = replace(signals, logps=logps, entropies=signals.entropies.round(decimals=3))
    product = Product(Product(ETW(), WGA()), Annotated())
    has_any = signals.row_sums((ETW()(signals) * signals.marked > 0).double()) > 0
    assert same(signals.row_sums(product(signals)), signals.row_counts() * has_any)


@few
@given(any_signals(), st.floats(0.01, 1.0))
def test_a_top_share_keeps_so_many_and_none_below_the_others(signals, share):
    # Hard, so that a kept token of entropy 0 is seen.
    kept = ETW(top_share=share, hard=True)(signals) > 0
    for row in range(signals.num_rows):
        here = signals.rows == row
        inside, outside = signals.entropies[here & kept], signals.entropies[here & ~kept]
        size = int(here.sum())
        assert len(inside) == (max(1, math.floor(share * size + 0.5)) if size else 0)
        assert not len(outside) or inside.min() >= outside.max()


@few
@given(any_signals(), st.integers(0, 2**63 - 1))
def test_random_is_the_same_weights_elsewhere(signals, seed):
    plain, shuffled = ETW()(signals), Random(of=ETW(), seed=seed)(signals)
    for row in range(signals.num_rows):
        here = signals.rows == row
        assert sorted(plain[here].tolist()) == sorted(shuffled[here].tolist())


@few
@given(any_signals())
def test_the_tokens_of_a_word_weigh_alike_and_no_less_than_any_of_its_entropies(signals):
    weights = ETW(unit="word")(signals)
    for row in range(signals.num_rows):
        here = signals.rows == row
        for word in signals.words[here].unique().tolist():
            of_word = weights[here & (signals.words == word)]
            assert word < 0 or len(of_word.unique()) == 1
    # A sum is at least its largest part.
    whole, largest = (pool_words(signals.entropies, signals, how) for how in ("sum", "max"))
    assert (whole >= largest * (1 - 1e-12)).all()
    assert (largest >= signals.entropies).all()


@few
@given(any_signals(), st.integers(0, 2**63 - 1))
def test_random_within_words_leaves_each_word_its_weights(signals, seed):
    plain, shuffled = ETW()(signals), Random(of=ETW(), seed=seed, within="word")(signals)
    units = units_of(signals)
    for unit in units.unique().tolist():
        here = units == unit
        assert sorted(plain[here].tolist()) == sorted(shuffled[here].tolist())


@few
@given(any_signals(), st.floats(0.01, 12))
def test_a_floor_bounds_the_largest_weight(signals, floor):
    """By what the mean entropy's being the floor gives; it leaves higher means alone."""
    weights, plain = ETW(floor=floor)(signals), ETW()(signals)
    for row in range(signals.num_rows):
        here = signals.rows == row
        if here.any():
            values = signals.entropies[here]
            assert weights[here].max() <= (values.max() + floor) / floor + 1e-9
            if values.mean() >= floor:
                assert same(weights[here], plain[here], 1e-12)


@few
@given(any_signals())
def test_gini_and_auc_of_rows_are_those_of_all_pairs(signals):
    weights = signals.entropies.detach()
    ginis, (areas, is_one) = row_ginis(weights, signals), row_aucs(weights, signals.marked, signals)
    for row in range(signals.num_rows):
        here = signals.rows == row
        values, flags = weights[here], signals.marked[here]
        spread = (values[:, None] - values).abs().sum().item()
        total = 2 * len(values) * values.sum().item()
        assert ginis[row].item() == pytest.approx(spread / total if total else 0.0, abs=1e-12)
        assert bool(is_one[row]) == (0 < int(flags.sum()) < len(flags))
        if is_one[row]:
            pairs = [(a, b) for a in values[flags].tolist() for b in values[~flags].tolist()]
            area = sum((a > b) + (a == b) / 2 for a, b in pairs) / len(pairs)
            assert areas[row].item() == pytest.approx(area, abs=1e-12)
        else:
            assert areas[row] == 0


@named(ANY_SPLIT)
@fewer
@given(batch=batches(), extra=st.integers(0, 4), seed=seeds)
def test_what_is_no_label_does_not_move_a_weight(weighting, batch, extra, seed):
    """Other ids where nothing is predicted next, and more padding."""
    lm, ids, mask, labels = batch
    is_used = torch.zeros_like(labels, dtype=torch.bool)
    is_used[:, :-1] = labels[:, 1:] != IGNORE_INDEX
    noise = torch.randint(VOCABULARY, ids.shape, generator=torch.Generator().manual_seed(seed))
    rows = (torch.where(is_used, ids, noise), mask, labels)
    fills = (3, 0, IGNORE_INDEX)
    padded = [
        torch.nn.functional.pad(tensor, (0, extra), value=fill)
        for tensor, fill in zip(rows, fills, strict=True)
    ]
    before, after = (
        replace(
            said,
            marked=said.labels % 3 == 0,
            words=said.labels.cumsum(0) // 20,
            importances=said.labels / VOCABULARY,
            reference_logps=said.logps.detach() - 0.1 * said.labels,
            reference_entropies=said.entropies.flip(0),
        )
        for said in (signals_of(lm, ids, mask, labels), signals_of(lm, *padded))
    )
    assert same(weighting(after), weighting(before))
