"""Gradients of two terms apart: their sums, and what surgery makes of them."""

import math

import numpy as np
import pytest
import torch

from etw_lightning.schema import InputError
from etw_lightning.tuning.two_gradients import (
    Surgery,
    TermGradients,
    adam_metric,
    inner_product,
)

#: Gradients of two weights, as one vector: forget and retain terms that oppose each other.
FORGET = np.array([3.0, -1.0, 2.0, 0.5, -4.0])
RETAIN = np.array([1.0, 2.0, -1.0, 0.0, 1.0])


def split(vector):
    found = torch.from_numpy(np.array(vector, dtype=np.float64))
    return [found[:2].clone(), found[2:].clone()]


def joined(parts):
    return torch.cat(parts).numpy()


def test_what_opposes_the_retain_gradient_is_taken_away():
    """By hand: <f, r> = 3 - 2 - 2 + 0 - 4 = -5, <r, r> = 7."""
    found = Surgery("conflict").rectify(split(FORGET), split(RETAIN), 0.3)
    expected = RETAIN + 0.3 * (FORGET + 5 / 7 * RETAIN)
    np.testing.assert_allclose(joined(found.gradients), expected, rtol=1e-14)
    assert found.cosine.item() == pytest.approx(-5 / math.sqrt(7 * (FORGET @ FORGET)))
    assert found.removed.item() == pytest.approx(25 / 7 / (FORGET @ FORGET))
    # To first order the forget step no longer moves the retain loss.
    assert abs((joined(found.gradients) - RETAIN) @ RETAIN) < 1e-14


@pytest.mark.parametrize("rule", ["conflict", "orthogonal"])
def test_a_forget_gradient_that_helps_the_retain_term_is_left_by_conflict_alone(rule):
    found = Surgery(rule).rectify(split(-FORGET), split(RETAIN), 2.0)
    kept = -FORGET if rule == "conflict" else -FORGET - 5 / 7 * RETAIN
    np.testing.assert_allclose(joined(found.gradients), RETAIN + 2 * kept, rtol=1e-14)
    assert (found.removed.item() > 0) == (rule == "orthogonal")


def test_the_remembered_retain_gradient_is_a_running_mean_from_nothing():
    surgery = Surgery("orthogonal", average=0.2)
    remembered = np.zeros(5)
    for retain in (RETAIN, np.array([0.0, 1.0, 1.0, -2.0, 3.0])):
        remembered = 0.8 * retain + 0.2 * remembered
        found = surgery.rectify(split(FORGET), split(retain), 1.0)
        share = FORGET @ remembered / (remembered @ remembered)
        expected = retain + FORGET - share * remembered
        np.testing.assert_allclose(joined(found.gradients), expected, rtol=1e-13)


def test_without_a_retain_gradient_nothing_is_taken_away():
    found = Surgery("orthogonal").rectify(split(FORGET), split(np.zeros(5)), 0.5)
    np.testing.assert_array_equal(joined(found.gradients), 0.5 * FORGET)
    assert found.cosine.item() == 0
    assert found.removed.item() == 0


def test_in_adams_geometry_the_step_of_adam_is_at_right_angles():
    """Adam without a first mean: its step is -g / (sqrt(v) + eps), v as it was before."""
    weights = [torch.nn.Parameter(part) for part in split(np.zeros(5))]
    optimizer = torch.optim.AdamW(weights, lr=1e-3, betas=(0.0, 0.9), weight_decay=0.0)
    assert adam_metric(optimizer, weights) == [None, None]
    squares = np.zeros(5)
    for seed in range(2):
        given = np.random.default_rng(seed).normal(size=5)
        squares = 0.9 * squares + 0.1 * given**2
        for weight, part in zip(weights, split(given), strict=True):
            weight.grad = part
        optimizer.step()
    counts = 1 / (np.sqrt(squares / (1 - 0.9**2)) + 1e-8)
    metric = adam_metric(optimizer, weights)
    np.testing.assert_allclose(joined(metric), counts, rtol=1e-13)
    found = Surgery("conflict", geometry="adam").rectify(split(FORGET), split(RETAIN), 1.0, metric)
    changed = joined(found.gradients) - RETAIN
    assert FORGET * counts @ RETAIN < 0
    assert abs(changed * counts @ RETAIN) < 1e-12


def test_sums_over_micro_batches_are_the_gradients_of_the_whole():
    first, second = torch.nn.Parameter(torch.tensor([2.0])), torch.nn.Parameter(torch.tensor([3.0]))
    sums = TermGradients([first, second])
    for factor in (1.0, 4.0):
        shared = first * factor
        sums.add((shared * second).sum(), shared.sum())
    # A micro-batch without forget rows has a term without a graph.
    sums.add(torch.zeros(()), (2 * first).sum())
    forget, retain = sums.take(lambda one: one)
    assert [one.item() for one in forget] == [15.0, 10.0]
    assert [one.item() for one in retain] == [7.0, 0.0]
    sums.add(first.sum(), first.sum())
    assert [one.item() for one in sums.take(lambda one: 2 * one)[0]] == [2.0, 0.0]


def test_products_of_16_bits_are_summed_in_64():
    ones = [torch.full((100_000,), 0.01, dtype=torch.bfloat16)]
    exact = 100_000 * float(ones[0][0]) ** 2
    assert inner_product(ones, ones).item() == pytest.approx(exact, rel=1e-7)


@pytest.mark.parametrize("average", [-0.1, 1.0, float("nan")])
def test_an_average_is_a_share(average):
    with pytest.raises(InputError, match=r"model.surgery_average must be in \[0, 1\); got"):
        Surgery("conflict", average)
