"""PALU against a loop over rows and tokens in float64, value and gradient."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from etw_lightning.forget import PALU, PDU
from etw_lightning.kernels.distributions import GivenDistributions, TopLogps
from etw_lightning.kernels.signals import TokenSignals
from etw_lightning.schema import InputError

VOCABULARY = 6
LENGTHS = (6, 0, 4, 2)
#: Marks of each row's tokens: two runs; one that goes on at the next row's beginning; none.
MARKED = [[1, 1, 1, 0, 1, 1], [], [0, 1, 1, 1], [1, 0]]


@pytest.fixture
def problem():
    generator = torch.Generator().manual_seed(3)
    logits, reference = (
        torch.randn(sum(LENGTHS), VOCABULARY, generator=generator, dtype=torch.float64)
        for _ in range(2)
    )
    logits.requires_grad_()
    logps = logits.log_softmax(-1)
    signals = TokenSignals(
        labels=torch.zeros(sum(LENGTHS), dtype=torch.long),
        rows=torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS)),
        num_rows=len(LENGTHS),
        logps=logps[:, 0],
        marked=torch.tensor([one for row in MARKED for one in row]).bool(),
        distributions=GivenDistributions(logps),
        reference_distributions=GivenDistributions(reference.log_softmax(-1)),
    )
    weights = torch.linspace(0.3, 1.5, sum(LENGTHS), dtype=torch.float64)
    return signals, logits, reference, weights


def shares_of(logits):
    found = np.exp(logits - logits.max())
    return found / found.sum()


def twin(logits, reference, weights, *, top_k, first_n, preservation):
    found, start = [], 0
    for marks in MARKED:
        gaps, moved, run = [], [], 0
        for place, is_marked in enumerate(marks, start):
            run = run + 1 if is_marked else 0
            if not is_marked:
                p, r = shares_of(logits[place]), shares_of(reference[place])
                moved.append(sum(a * math.log(a / b) for a, b in zip(p, r, strict=True)))
            elif first_n is None or run <= first_n:
                likeliest = sorted(range(VOCABULARY), key=lambda v: -reference[place][v])[:top_k]
                squares = [(logits[place][v] - logits[place].mean()) ** 2 for v in likeliest]
                gaps.append(weights[place] * sum(squares) / top_k)
        first = sum(gaps) / len(gaps) if gaps else 0.0
        second = sum(moved) / len(moved) if moved else 0.0
        found.append(first + preservation * second)
        start += len(marks)
    return np.array(found)


@pytest.mark.parametrize(
    "numbers",
    [
        {"top_k": 1, "first_n": None, "preservation": 1.0},
        {"top_k": 3, "first_n": 2, "preservation": 0.5},
        {"top_k": VOCABULARY, "first_n": 1, "preservation": 0.0},
    ],
)
def test_palu_flattens_where_marked_runs_begin_and_holds_the_rest(problem, numbers):
    signals, logits, reference, weights = problem
    terms = PALU(**numbers)(signals, weights)

    def at(given):
        return twin(given, reference.numpy(), weights.numpy(), **numbers)

    given = logits.detach().numpy()
    np.testing.assert_allclose(terms.detach().numpy(), at(given), rtol=0, atol=1e-12)
    (gradient,) = torch.autograd.grad(terms.sum(), logits)
    expected = np.zeros_like(given)
    for place in np.ndindex(given.shape):
        step = np.zeros_like(given)
        step[place] = 1e-5
        expected[place] = (at(given + step).sum() - at(given - step).sum()) / 2e-5
    np.testing.assert_allclose(gradient.numpy(), expected, rtol=0, atol=1e-9)


def test_a_cached_reference_of_the_whole_vocabulary_says_the_same(problem):
    signals, _, reference, weights = problem
    ordered = reference.log_softmax(-1).sort(descending=True)
    cached = replace(signals, reference_distributions=TopLogps(ordered.values, ordered.indices))
    objective = PALU(top_k=2, first_n=2)
    torch.testing.assert_close(objective(cached, weights), objective(signals, weights))


def test_a_cache_that_holds_too_little_is_refused(problem):
    signals, _, reference, weights = problem
    ordered = reference.log_softmax(-1).sort(descending=True)
    top = TopLogps(ordered.values[:, :2], ordered.indices[:, :2])
    few = replace(signals, reference_distributions=top)
    assert PALU(top_k=1)(few, weights).isfinite().all()
    # One of the two may be the label, in the place of the second likeliest.
    with pytest.raises(
        InputError,
        match=r"top_k is 2, for which 3 tokens .* be held; 2 are: give model.reference_top_k 3",
    ):
        PALU(top_k=2)(few, weights)
    with pytest.raises(InputError, match=f"{VOCABULARY} are: that is the whole vocabulary: give"):
        PALU(top_k=VOCABULARY + 1)(signals, weights)


def test_what_a_cache_holds_gives_the_terms_of_the_whole_distribution(problem):
    """Though the label, where it is none of the likeliest, has the last of the places."""
    signals, _, reference, weights = problem
    labels = signals.labels
    logps = reference.log_softmax(-1)
    ids = logps.topk(3).indices
    is_held = (ids == labels[:, None]).any(-1)
    assert not is_held.all()
    ids[:, -1] = torch.where(is_held, ids[:, -1], labels)
    rest = logps.scatter(-1, ids, -torch.inf).logsumexp(-1)
    top = TopLogps(logps.gather(-1, ids), ids, rest)
    cached = replace(signals, reference_distributions=top)
    objective = PALU(top_k=2, first_n=2, preservation=0.0)
    torch.testing.assert_close(objective(cached, weights), objective(signals, weights))


def test_at_the_target_model_with_one_logit_it_is_pdu_at_the_marked_tokens(problem):
    signals, _, _, weights = problem
    same = replace(signals, reference_distributions=signals.distributions)
    gaps = PDU()(same, weights) * same.marked
    counts = same.row_sums(same.marked.double()).clamp(min=1)
    torch.testing.assert_close(PALU()(same, weights), same.row_sums(gaps) / counts)


def test_weights_choose_as_marks_do(problem):
    signals, _, _, _ = problem
    marks = signals.marked.double()
    blind = replace(signals, marked=None)
    for numbers in ({}, {"top_k": 2, "first_n": 2, "preservation": 0.5}):
        expected = PALU(**numbers)(signals, torch.ones_like(marks))
        found = PALU(**numbers, chosen="weighted")(blind, 3 * marks)
        torch.testing.assert_close(found, expected)
    assert PALU(chosen="weighted").needs == PALU().needs - {"marked"}


def test_by_weights_the_flattened_part_is_a_weighted_mean(problem):
    signals, logits, reference, weights = problem
    objective = PALU(preservation=0.0, chosen="weighted")
    found = objective(replace(signals, marked=None), weights).detach().numpy()
    given, likeliest = logits.detach().numpy(), reference.numpy().argmax(1)
    gaps = (given[np.arange(len(given)), likeliest] - given.mean(1)) ** 2
    edges = np.cumsum((0, *LENGTHS))
    for row, (start, end) in enumerate(itertools.pairwise(edges)):
        own = weights.numpy()[start:end]
        expected = (own * gaps[start:end]).sum() / own.sum() if len(own) else 0.0
        assert found[row] == pytest.approx(expected, abs=1e-12)


def test_weights_that_have_nearly_vanished_leave_a_gradient(problem):
    """As those of probabilities to a power do, of a row that is forgotten."""
    signals, logits, _, _ = problem
    weights = torch.full_like(signals.logps, 5e-324)
    objective = PALU(preservation=0.0, chosen="weighted")
    terms = objective(replace(signals, marked=None), weights.detach())
    (gradient,) = torch.autograd.grad(terms.sum(), logits)
    assert terms.isfinite().all()
    assert gradient.isfinite().all()


def test_who_chooses_is_one_of_two():
    with pytest.raises(
        ValueError, match=r"model.forget.chosen must be marked or weighted; got 'x'"
    ):
        PALU(chosen="x")


@pytest.mark.parametrize("numbers", [{"top_k": 0}, {"first_n": 0}, {"preservation": -1.0}])
def test_numbers_out_of_range_are_refused(numbers):
    (name,) = numbers
    with pytest.raises(ValueError, match=f"model.forget.{name} must be"):
        PALU(**numbers)
