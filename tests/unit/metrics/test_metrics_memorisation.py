import math

import numpy as np
import pytest

from etw_lightning import metrics
from etw_lightning.schema import Conventions, InputError, Record

PEER = Conventions.peer()


def row(*matches, index=0):
    return Record("forget", f"forget10/{index}", "Paris.", token_matches=matches)


def strength(matches, conventions):
    return metrics.extraction_strength_values([row(*matches)], conventions)[0]


@pytest.mark.parametrize(
    ("matches", "kept", "left_out", "peer"),
    [
        ((1, 1, 1, 1), 1.0, 1.0, 1.0),
        ((0, 1, 1, 1), 3 / 4, 2 / 3, 2 / 3),
        ((1, 0, 1, 1), 2 / 4, 1 / 3, 1 / 3),
        ((1, 1, 1, 0), 0.0, 1.0, 1.0),
        ((1, 1, 0, 1), 1 / 4, 0.0, 1 / 3),
        ((0, 0, 0, 0), 0.0, 0.0, 1 / 3),
    ],
)
def test_extraction_strength_is_the_share_that_follows(matches, kept, left_out, peer):
    assert strength(matches, Conventions()) == pytest.approx(kept, abs=1e-15)
    assert strength(matches, Conventions(last_label="left_out")) == pytest.approx(left_out)
    assert strength(matches, PEER) == pytest.approx(peer)


def by_definition(matches):
    """Shortest beginning after which all is reproduced, looked for from the front."""
    n = len(matches)
    return 1 - min(k for k in range(n + 1) if all(matches[k:])) / n


def test_extraction_strength_by_its_definition_on_many_rows():
    generator = np.random.default_rng(0)
    for _ in range(300):
        matches = tuple(generator.integers(0, 2, generator.integers(1, 7)).tolist())
        assert strength(matches, Conventions()) == pytest.approx(by_definition(matches), abs=1e-15)


def test_the_floor_moves_only_rows_of_which_nothing_follows():
    rows = [row(1, 0, 0), row(0, 0, 1)]
    values = metrics.extraction_strength_values(rows, Conventions(floor="peer"))
    assert values.tolist() == pytest.approx([1 / 3, 1 / 3])
    assert metrics.extraction_strength_values(rows).tolist() == pytest.approx([0, 1 / 3])


def test_exact_memorisation_counts_matches():
    rows = [row(1, 0, 1, 1), row(0, 1)]
    assert metrics.exact_memorisation_values(rows).tolist() == [0.75, 0.5]
    assert metrics.exact_memorisation_values(rows, PEER).tolist() == [2 / 3, 0.0]


def test_means_have_a_direction():
    rows = [row(1, 1), row(0, 0)]
    assert metrics.extraction_strength(rows) == metrics.Metric(0.5, "down", 2)
    assert metrics.exact_memorisation(rows) == metrics.Metric(0.5, "down", 2)


@pytest.mark.parametrize("metric", [metrics.extraction_strength, metrics.exact_memorisation])
def test_bad_rows_are_named(metric):
    where = r"set 'forget', row 1 \(forget10/7\): "
    with pytest.raises(InputError, match=where + "token_matches is missing"):
        metric([row(1), row(index=7)])
    with pytest.raises(
        InputError, match=where + "token_matches must be finite, got nan at token 1"
    ):
        metric([row(1), row(1, math.nan, index=7)])
    with pytest.raises(InputError, match=where + "token_matches must be 0 or 1"):
        metric([row(1), row(2, index=7)])
    with pytest.raises(InputError, match=where + r"has one labelled token.*last_label"):
        metric([row(1, 1), row(1, index=7)], PEER)
    with pytest.raises(InputError, match="no rows"):
        metric([])
