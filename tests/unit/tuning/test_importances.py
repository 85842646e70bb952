"""The scorer of importances: however a step is split, wherever a run is broken off."""

import pytest
import torch

from etw_lightning.kernels.signals import Counts, States, TokenSignals
from etw_lightning.tuning.importances import ImportanceScorer
from etw_lightning.weighting import ATWU

HOW = ATWU(every=1, rate=0.5, ridge=0.01)
COUNTS, TOTAL = Counts(6, 3), 4


def signals(seed=0, logps=None):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.tensor([0, 0, 1, 2, 2, 2])
    states = States({-1: torch.randn(6, 4, generator=generator)}, rows)
    given = -torch.rand(6, generator=generator) if logps is None else logps
    return TokenSignals(rows, rows, 3, given, states=states)


def learnt(scorer, steps, total=TOTAL):
    for seed in steps:
        scorer.note(signals(seed), COUNTS)
        scorer.step(total, lambda tensor: tensor)
    return scorer


def test_all_tokens_weigh_alike_until_something_is_learnt():
    assert ImportanceScorer(HOW).scores(signals()).tolist() == [0.5] * 6


def test_a_step_is_the_same_in_parts_and_over_processes():
    whole = learnt(ImportanceScorer(HOW), [3]).scores(signals(1))
    parted, first, second = (ImportanceScorer(HOW) for _ in range(3))
    parts = signals(3).slice_rows(0, 2), signals(3).slice_rows(2, 3)
    for part, one in zip(parts, (first, second), strict=True):
        parted.note(part, COUNTS)
        one.note(part, COUNTS)
    parted.step(TOTAL, lambda tensor: tensor)
    torch.testing.assert_close(parted.scores(signals(1)), whole)
    # What the other process has noted; each learns from the sum.
    noted = [[one.clone() for one in scorer._sums] for scorer in (second, first)]
    for scorer, others in zip((first, second), noted, strict=True):
        scorer.step(TOTAL, lambda tensor, others=others: tensor + others.pop(0))
    torch.testing.assert_close(first.scores(signals(1)), whole)
    assert torch.equal(first.scores(signals(1)), second.scores(signals(1)))


def test_a_scorer_goes_on_to_the_bit():
    whole = learnt(ImportanceScorer(HOW), [1, 2, 3])
    first = learnt(ImportanceScorer(HOW), [1, 2])
    kept = first.state()
    resumed = ImportanceScorer(HOW)
    resumed.go_on(first.state())
    learnt(first, [4])
    kept["weights"][0].zero_()  # what was taken is the other's own
    used = learnt(ImportanceScorer(HOW), [7])
    used.note(signals(8), COUNTS)  # of a step that was never made
    used.go_on(resumed.state())
    # Broken off again before any row was seen.
    again = ImportanceScorer(HOW)
    again.go_on(resumed.state())
    for one in (again, used):
        assert one.state()["steps"] == 2
        learnt(one, [3])
        assert torch.equal(one.scores(signals()), whole.scores(signals()))
    assert not torch.equal(
        whole.scores(signals()), learnt(ImportanceScorer(HOW), [3]).scores(signals())
    )
    fresh = ImportanceScorer(HOW)
    fresh.go_on(ImportanceScorer(HOW).state())
    assert fresh.scores(signals()).tolist() == [0.5] * 6


def test_a_token_of_no_probability_neither_weighs_nor_teaches():
    hopeless = signals(logps=torch.tensor([-torch.inf, -1.0, -1e30, -0.5, 0.0, -2.0]))
    scorer = ImportanceScorer(HOW)
    scorer.note(hopeless, COUNTS)
    scorer.step(TOTAL, lambda tensor: tensor)
    scores = scorer.scores(hopeless)
    assert scores.isfinite().all()
    assert (scores != 0.5).any()
    held = TokenSignals(
        hopeless.labels, hopeless.rows, 3, hopeless.logps, importances=torch.full((6,), 0.5)
    )
    assert ATWU()(held).tolist() == pytest.approx(
        [0, 0.5 * 2.718281828**-2.5, 0, 0.5 * 2.718281828**-1.25, 0.5, 0.5 * 2.718281828**-5]
    )


def test_the_share_above_a_half_is_drawn_to_the_budget():
    shares = {}
    for budget in (0.1, 0.9):
        how = ATWU(every=1, rate=0.5, ridge=0.0, budget=budget, budget_weight=50.0)
        scorer = learnt(ImportanceScorer(how), [5] * 60, total=60)
        shares[budget] = float((scorer.scores(signals(5)) > 0.5).float().mean())
    assert shares[0.1] <= 0.5 <= shares[0.9]
    assert shares[0.9] - shares[0.1] >= 0.5


def test_tokens_without_a_term_do_not_teach():
    """As the first of each row, of an objective that skips it; a row of one token has none left."""
    whole, parted = ImportanceScorer(HOW), ImportanceScorer(HOW)
    given = signals(2)
    assert given.states is not None
    kept = torch.tensor([1, 4, 5])
    alone = TokenSignals(
        given.labels[kept],
        given.rows[kept],
        3,
        given.logps[kept],
        states=States({-1: given.states.layers[-1][kept]}, given.rows[kept]),
    )
    whole.note(given, Counts(3, 2), skipped=1)
    parted.note(alone, Counts(3, 2))
    for scorer in (whole, parted):
        scorer.step(TOTAL, lambda tensor: tensor)
    torch.testing.assert_close(whole.scores(given), parted.scores(given), rtol=0, atol=0)


@pytest.mark.parametrize(("steps", "is_told"), [(4, True), (5, True), (6, False)])
def test_a_run_too_short_for_what_is_learnt_is_told(steps, is_told, recwarn):
    ImportanceScorer(ATWU(every=5)).tell_unused(steps)
    assert [f"this run has {steps}: no score but 1/2" in str(one.message) for one in recwarn] == (
        [True] if is_told else []
    )
