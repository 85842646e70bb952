"""What ``data.max_length`` costs, and rows that say the same twice."""

from dataclasses import replace

import numpy as np
import pytest

from etw_lightning.data import lost_labels
from etw_lightning.data.lost_labels import (
    LostLabels,
    Repeats,
    percent,
    said_by,
    tell_lost,
    tell_repeats,
)
from etw_lightning.data.stored_rows import sizes
from etw_lightning.schema import IGNORE_INDEX, EncodedRow, Example, Turn


@pytest.fixture
def warned(monkeypatch):
    said = []
    monkeypatch.setattr(lost_labels, "warn_first", said.append)
    return said


def row(name, labels, lost=0):
    return EncodedRow(name, (1,) * (labels + 1), (IGNORE_INDEX, *[1] * labels), lost)


def test_what_is_lost_is_a_share_of_all_labels():
    """Of 6 + 2 + 4 labels that are left and 3 + 1 that are lost: 4 / 16."""
    found = LostLabels.of([row("a/0", 6), row("a/1", 2, lost=3), row("a/2", 4, lost=1)])
    assert found == LostLabels(labels=4, share=0.25, rows=2, of_rows=3, first=("a/1", "a/2"))
    assert found.to_json() == {
        "labels": 4, "share": 0.25, "rows": 2, "of_rows": 3, "first": ["a/1", "a/2"],
    }  # fmt: skip
    assert LostLabels.of([row("a/0", 6)]) is None
    assert LostLabels.of([]) is None


@pytest.mark.parametrize("num", [1, 5, 6, 9])
def test_five_rows_are_named_and_the_rest_counted(warned, num):
    rows = [row(f"a/{n}", 1, lost=1) for n in range(num)] + [row("a/whole", 2 * num)]
    found = tell_lost("retain", rows, 7)
    names = [f"a/{n}" for n in range(min(num, 5))]
    assert found == LostLabels(num, 0.25, num, num + 1, tuple(names))
    (said,) = warned
    assert said.startswith(
        f"{num} of {num + 1} retain rows lose {num} labels (25 %) to data.max_length = 7: "
        f"{', '.join(names)}{', ...' if num > 5 else ''}. What is cut off"
    )


def test_nothing_lost_is_not_told(warned):
    assert tell_lost("forget", [row("a/0", 3)], 7) is None
    assert warned == []


ONE = Example("f/0", "a", "q")


@pytest.mark.parametrize(
    ("changes", "is_same"),
    [
        ({"id": "f/9"}, True),
        ({"perturbed_answers": ("b",)}, True),
        ({"answer": "b"}, False),
        ({"question": None}, False),
        ({"turns": (Turn("user", "Hello."),)}, False),
    ],
)
def test_what_a_row_says(changes, is_same):
    assert (said_by(replace(ONE, **changes)) == said_by(ONE)) is is_same


@pytest.mark.parametrize("num", [0, 1, 5, 6])
def test_rows_that_repeat_an_earlier_one_are_named(warned, num):
    others = [replace(ONE, id=f"f/{n + 1}") for n in range(num)]
    found = tell_repeats([ONE, replace(ONE, id="g/0", answer="b"), *others])
    if num == 0:
        assert found is None
        assert warned == []
        return
    names = tuple(f"f/{n + 1} as f/0" for n in range(min(num, 5)))
    assert found == Repeats(num, num + 2, names)
    assert found.to_json() == {"rows": num, "of_rows": num + 2, "first": list(names)}
    (said,) = warned
    assert said.startswith(
        f"{num} rows of data.forget_split say the same as an earlier one: "
        f"{', '.join(names)}{', ...' if num > 5 else ''}. They count"
    )


def test_several_rows_of_an_example_count_as_one():
    """Of seven examples of two rows each six lose labels, one of them in both its rows."""
    lost = [(1, 1), (0, 1), (1, 0), (0, 2), (0, 1), (0, 1), (0, 0)]
    rows = [row(f"a/{n}", 2, one) for n, pair in enumerate(lost) for one in pair]
    found = LostLabels.of(rows)
    assert (found.labels, found.rows, found.of_rows) == (8, 7, 14)
    names = ("a/0", "a/1", "a/2", "a/3", "a/4")
    counted, ids = sizes(rows), [f"a/{n}" for n in range(7)]
    by_example = LostLabels.counted(counted.num_lost, counted.num_labels, np.arange(14) // 2, ids)
    assert by_example == replace(found, rows=6, of_rows=7, first=names)


@pytest.mark.parametrize(
    ("share", "said"),
    [(0.0234, "2.3"), (0.5, "50"), (0.987, "99"), (0.99, "99"), (0.999, "99.9"), (1.0, "100")],
)
def test_a_share_is_read_in_percent(share, said):
    assert percent(share) == said


def test_a_share_has_a_third_digit_above_99_percent():
    assert [percent(share) for share in (0.99, 0.994, 0.9949)] == ["99", "99.4", "99.5"]
