"""Learnt importances against their formulas in float64, with slopes worked out by hand.

Nothing of ours is imported for what is expected: no autograd, no optimiser.
"""

import numpy as np
import pytest
import torch

from etw_lightning.kernels.signals import Counts, States, TokenSignals
from etw_lightning.tuning.importances import ImportanceScorer
from etw_lightning.weighting import ATWU

WIDTH, STEPS = 5, 12
#: Labelled tokens of each row; the first row's first token is labelled too, and has no prediction.
SIZES = (4, 0, 7, 1)
ROWS = np.repeat(np.arange(len(SIZES)), SIZES)
NUMBERS = {"beta": 2.0, "budget": 0.3, "budget_weight": 4.0, "entropy_weight": 0.7}
NUMBERS |= {"ridge": 0.05, "rate": 0.4, "every": 2}


def drawn(seed):
    """States and losses of one step."""
    generator = np.random.default_rng(seed)
    return generator.normal(size=(len(ROWS), WIDTH)), generator.exponential(2, size=len(ROWS))


def signals_of(states, losses):
    rows = torch.tensor(ROWS)
    first = torch.full((1, WIDTH), 100.0)
    held = States(
        {-1: torch.cat([first, torch.tensor(states).float()])}, torch.cat([rows[:1], rows])
    )
    logps = torch.tensor(-losses).requires_grad_()
    return TokenSignals(torch.zeros_like(rows), rows, len(SIZES), logps, states=held)


def sigmoid(values):
    return 1 / (1 + np.exp(-values))


def slopes(states, losses, direction, offset):
    """The gradient of what the scorer minimises by its direction and its offset."""
    scores = sigmoid(states @ direction + offset)
    by_score = -losses * np.exp(-NUMBERS["beta"] * losses * scores) / len(ROWS)
    by_score += NUMBERS["entropy_weight"] * np.log((1 - scores) / scores) / len(ROWS)
    rows = [row for row, size in enumerate(SIZES) if size]
    for row in rows:
        of_row = row == ROWS
        miss = np.mean(scores[of_row] > 0.5) - NUMBERS["budget"]
        pull = NUMBERS["budget_weight"] * 2 * miss / of_row.sum() / len(rows)
        by_score = by_score + pull * of_row
    by_logit = by_score * scores * (1 - scores)
    return np.append(by_logit @ states, by_logit.sum()) + 2 * NUMBERS["ridge"] * np.append(
        direction, offset
    )


def expected_scores():
    """Scores of each step's tokens, under a scorer that learns from every second step."""
    values, speed, found, made = np.zeros(WIDTH + 1), np.zeros(WIDTH + 1), [], 0
    for step in range(STEPS):
        states, losses = drawn(step)
        found.append(sigmoid(states @ values[:-1] + values[-1]))
        if step % 2 == 1:
            slope = slopes(states, losses, values[:-1], values[-1])
            slope = slope / max(np.linalg.norm(slope), 1) + 1e-4 * values
            speed = slope if made == 0 else 0.9 * speed + slope
            values = values - 0.4 * (1 - made / (STEPS // 2)) * speed
            made += 1
    return found


def test_a_scorer_learns_as_the_formulas_say():
    scorer, counts = ImportanceScorer(ATWU(**NUMBERS)), Counts(len(ROWS), 3)
    for step, expected in enumerate(expected_scores()):
        signals = signals_of(*drawn(step))
        scores = scorer.scores(signals)
        assert scores.numpy() == pytest.approx(expected, abs=2e-6)
        assert not scores.requires_grad
        assert scorer.is_due(step) == (step % 2 == 1)
        if scorer.is_due(step):
            scorer.note(signals, counts)
            scorer.step(STEPS, lambda tensor: tensor)
    assert np.ptp(expected) > 0.3, "scores that stay at 1/2 would show nothing"


def test_weights_are_scores_times_the_power_of_the_probability():
    generator = np.random.default_rng(0)
    scores, logps = generator.uniform(size=20), -generator.exponential(3, size=20)
    rows = torch.zeros(20, dtype=torch.long)
    signals = TokenSignals(
        rows, rows, 1, torch.tensor(logps).requires_grad_(), importances=torch.tensor(scores)
    )
    found = ATWU(beta=3.5)(signals)
    assert found.numpy() == pytest.approx(scores * np.exp(logps) ** (3.5 * scores), rel=1e-12)
    assert not found.requires_grad
