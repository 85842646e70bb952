"""The memory benchmark: a small model's measured peak, and what is printed."""

from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def memory(program):
    return program("memory")


@pytest.mark.slow
@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="the system keeps no resettable peak"
)
def test_a_small_model_takes_what_is_predicted(memory):
    assert memory.run_case(memory.SMALL)["ratio"] == pytest.approx(1, abs=memory.TOLERANCE)


def test_a_prediction_that_is_off_fails(memory, monkeypatch, capsys):
    ratios = {"float32": 1.1, "bf16-true": 0.8}
    monkeypatch.setattr(
        memory, "run_case", lambda case: {"case": case.name, "ratio": ratios[case.name]}
    )
    assert memory.main(["--only", "float32"]) == 0
    assert memory.main(["--only", *ratios]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "case bf16-true  ratio 0.8"
