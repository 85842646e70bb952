"""What counts as a collapse, from plain numbers; what is kept of it."""

import json
import math

import pytest

from etw_lightning.callbacks.collapse import Collapse
from etw_lightning.callbacks.findings import Finding
from etw_lightning.runs.key import run_key
from etw_lightning.schema import InputError


def judged(guard, losses):
    """Return the number of the first loss that is a collapse, counted from 1; None if none is."""
    return next((n for n, loss in enumerate(losses, 1) if guard.judge_loss(loss) is not None), None)


def test_the_mean_of_a_window_is_compared_with_a_multiple_of_the_start():
    # Means of three: 2, 3, 5, 7; the start is 2 and 3 x 2 = 6 is passed by the last.
    assert judged(Collapse(retain_factor=3.0, window=3), [2, 2, 2, 5, 8, 8]) == 6
    assert judged(Collapse(retain_factor=4.0, window=3), [2, 2, 2, 5, 8, 8]) is None
    # The bound itself is no collapse.
    assert judged(Collapse(retain_factor=2.0, window=1), [2, 4]) is None


def test_the_start_is_the_first_step_or_what_the_first_steps_fall_to():
    wrecked_at_once = [1.0, 40.0, 40.0, 40.0]
    assert judged(Collapse(retain_factor=4.0, window=4), wrecked_at_once) == 4
    falls = Collapse(retain_factor=4.0, window=4)
    assert judged(falls, [8.0, 4.0, 2.0, 2.0]) is None
    assert falls.start_loss == 4.0


def test_a_small_start_counts_as_half_a_nat():
    # A hundred times the start, and still next to nothing.
    assert judged(Collapse(retain_factor=4.0, window=1), [0.01, 1.0, 2.0]) is None
    guard = Collapse(retain_factor=4.0, window=1)
    guard.judge_loss(0.01)
    assert "(0.01, counted as 0.5)" in guard.judge_loss(2.01)


def test_utility_is_compared_with_its_value_before_training():
    guard = Collapse(utility_floor=0.5)
    guard.start_probes = {"model_utility": 0.6, "retain_probability": 0.9}
    assert guard.judge_utility({"model_utility": 0.3}) is None
    assert guard.judge_utility({"model_utility": 0.29}) == (
        "model_utility is 0.29, below 0.5 of what it was before training (0.6)"
    )
    assert guard.judge_utility({"model_utility": math.nan}) is not None
    # The best probe there was, and no other in its place.
    assert guard.judge_utility({"retain_probability": 0.0}) is None
    assert Collapse().judge_utility({"model_utility": 0.0}) is None


@pytest.mark.parametrize(
    ("probe", "least"),
    [("model_utility", 0.05), ("knowmem_retain", 5.0), ("retain_probability", 0.05)],
)
def test_a_model_that_could_do_nothing_has_nothing_to_lose(probe, least):
    guard = Collapse()
    guard.start_probes = {probe: 0.9 * least}
    assert guard.judge_utility({probe: 0.0}) is None
    guard.start_probes = {probe: least}
    assert guard.judge_utility({probe: 0.0}) is not None


def test_repetition_is_judged_by_its_rise_and_set_by_set():
    guard = Collapse(repetition=0.3)
    guard.start_repetition = {"retain": 0.1, "world_facts": 0.5}
    assert guard.judge_repetition({"retain": 0.3, "world_facts": 0.75}) is None
    found = guard.judge_repetition({"retain": 0.5, "world_facts": 0.75})
    assert found == (
        "generations on 'retain' repeat 0.5 of their 4-grams, more than 0.3 above what it was "
        "before training (0.1)"
    )
    assert guard.judge_repetition({"holdout": 1.0}) is None
    assert guard.judge_repetition({}) is None


def test_a_resumed_guard_goes_on_exactly():
    losses = [1.0, 1.5, 1.2, 3.0, 4.5, 4.9, 5.0]
    whole = Collapse(retain_factor=3.0, window=3)
    expected = [whole.judge_loss(loss) for loss in losses]
    assert expected[-1] is not None
    for cut in range(len(losses)):
        first, second = (Collapse(retain_factor=3.0, window=3) for _ in range(2))
        found = [first.judge_loss(loss) for loss in losses[:cut]]
        first.start_probes = {"model_utility": 0.5}
        first.findings = [Finding("utility", "gone", 3, 1)]
        # Plain values, that survive being written down.
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        assert second.state_dict() == first.state_dict()
        assert found + [second.judge_loss(loss) for loss in losses[cut:]] == expected


def test_the_action_decides_what_results_say():
    findings = [Finding("utility", "low", 8, 1), Finding("repetition", "again", 9, 2)]
    first, second = (one.to_json() for one in findings)
    for action, expected in (
        ("warn", {"warnings": [first, second]}),
        ("stop", {"stopped": first, "warnings": [second]}),
    ):
        guard = Collapse(action=action)
        assert guard.entries() == {}
        guard.findings = findings
        assert guard.entries() == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"retain_factor": 1.0}, "collapse.retain_factor must be > 1 or null; got 1.0."),
        ({"retain_factor": math.nan}, "collapse.retain_factor must be > 1 or null; got nan."),
        ({"retain_factor": math.inf}, "collapse.retain_factor must be > 1 or null; got inf."),
        (
            {"utility_floor": 1.0},
            "collapse.utility_floor must be above 0 and below 1, or null; got 1.0.",
        ),
        (
            {"repetition": 0.0},
            "collapse.repetition must be above 0 and below 1, or null; got 0.0.",
        ),
        ({"window": 0}, "collapse.window must be a whole number >= 1; got 0."),
        ({"action": "halt"}, "collapse.action must be stop or warn; got 'halt'."),
    ],
)
def test_a_number_out_of_its_range_is_refused(given, message):
    with pytest.raises(InputError) as error:
        Collapse(**given)
    assert str(error.value) == message


def test_the_default_guard_leaves_the_content_key_of_old_runs():
    old = {"seed_everything": 0, "model": {"lr": 1e-4}}
    default = {
        "action": "warn",
        "retain_factor": 4.0,
        "utility_floor": 0.5,
        "repetition": 0.3,
        "window": 8,
    }
    assert run_key({**old, "collapse": default}) == run_key(old)
    for key, value in (("action", "stop"), ("window", 9), ("retain_factor", None)):
        assert run_key({**old, "collapse": {**default, key: value}}) != run_key(old)
