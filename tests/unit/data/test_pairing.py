"""Which rows meet in a step."""

import random
from collections import Counter

import numpy as np
import pytest
import torch

from etw_lightning.data.pairing import Pairing, _order


def epoch_rows(pairing, epoch, rank=0):
    return [pairing.step_rows(epoch, batch, rank) for batch in range(pairing.num_batches)]


def flat(steps, stream):
    return [row for step in steps for row in getattr(step, stream) if row >= 0]


def effective_batches(pairing, epoch):
    """Rows of each stream, by optimiser step, as all processes together see them."""
    found = {}
    for rank in range(pairing.world_size):
        for batch, step in enumerate(epoch_rows(pairing, epoch, rank)):
            window = found.setdefault(batch // pairing.accumulate, (Counter(), Counter()))
            window[0].update(row for row in step.forget if row >= 0)
            window[1].update(row for row in step.retain if row >= 0)
            assert Counter(step.all_forget) >= Counter(row for row in step.forget if row >= 0)
    return [found[window] for window in sorted(found)]


SPLITS = [
    {"batch_size": 8},
    {"batch_size": 4, "accumulate": 2},
    {"batch_size": 4, "world_size": 2},
    {"batch_size": 2, "accumulate": 2, "world_size": 2},
    {"batch_size": 1, "accumulate": 8},
    {"batch_size": 1, "world_size": 8},
]


@pytest.mark.parametrize("anchor", ["forget", "retain"])
@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize(("num_forget", "num_retain"), [(16, 40), (13, 30), (9, 5), (3, 100)])
def test_an_effective_batch_does_not_depend_on_its_split(anchor, split, num_forget, num_retain):
    sizes = {"num_forget": num_forget, "num_retain": num_retain, "anchor": anchor, "seed": 3}
    one, other = Pairing(**sizes, batch_size=8), Pairing(**sizes, **split)
    for epoch in range(3):
        assert effective_batches(other, epoch) == effective_batches(one, epoch)
        windows = [(step.all_forget, step.all_retain) for step in epoch_rows(one, epoch)]
        for rank in range(other.world_size):
            for batch, step in enumerate(epoch_rows(other, epoch, rank)):
                whole = windows[batch // other.accumulate]
                assert (step.all_forget, step.all_retain) == whole


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize(("anchor", "length"), [("forget", 13), ("retain", 30)])
def test_an_epoch_covers_the_anchor_exactly_once(split, anchor, length):
    pairing = Pairing(num_forget=13, num_retain=30, anchor=anchor, **split)
    for epoch in range(3):
        ranks = [epoch_rows(pairing, epoch, rank) for rank in range(pairing.world_size)]
        seen = [row for steps in ranks for row in flat(steps, anchor)]
        assert sorted(seen) == list(range(length))
        assert {len(steps) for steps in ranks} == {pairing.num_batches}


def test_ranks_are_disjoint_and_none_is_without_rows():
    pairing = Pairing(num_forget=13, num_retain=30, batch_size=2, accumulate=2, world_size=3)
    for batch in range(pairing.num_batches):
        steps = [pairing.step_rows(0, batch, rank) for rank in range(3)]
        rows = [row for step in steps for row in step.forget if row >= 0]
        assert len(rows) == len(set(rows))
        assert all(step.forget and step.retain for step in steps)


def test_the_last_window_may_be_partial():
    pairing = Pairing(num_forget=13, num_retain=30, batch_size=2, accumulate=2, world_size=2)
    assert pairing.window_size == 8
    assert pairing.num_batches == 2 + 2  # 8 rows, then 5: two micro-batches of 2 x 2
    last = [pairing.step_rows(0, 3, rank) for rank in range(2)]
    assert [len(step.all_forget) for step in last] == [5, 5]
    assert [len(step.forget) for step in last] == [1, 1]
    assert last[1].forget == last[1].retain == (-1,)  # no row left: a filler
    assert Pairing(num_forget=9, num_retain=9, batch_size=2, accumulate=2).num_batches == 5


@pytest.mark.parametrize("anchor", ["forget", "retain"])
@pytest.mark.parametrize("sizes", [(10, 24), (24, 10), (7, 7), (1, 5)])
def test_the_other_stream_is_seen_equally_often(anchor, sizes):
    pairing = Pairing(*sizes, batch_size=4, anchor=anchor)
    other = "retain" if anchor == "forget" else "forget"
    length = dict(zip(("forget", "retain"), sizes, strict=True))[other]
    seen = Counter()
    for epoch in range(12):
        seen.update(flat(epoch_rows(pairing, epoch), other))
        counts = [seen[row] for row in range(length)]
        assert max(counts) - min(counts) <= 1
    assert sum(seen.values()) == 12 * pairing.num_anchor


def test_the_other_stream_runs_on_over_epochs():
    """A retain set three times as long is seen whole in three epochs, not its first third."""
    pairing = Pairing(num_forget=5, num_retain=15, batch_size=2)
    seen = [row for epoch in range(3) for row in flat(epoch_rows(pairing, epoch), "retain")]
    assert sorted(seen) == list(range(15))


def test_epochs_and_turns_have_orders_of_their_own():
    pairing = Pairing(num_forget=20, num_retain=20, batch_size=5)
    first, second = (flat(epoch_rows(pairing, epoch), "forget") for epoch in (0, 1))
    assert first != second
    assert first != flat(epoch_rows(pairing, 0), "retain")
    assert first != flat(epoch_rows(Pairing(20, 20, 5, seed=1), 0), "forget")


def global_states():
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()


def test_no_global_random_state_is_read_or_moved():
    pairing = Pairing(num_forget=13, num_retain=30, batch_size=4, seed=5)
    expected = [epoch_rows(pairing, epoch) for epoch in range(4)]
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        for seed in range(3):
            random.seed(seed)
            np.random.seed(seed)
            torch.manual_seed(seed)
            _order.cache_clear()
            before = global_states()
            assert [epoch_rows(pairing, epoch) for epoch in range(4)] == expected
            assert global_states() == before
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def test_a_step_does_not_depend_on_those_asked_for_before():
    pairing = Pairing(num_forget=13, num_retain=30, batch_size=4, seed=5)
    steps = [(epoch, batch) for epoch in range(9) for batch in range(pairing.num_batches)]
    forwards = [pairing.step_rows(*step) for step in steps]
    assert [pairing.step_rows(*step) for step in reversed(steps)] == forwards[::-1]


def test_the_order_is_pinned():
    """A run that is repeated years later sees the same rows: PCG64 of (seed, stream, turn)."""
    step = Pairing(num_forget=10, num_retain=100, batch_size=4, seed=0).step_rows(0, 0)
    assert (step.forget, step.retain) == ((4, 6, 2, 7), (65, 45, 69, 50))


@pytest.mark.parametrize("anchor", ["forget", "retain"])
@pytest.mark.parametrize("stream", ["forget", "retain"])
def test_a_single_stream(anchor, stream):
    """Fine-tuning has no forget rows, plain gradient ascent no retain rows; the anchor is moot."""
    other = "retain" if stream == "forget" else "forget"
    pairing = Pairing(**{f"num_{stream}": 11, f"num_{other}": 0}, batch_size=4, anchor=anchor)
    steps = epoch_rows(pairing, 2)
    assert pairing.num_anchor == 11
    assert pairing.num_batches == len(steps) == 3
    assert sorted(flat(steps, stream)) == list(range(11))
    assert all(getattr(step, other) == getattr(step, f"all_{other}") == () for step in steps)


@pytest.mark.parametrize("rows", [8, 9, 13, 16])
def test_whole_steps_fill_the_last_one_and_move_no_row(rows):
    """Where micro-batches are counted, one that is left out would make every later step late."""
    given = {"num_forget": rows, "num_retain": 40, "batch_size": 2, "accumulate": 4}
    plain, filled = Pairing(**given), Pairing(**given, whole_steps=True)
    assert filled.num_batches % 4 == 0
    assert 0 <= filled.num_batches - plain.num_batches < 4
    for epoch in range(2):
        steps = epoch_rows(filled, epoch)
        assert steps[: plain.num_batches] == epoch_rows(plain, epoch)
        assert all(step.forget == step.retain == (-1,) for step in steps[plain.num_batches :])
