"""The benchmark of a training step: what it makes of its sides' steps, and both of them."""

import json
import sys

import pytest


@pytest.fixture(scope="module")
def train_step(program):
    return program("train_step")


def step(seconds, positions, peak):
    return {
        "seconds": seconds,
        "positions": positions,
        "peak_mb": peak,
        "tokens": 100,
        "distinct": 50,
        "loss": 1.0,
    }


def test_ratios_are_of_steps_on_the_same_rows_without_the_first(train_step):
    plain = [step(9.0, 150, None), *(step(s, 150, 20.0) for s in (1.0, 2.0, 3.0, 4.0))]
    ours = [step(1.0, 60, None), *(step(s, 60, p) for s, p in ((1, 5), (1, 7), (1, 6), (2, 5)))]
    found = train_step.summary(ours, plain)
    assert found["speed_over_plain"] == 2.0
    assert found["quartiles"] == [2.0, 2.0]
    assert found["seconds"] == 1.0
    assert found["tokens_per_second"] == 80
    assert found["positions_per_token"] == 0.6
    assert found["positions_over_distinct"] == 1.2
    assert found["peak_mb"] == 7
    assert train_step.summary(plain, plain)["speed_over_plain"] == 1.0


@pytest.mark.slow
@pytest.mark.parametrize("method", ["etw", "dpo", "etw_lora"])
def test_both_sides_train_alike(train_step, method, data_dir, monkeypatch, capsys):
    root = str(data_dir / "tofu")
    words = ["--model", "tiny", "--root", root, "--method", method, "--batch", "2", "--steps", "2"]
    monkeypatch.setattr(sys, "argv", ["train_step.py", *words])
    train_step.main()
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    first = said["first_losses"]
    assert first["ours"] == pytest.approx(first["plain"], rel=1e-5)
    assert said["sides"]["ours"]["positions_over_distinct"] <= 1.1
    assert said["sides"]["plain"]["positions_over_distinct"] > 1.2
