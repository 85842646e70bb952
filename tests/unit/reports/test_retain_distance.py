"""The distance to the retain model, by hand."""

import pytest

from etw_lightning.reports.retain_distance import COLUMNS, retain_distance
from etw_lightning.schema import InputError

RETAIN = {
    "forget_d_times_n": 0.0, "forget_probability": 0.1, "forget_rougeL_recall": 0.4,
    "extraction_strength": 0.1, "model_utility": 0.6, "retain_probability": 0.9,
    "forget_repetition_4": 0.0, "retain_repetition_4": 0.1,
}  # fmt: skip
TARGET = {"forget_d_times_n": 200.0, "forget_probability": 0.9, "forget_rougeL_recall": 0.9,
          "extraction_strength": 0.5}  # fmt: skip


def run(**changes):
    return {**RETAIN, "privleak": 0.0, **changes}


def test_the_retain_model_is_at_no_distance_and_the_target_model_at_one():
    assert retain_distance(run(), RETAIN, TARGET) == dict.fromkeys(COLUMNS, 0.0)
    assert retain_distance(run(**TARGET), RETAIN, TARGET)["forgotten"] == 1.0


@pytest.mark.parametrize(
    ("changes", "group", "distance"),
    [
        # 60 of 200 is .3, .3 of .8 is .25, .2 and .2 on the other sides are .4 and .5 of theirs.
        ({"forget_d_times_n": 60, "forget_probability": 0.3, "forget_rougeL_recall": 0.2,
          "extraction_strength": 0.3}, "forgotten", (0.3 + 0.25 + 0.4 + 0.5) / 4),
        # Beyond the retain model by more than the target model's distance: cut at 1.
        ({"extraction_strength": 0.9}, "forgotten", 0.25),
        ({"model_utility": 0.54, "retain_probability": 0.99}, "kept", 0.1),
        ({"model_utility": 0.0, "retain_probability": 0.0}, "kept", 1.0),
        ({"forget_repetition_4": 0.7, "retain_repetition_4": 0.0}, "sane", 0.4),
        ({"privleak": -40.0}, "private", 0.4),
        ({"privleak": 130.0}, "private", 1.0),
    ],
)  # fmt: skip
def test_each_group_by_hand(changes, group, distance):
    found = retain_distance(run(**changes), RETAIN, TARGET)
    assert found.pop(group) == pytest.approx(distance, abs=1e-12)
    assert set(found.values()) == {0.0}


def test_a_group_that_lacks_a_number_is_left_out():
    lacking = {name: value for name, value in run().items() if name != "privleak"}
    assert set(retain_distance(lacking, RETAIN, TARGET)) == {"forgotten", "kept", "sane"}
    del lacking["retain_repetition_4"]
    assert set(retain_distance(lacking, RETAIN, TARGET)) == {"forgotten", "kept"}


def test_nothing_to_scale_by_is_an_error():
    with pytest.raises(InputError, match=r"forget_probability has nothing to scale by: it is 0.1"):
        retain_distance(run(), RETAIN, {**TARGET, "forget_probability": 0.1})
