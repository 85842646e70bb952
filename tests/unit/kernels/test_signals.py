"""Signals of a group of rows, and the mean over an effective batch."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from etw_lightning.kernels.distributions import GivenDistributions
from etw_lightning.kernels.signals import Counts, Padded, States, TokenSignals, reduce_terms


@pytest.fixture
def signals():
    """Five tokens of four rows; row 1 has none."""
    rows = torch.tensor([0, 0, 2, 2, 3])
    return TokenSignals(
        labels=torch.arange(5),
        rows=rows,
        num_rows=4,
        logps=torch.tensor([-1.0, -3.0, -5.0, -7.0, -9.0], requires_grad=True),
        entropies=torch.arange(5.0),
        marked=torch.tensor([True, False, False, True, True]),
        distributions=GivenDistributions(torch.arange(10.0).reshape(5, 2)),
        # Row 0 has a first token that is labelled, so one state more than log-probabilities.
        states=States({3: torch.arange(12.0).reshape(6, 2)}, torch.tensor([0, 0, 0, 2, 2, 3])),
        padded=Padded(
            torch.arange(24.0).reshape(4, 3, 2),
            torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 0], [1, 0, 0]]),
            GivenDistributions,
        ),
        reference_logps=torch.arange(5.0) - 9,
    )


def test_row_sums_and_counts(signals):
    assert signals.row_sums(signals.logps).tolist() == [-4.0, 0.0, -12.0, -9.0]
    assert signals.row_counts().tolist() == [2.0, 0.0, 2.0, 1.0]
    assert not signals.row_counts().requires_grad


def test_row_sums_keep_the_gradient(signals):
    signals.row_sums(signals.logps)[2].backward()
    assert signals.logps.grad.tolist() == [0.0, 0.0, 1.0, 1.0, 0.0]


@pytest.mark.parametrize(
    ("start", "stop", "tokens"),
    [(0, 4, [0, 1, 2, 3, 4]), (0, 2, [0, 1]), (1, 2, []), (1, 3, [2, 3]), (3, 4, [4])],
)
@pytest.mark.parametrize("offsets", [(), (0, 2, 2, 4, 5)])
def test_slice_rows_is_a_group_of_its_own(signals, start, stop, tokens, offsets):
    part = replace(signals, offsets=offsets).slice_rows(start, stop)
    assert part.offsets == tuple(one - offsets[start] for one in offsets[start : stop + 1])
    assert part.labels.tolist() == tokens
    assert part.rows.tolist() == [int(signals.rows[token]) - start for token in tokens]
    assert part.num_rows == stop - start == len(part.row_counts())
    assert torch.equal(part.logps, signals.logps[tokens])
    assert torch.equal(part.entropies, signals.entropies[tokens])
    assert torch.equal(part.marked, signals.marked[tokens])
    assert torch.equal(part.distributions.log_probs(), signals.distributions.log_probs()[tokens])
    held = (signals.states.rows >= start) & (signals.states.rows < stop)
    assert torch.equal(part.states.layers[3], signals.states.layers[3][held])
    assert torch.equal(part.states.rows, signals.states.rows[held] - start)
    longest = int(signals.padded.mask[start:stop].sum(1).max())
    assert part.padded.length == longest
    positions = signals.padded.hidden[start:stop, :longest].reshape(-1, 2)
    assert torch.equal(part.padded.distributions.log_probs(), positions)
    assert torch.equal(part.reference_logps, signals.reference_logps[tokens])
    assert part.reference_states is None
    assert part.alternative is None


def test_means_of_a_whole_batch(signals):
    counts = Counts(tokens=5, rows=3)
    assert reduce_terms(signals.logps, signals, counts, "token") == -25 / 5
    assert reduce_terms(signals.logps, signals, counts, "sequence").item() == pytest.approx(
        (-2 - 6 - 9) / 3
    )


@pytest.mark.parametrize("reduction", ["token", "sequence"])
def test_a_term_a_sequence_is_averaged_over_sequences(signals, reduction):
    terms = torch.tensor([1.0, 0.0, 2.0, 6.0])
    assert reduce_terms(terms, signals, Counts(5, 3), reduction, "sequence") == 3


@pytest.mark.parametrize("reduction", ["token", "sequence"])
@pytest.mark.parametrize("cuts", [(1,), (2,), (1, 3), (1, 2, 3)])
def test_shares_add_up_to_the_mean(signals, reduction, cuts):
    counts = Counts(tokens=5, rows=3)
    whole = reduce_terms(signals.logps, signals, counts, reduction)
    bounds = [0, *cuts, 4]
    parts = [signals.slice_rows(*pair) for pair in pairwise(bounds)]
    shares = [reduce_terms(part.logps, part, counts, reduction) for part in parts]
    assert sum(shares).item() == pytest.approx(whole.item(), rel=1e-6)


@pytest.mark.parametrize("reduction", ["token", "sequence"])
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_nothing_labelled_is_zero_with_a_gradient(reduction, level):
    logps = torch.zeros(0, requires_grad=True)
    none = torch.zeros(0, dtype=torch.long)
    signals = TokenSignals(none, none, num_rows=2, logps=logps)
    terms = logps if level == "token" else signals.row_sums(logps)
    loss = reduce_terms(terms, signals, Counts(0, 0), reduction, level)
    loss.backward()
    assert loss == 0
    assert logps.grad.shape == (0,)


@pytest.mark.parametrize(("reduction", "mean"), [("token", -4 / 3), ("sequence", -4 / 2)])
def test_skipped_tokens_are_not_averaged_over(signals, reduction, mean):
    terms = torch.tensor([0.0, -3.0, 0.0, -1.0, 0.0])
    counts = Counts(tokens=3, rows=2)  # tokens here and one of another micro-batch
    assert reduce_terms(terms, signals, counts, reduction, skipped=1).item() == pytest.approx(mean)


def test_places_are_made_where_the_tokens_are():
    """The meta device stands for any that is not the CPU: torch refuses to mix the two."""
    rows = torch.zeros(3, dtype=torch.long, device="meta")
    assert TokenSignals(rows, rows, 1, torch.zeros(3)).places().device.type == "meta"


def test_places_count_from_the_first_token_of_each_row(signals):
    assert signals.places().tolist() == [0, 1, 0, 1, 0]


def test_no_rows_have_no_positions():
    none = Padded(torch.zeros(0, 3, 2), torch.zeros(0, 3, dtype=torch.long), GivenDistributions)
    assert none.length == 0
    assert len(none.distributions) == 0


@pytest.mark.parametrize("reduction", ["token", "sequence"])
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_a_single_token_is_its_own_mean(reduction, level):
    zero = torch.tensor([0])
    one = TokenSignals(zero, zero, 1, torch.tensor([-3.0]))
    assert reduce_terms(torch.tensor([5.0]), one, Counts(1, 1), reduction, level) == 5
