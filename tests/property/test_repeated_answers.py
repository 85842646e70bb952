"""leak@k: true of any samples, whatever they score."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etw_lightning.metrics import expected_highest, leak_at_k, leakage, refusal_stability
from etw_lightning.schema import Record

ROW = st.lists(st.booleans(), min_size=3, max_size=3)
SCORES = st.lists(st.floats(0, 1), min_size=1, max_size=12)


@given(SCORES, st.randoms())
def test_more_samples_never_hide_a_leak(scores, rng):
    found = [expected_highest(scores, k) for k in range(1, len(scores) + 1)]
    near = 1e-12
    assert all(after >= before - near for before, after in pairwise(found))
    assert min(scores) - near <= found[0] <= found[-1] + near <= max(scores) + 2 * near
    rng.shuffle(scores)
    assert [expected_highest(scores, k) for k in range(1, len(scores) + 1)] == found


@given(st.integers(1, 300), st.data())
def test_leak_at_k_lies_between_one_sample_and_certainty(n, data):
    k, count = data.draw(st.integers(1, n)), data.draw(st.integers(0, n))
    found = leak_at_k(n, count, k)
    assert count / n <= found <= 1
    # Draws with replacement meet a leak less often.
    assert found >= 1 - (1 - count / n) ** k - 1e-12
    assert (found == 0) == (count == 0)
    # A probability near enough to 1 is rounded to it.
    assert found == 1 or n - count >= k
    assert n == count or found <= leak_at_k(n, count + 1, k)


@given(
    st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=6), st.randoms()
)
@settings(max_examples=8)
def test_the_order_of_records_does_not_matter(rows, rng):
    records = [
        Record("f", f"f/{number}", "In Rome.", generation="In Rome." if says else "No idea.")
        for number, row in enumerate(rows)
        for says in row
    ]
    before = leakage(records, 2).value, refusal_stability(records).value
    rng.shuffle(records)
    after = leakage(records, 2).value, refusal_stability(records).value
    assert after == pytest.approx(before, abs=1e-12)
