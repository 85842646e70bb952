"""Forget objectives of likelihoods and preferences, against loops over rows and tokens."""

import math
from dataclasses import replace

import pytest
import torch

from etw_lightning.forget import DPO, GA, NPO, TPO, AltPO, IdkNLL, SimNPO
from etw_lightning.kernels.distributions import GivenDistributions, HeadDistributions, TopLogps
from etw_lightning.kernels.signals import Counts, TokenSignals, reduce_terms

VOCABULARY = 7
#: Tokens of each forget answer and of each second answer; one of each is empty.
LENGTHS, OTHER_LENGTHS = (3, 0, 5, 1), (2, 4, 0, 3)
OBJECTIVES = [
    GA(),
    NPO(),
    NPO(beta=2.0),
    SimNPO(),
    SimNPO(beta=0.5, delta=0.7),
    DPO(),
    DPO(beta=1.5),
    AltPO(),
    IdkNLL(),
    TPO(),
    TPO(beta=1.5, preservation=0.0),
    TPO(beta=0.8, preservation=2.5),
]


def ids_of(objectives):
    return [repr(objective) for objective in objectives]


def answers(generator, lengths):
    """Signals of random answers in float64, and the logits they are made of, which are a leaf."""
    shape = (sum(lengths), VOCABULARY)
    logits, reference = (
        torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2)
    )
    logits.requires_grad_()
    labels = torch.randint(VOCABULARY, shape[:1], generator=generator)
    own = (torch.arange(shape[0]), labels)
    signals = TokenSignals(
        labels=labels,
        rows=torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)),
        num_rows=len(lengths),
        logps=logits.log_softmax(-1)[own],
        marked=torch.arange(shape[0]) % 3 != 1,
        distributions=GivenDistributions(logits.log_softmax(-1)),
        reference_logps=reference.log_softmax(-1)[own],
        reference_distributions=GivenDistributions(reference.log_softmax(-1)),
    )
    return signals, logits


@pytest.fixture
def problem():
    """Signals with second answers, random weights, and the logits of both kinds of answer."""
    generator = torch.Generator().manual_seed(3)
    signals, logits = answers(generator, LENGTHS)
    others, other_logits = answers(generator, OTHER_LENGTHS)
    weights = torch.rand(len(signals.labels), generator=generator, dtype=torch.float64) * 3
    return replace(signals, alternative=others), weights, (logits, other_logits)


def log_probability(row, label):
    """Log-probability of a label by logits, with no help of torch's softmax."""
    return row[label] - row.exp().sum().log()


def tokens_of(signals, logits, row):
    """(place, log p, log r) of a row's tokens."""
    for place, owner in enumerate(signals.rows.tolist()):
        if owner == row:
            logp = log_probability(logits[place], signals.labels[place])
            yield place, logp, signals.reference_logps[place]


def softplus(value):
    return (1 + value.exp()).log()


def loop(objective, signals, weights, logits, other_logits):
    """The terms, written down from the papers row by row."""
    if isinstance(objective, IdkNLL):
        others = signals.alternative
        return [
            -log_probability(other_logits[place], label)
            for place, label in enumerate(others.labels)
        ]
    if isinstance(objective, GA):
        return [
            weight * log_probability(row, label)
            for weight, row, label in zip(weights, logits, signals.labels, strict=True)
        ]
    terms = []
    for row in range(signals.num_rows):
        tokens = list(tokens_of(signals, logits, row))
        zero = logits.sum() * 0
        if not tokens:
            terms.append(zero)
        elif isinstance(objective, NPO):
            ratio = sum((weights[i] * (p - r) for i, p, r in tokens), zero)
            terms.append(2 / objective.beta * softplus(objective.beta * ratio))
        elif isinstance(objective, SimNPO):
            mean = sum((weights[i] * p for i, p, r in tokens), zero) / len(tokens)
            terms.append(2 / objective.beta * softplus(objective.beta * mean + objective.delta))
        elif isinstance(objective, DPO):
            lost = sum((weights[i] * (p - r) for i, p, r in tokens), zero)
            others = tokens_of(signals.alternative, other_logits, row)
            won = sum((p - r for _, p, r in others), zero)
            terms.append(2 / objective.beta * softplus(objective.beta * (lost - won)))
        else:
            terms.append(tpo_row(objective, signals, weights, logits, tokens))
    return terms


def tpo_row(objective, signals, weights, logits, tokens):
    """A row's term: logits less their mean over the vocabulary."""
    term, drops = logits.sum() * 0, []
    for place, logp, _ in tokens:
        label = signals.labels[place]
        if signals.marked[place]:
            now = logits[place][label] - logits[place].mean()
            reference = signals.reference_distributions.logps[place]
            drops.append(weights[place] * (now - (reference[label] - reference.mean())))
        else:
            term = term - objective.preservation * logp
    if drops:
        term = term + 2 / objective.beta * softplus(objective.beta * sum(drops) / len(drops))
    return term


@pytest.mark.parametrize("objective", OBJECTIVES, ids=ids_of(OBJECTIVES))
def test_value_and_gradient_are_those_of_the_written_formula(objective, problem):
    signals, weights, leaves = problem
    terms = objective(signals, weights)
    wanted = torch.stack(loop(objective, signals, weights, *leaves))
    assert terms.shape == wanted.shape
    assert (terms - wanted).abs().max() < 1e-10
    # Each term counts differently: a gradient that is right for one sum only would show.
    scale = torch.linspace(0.5, 2.0, len(terms), dtype=torch.float64)
    found = torch.autograd.grad((terms * scale).sum(), leaves, allow_unused=True)
    expected = torch.autograd.grad((wanted * scale).sum(), leaves, allow_unused=True)
    for ours, theirs in zip(found, expected, strict=True):
        ours, theirs = (0 if grad is None else grad for grad in (ours, theirs))
        assert abs(ours - theirs).max() < 1e-10 if torch.is_tensor(theirs) else ours is theirs


@pytest.mark.parametrize("objective", OBJECTIVES, ids=ids_of(OBJECTIVES))
def test_a_batch_equals_its_rows(objective, problem):
    signals, weights, _ = problem
    whole = objective(signals, weights)
    parts = []
    for row in range(signals.num_rows):
        alone = signals.slice_rows(row, row + 1)
        alone = replace(alone, alternative=signals.alternative.slice_rows(row, row + 1))
        parts.append(objective(alone, weights[signals.rows == row]))
    assert (torch.cat(parts) - whole).abs().max() < 1e-12


@pytest.mark.parametrize("objective", OBJECTIVES, ids=ids_of(OBJECTIVES))
def test_weights_of_one_are_no_weights_and_others_are(objective, problem):
    signals, weights, leaves = problem
    ones = torch.ones_like(weights)
    # Loops get Python's 1 for a weight.
    plain = torch.stack(loop(objective, signals, [1] * len(weights), *leaves))
    assert (objective(signals, ones) - plain).abs().max() < 1e-10
    differ = (objective(signals, weights) - objective(signals, ones)).abs().max() > 1e-7
    assert differ == objective.takes_weights


@pytest.mark.parametrize("objective", OBJECTIVES, ids=ids_of(OBJECTIVES))
def test_logits_at_ignored_positions_do_not_matter(objective):
    generator = torch.Generator().manual_seed(5)
    labels = torch.tensor([[-100, -100, 3, 1], [-100, 2, -100, -100]])
    logits = torch.randn((2, 4, VOCABULARY), generator=generator, dtype=torch.float64)
    is_predicted = torch.zeros(2, 4, dtype=torch.bool)
    is_predicted[:, :-1] = labels[:, 1:] != -100

    def terms(logits):
        said = logits[is_predicted].log_softmax(-1)
        ids = labels[:, 1:][labels[:, 1:] != -100]
        signals = TokenSignals(
            labels=ids,
            rows=torch.tensor([0, 0, 1]),
            num_rows=2,
            logps=said.gather(1, ids[:, None])[:, 0],
            marked=torch.tensor([True, False, True]),
            distributions=GivenDistributions(said),
            reference_logps=torch.tensor([-1.0, -2.0, -0.5], dtype=torch.float64),
            reference_distributions=GivenDistributions(said.detach() / 2),
        )
        signals = replace(signals, alternative=signals)
        return objective(signals, torch.ones(3, dtype=torch.float64))

    changed = torch.where(is_predicted[..., None], logits, logits + 100).requires_grad_()
    assert torch.equal(terms(changed), terms(logits))
    (grad,) = torch.autograd.grad(terms(changed).sum(), changed)
    assert (grad[~is_predicted] == 0).all()


@pytest.mark.parametrize("objective", OBJECTIVES, ids=ids_of(OBJECTIVES))
def test_no_tokens_at_all_give_zeros(objective):
    logits = torch.zeros(0, VOCABULARY, requires_grad=True)
    nothing = TokenSignals(
        labels=torch.zeros(0, dtype=torch.long),
        rows=torch.zeros(0, dtype=torch.long),
        num_rows=2,
        logps=logits.sum(-1),
        marked=torch.zeros(0, dtype=torch.bool),
        distributions=GivenDistributions(logits),
        reference_logps=torch.zeros(0),
        reference_distributions=GivenDistributions(torch.zeros(0, VOCABULARY)),
    )
    terms = objective(replace(nothing, alternative=nothing), torch.zeros(0))
    assert terms.tolist() == ([0.0, 0.0] if objective.level == "sequence" else [])
    terms.sum().backward()


@pytest.mark.parametrize("objective", OBJECTIVES, ids=ids_of(OBJECTIVES))
@pytest.mark.parametrize("far", [-1e4, 1e4])
def test_far_from_the_reference_nothing_overflows(objective, far):
    logits = torch.tensor([[far, 0.0, 0.0]], requires_grad=True)
    said = logits.log_softmax(-1)
    reference = torch.tensor([[-far, 0.0, 0.0]]).log_softmax(-1)
    signals = TokenSignals(
        labels=torch.tensor([0]),
        rows=torch.tensor([0]),
        num_rows=1,
        logps=said[:, 0],
        marked=torch.tensor([True]),
        distributions=GivenDistributions(said),
        reference_logps=reference[:, 0],
        reference_distributions=GivenDistributions(reference),
    )
    terms = objective(replace(signals, alternative=signals), torch.ones(1))
    terms.sum().backward()
    assert terms.isfinite().all()
    assert logits.grad.isfinite().all()


def by_hand(logps, reference=None, **more):
    logps = torch.tensor(logps)
    return TokenSignals(
        labels=torch.arange(len(logps)),
        rows=torch.zeros(len(logps), dtype=torch.long),
        num_rows=1,
        logps=logps,
        reference_logps=None if reference is None else torch.tensor(reference),
        **more,
    )


def test_npo_by_hand():
    # The ratio is 2: 2 ln(1 + e^2). With weights (1, 0) it is 1: 2 ln(1 + e).
    signals = by_hand([-1.0, -3.0], [-2.0, -4.0])
    assert NPO(beta=1.0)(signals, torch.ones(2)).item() == pytest.approx(4.253856)
    weights = torch.tensor([1.0, 0.0])
    assert NPO(beta=1.0)(signals, weights).item() == pytest.approx(2.626523)


def test_simnpo_by_hand():
    # The mean is -ln 3: sigmoid(ln 3) = 3/4; with a margin of -ln 2 taken off, sigmoid(ln 1.5).
    signals = by_hand([-math.log(9.0), 0.0])
    ones = torch.ones(2)
    assert SimNPO(beta=1.0)(signals, ones).item() == pytest.approx(-2 * math.log(3 / 4))
    found = SimNPO(beta=1.0, delta=math.log(2))(signals, ones).item()
    assert found == pytest.approx(-2 * math.log(3 / 5))


def test_dpo_by_hand():
    # Second answer ln 6 up, forget answer ln 2 up: sigmoid(ln 3) = 3/4.
    others = by_hand([-1.0, math.log(6) - 3.0], [-1.0, -3.0])
    signals = by_hand([math.log(2) - 1.0], [-1.0], alternative=others)
    for objective in (DPO(beta=1.0), AltPO(beta=1.0)):
        found = objective(signals, torch.ones(1)).item()
        assert found == pytest.approx(-2 * math.log(3 / 4))


def test_idk_nll_by_hand():
    others = by_hand([-0.5, -2.0, -1.0])
    signals = by_hand([-7.0], alternative=others)
    assert IdkNLL()(signals, torch.ones(1)).tolist() == [0.5, 2.0, 1.0]


def test_tpo_by_hand():
    # Label 0 fell from 1/2 to 1/4, label 1 rose as much, so the mean logit stayed: ln 2 lost,
    # sigmoid(ln 2) = 2/3. The second token is unmarked and costs ln 4.
    before = torch.tensor([[0.5, 0.25, 0.25], [0.5, 0.25, 0.25]]).log()
    now = torch.tensor([[0.25, 0.5, 0.25], [0.5, 0.25, 0.25]]).log()
    signals = by_hand(
        [now[0, 0].item(), now[1, 1].item()],
        [before[0, 0].item(), before[1, 1].item()],
        marked=torch.tensor([True, False]),
        distributions=GivenDistributions(now),
        reference_distributions=GivenDistributions(before),
    )
    found = TPO(beta=1.0)(signals, torch.ones(2)).item()
    assert found == pytest.approx(-2 * math.log(2 / 3) + math.log(4))


def flat(grads):
    return torch.cat([grad.flatten() for grad in grads])


@pytest.mark.parametrize("weighted", [False, True])
def test_npo_with_beta_to_0_has_the_gradient_of_ga(problem, weighted):
    signals, weights, (logits, _) = problem
    weights = weights if weighted else torch.ones_like(weights)
    counts = Counts(tokens=9, rows=3)

    def gradient(objective):
        terms = objective(signals, weights)
        loss = reduce_terms(terms, signals, counts, "token", objective.level)
        return torch.autograd.grad(loss, logits, retain_graph=True)[0].flatten()

    ascent, near, far = (gradient(objective) for objective in (GA(), NPO(1e-7), NPO(1.0)))
    cosine = torch.nn.functional.cosine_similarity(ascent, near, dim=0)
    assert abs(cosine - 1) < 1e-6
    # NPO sums over a sequence's tokens and averages over sequences.
    assert (near.norm() / ascent.norm()).item() == pytest.approx(9 / 3, rel=1e-5)
    assert torch.nn.functional.cosine_similarity(ascent, far, dim=0) < 0.99


@pytest.mark.parametrize("beta", [0.05, 0.1, 1.0, 4.5])
def test_at_the_reference_npo_dpo_and_tpo_are_2_ln_2_by_beta(problem, beta):
    signals, weights, _ = problem
    same = {
        "reference_logps": signals.logps.detach(),
        "reference_distributions": signals.distributions,
    }
    others = signals.alternative
    others = replace(others, reference_logps=others.logps.detach())
    signals = replace(signals, alternative=others, **same)
    for objective in (NPO(beta), DPO(beta), TPO(beta, preservation=0.0)):
        terms = objective(signals, weights)
        for length, term in zip(LENGTHS, terms.tolist(), strict=True):
            assert term == pytest.approx(2 / beta * math.log(2) if length else 0.0, abs=1e-10)


def test_npo_fades_where_the_likelihood_is_far_below_the_reference():
    reference = torch.zeros(1)
    for below, slope in ((0.0, 1.0), (20.0, 0.2384), (1000.0, 0.0)):
        logps = torch.tensor([-below], requires_grad=True)
        signals = replace(by_hand([0.0], [0.0]), logps=logps, reference_logps=reference)
        NPO(beta=0.1)(signals, torch.ones(1)).sum().backward()
        assert logps.grad.item() == pytest.approx(slope, abs=1e-4)


def test_dpo_of_equal_answers_has_no_gradient(problem):
    signals, weights, (logits, _) = problem
    signals = replace(signals, alternative=replace(signals, alternative=None))
    terms = DPO(beta=0.4)(signals, torch.ones_like(weights))
    assert terms.tolist() == pytest.approx([5 * math.log(2) * bool(n) for n in LENGTHS])
    (grad,) = torch.autograd.grad(terms.sum(), logits, allow_unused=True)
    assert grad.abs().max() < 1e-12


def test_weights_of_dpo_are_the_forget_answers_alone(problem):
    signals, weights, leaves = problem
    terms = DPO(beta=1.0)(signals, torch.zeros_like(weights))
    forgotten, kept = torch.autograd.grad(terms.sum(), leaves)
    assert (forgotten == 0).all()
    assert kept.abs().max() > 0.01


def test_a_second_answer_without_tokens_leaves_npo(problem):
    signals, weights, _ = problem
    assert OTHER_LENGTHS[2] == 0
    assert DPO(0.3)(signals, weights)[2] == NPO(0.3)(signals, weights)[2]


def test_altpo_is_dpo(problem):
    signals, weights, _ = problem
    assert AltPO().beta == DPO().beta
    assert torch.equal(AltPO(0.7)(signals, weights), DPO(0.7)(signals, weights))


def raw_tpo(logits, reference, labels, beta):
    """The authors' first part: raw logits, one sequence with all tokens marked."""
    own = (torch.arange(len(labels)), labels)
    margin = beta * (reference[own].mean() - logits[own].mean())
    return 2 / beta * (1 + torch.exp(-margin)).log()


def whole_row(logits, reference, labels):
    own = (torch.arange(len(labels)), labels)
    return TokenSignals(
        labels=labels,
        rows=torch.zeros(len(labels), dtype=torch.long),
        num_rows=1,
        logps=logits.log_softmax(-1)[own],
        marked=torch.ones(len(labels), dtype=torch.bool),
        distributions=GivenDistributions(logits.log_softmax(-1)),
        reference_logps=reference.log_softmax(-1)[own],
        reference_distributions=GivenDistributions(reference.log_softmax(-1)),
    )


def test_tpo_is_the_authors_where_mean_logits_agree():
    generator = torch.Generator().manual_seed(9)
    logits, reference = (
        torch.randn((4, VOCABULARY), generator=generator, dtype=torch.float64) for _ in range(2)
    )
    reference = reference - reference.mean(-1, keepdim=True) + logits.mean(-1, keepdim=True)
    logits.requires_grad_()
    labels = torch.tensor([3, 0, 3, 6])
    ours = TPO(beta=0.7)(whole_row(logits, reference, labels), torch.ones(4))[0]
    theirs = raw_tpo(logits, reference, labels, beta=0.7)
    assert abs(ours - theirs) < 1e-10
    (grad,) = torch.autograd.grad(ours, logits)
    (raw,) = torch.autograd.grad(theirs, logits)
    # Without the part that moves all logits of a position alike and changes no prediction.
    assert (grad - (raw - raw.mean(-1, keepdim=True))).abs().max() < 1e-10
    # Shifting all logits of a position is nothing to ours, and something to theirs.
    moved = TPO(beta=0.7)(whole_row(logits + 5.0, reference, labels), torch.ones(4))[0]
    assert abs(moved - ours) < 1e-10
    assert abs(raw_tpo(logits + 5.0, reference, labels, beta=0.7) - theirs) > 1.0


def test_tpo_does_not_fade_where_the_model_is_certain():
    slopes = {}
    for objective in (TPO(), NPO()):
        logits = torch.tensor([[40.0, 0.0, 0.0, 0.0]], dtype=torch.float64, requires_grad=True)
        signals = whole_row(logits, logits.detach(), torch.tensor([0]))
        objective(signals, torch.ones(1)).sum().backward()
        slopes[type(objective)] = logits.grad[0, 0].item()
    assert slopes[TPO] == pytest.approx(1 - 1 / 4)
    assert abs(slopes[NPO]) < 1e-15


def test_tpo_reads_no_token_that_the_reference_does_not_hold(problem):
    signals, weights, _ = problem
    full = signals.reference_distributions.logps
    order = torch.randperm(VOCABULARY, generator=torch.Generator().manual_seed(1))
    ids = order.expand(len(full), -1)
    permuted = replace(signals, reference_distributions=TopLogps(full.gather(1, ids), ids))
    whole = TPO()(signals, weights)
    assert (TPO()(permuted, weights) - whole).abs().max() < 1e-12

    top = TopLogps(*full.topk(3))
    cut = replace(signals, reference_distributions=top)
    terms = TPO()(cut, weights)
    assert (terms - whole).abs().max() > 1e-3
    said = signals.distributions.logps
    is_held = torch.zeros_like(said, dtype=torch.bool).scatter(1, top.ids, True)
    elsewhere = GivenDistributions(torch.where(is_held, said, said - 3.0))
    assert torch.equal(TPO()(replace(cut, distributions=elsewhere), weights), terms)


def test_tpo_in_chunks_is_tpo(problem):
    signals, weights, (logits, _) = problem
    chunks = HeadDistributions(logits, torch.eye(VOCABULARY).double(), chunk_size=2)
    chunked = replace(signals, distributions=chunks)
    found, wanted = TPO()(chunked, weights), TPO()(signals, weights)
    assert (found - wanted).abs().max() < 1e-12
    grads = [
        torch.autograd.grad(terms.sum(), logits, retain_graph=True)[0] for terms in (found, wanted)
    ]
    assert (grads[0] - grads[1]).abs().max() < 1e-12


def test_tpo_without_marked_words_only_preserves(problem):
    signals, weights, _ = problem
    unmarked = replace(signals, marked=torch.zeros_like(signals.marked))
    found = TPO(preservation=2.0)(unmarked, weights)
    assert (found + 2 * signals.row_sums(signals.logps)).abs().max() < 1e-12
    assert TPO(preservation=0.0)(unmarked, weights).tolist() == [0.0] * 4


def test_objectives_declare_what_they_are():
    assert NPO().needs == {"reference_logps"}
    assert SimNPO().needs == frozenset()
    assert DPO().needs == AltPO().needs == {"reference_logps", "alternative"}
    assert IdkNLL().needs == {"alternative"}
    for objective in (NPO(), SimNPO(), DPO(), AltPO(), TPO()):
        assert (objective.level, objective.group, objective.takes_weights) == (
            "sequence",
            "forget",
            True,
        )
    assert (IdkNLL.level, IdkNLL.group, IdkNLL.takes_weights) == ("token", "alternative", False)


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("objective", [NPO, SimNPO, DPO, AltPO, TPO])
def test_beta_must_be_a_positive_number(objective, value):
    with pytest.raises(
        ValueError, match=rf"^model\.forget\.beta must be a finite number > 0; got {value}"
    ):
        objective(beta=value)


@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf")])
@pytest.mark.parametrize(("objective", "name"), [(SimNPO, "delta"), (TPO, "preservation")])
def test_other_numbers_must_not_be_negative(objective, name, value):
    message = rf"^model\.forget\.{name} must be a finite number >= 0; got {value}"
    with pytest.raises(ValueError, match=message):
        objective(**{name: value})
    assert getattr(objective(**{name: 0.0}), name) == 0
