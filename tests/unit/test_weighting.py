"""Token weightings. What holds for every input: property/test_weighting_properties.py."""

import dataclasses

import pytest
import torch

from etw_lightning.signals import TokenSignals
from etw_lightning.weighting import ETW, Uniform


def signals(entropies, rows, num_rows):
    return TokenSignals(
        labels=torch.zeros(len(rows), dtype=torch.long),
        rows=torch.tensor(rows, dtype=torch.long),
        num_rows=num_rows,
        logps=torch.zeros(len(rows), requires_grad=True),
        entropies=None if entropies is None else torch.tensor(entropies),
    )


def test_each_sequence_has_its_own_sum():
    found = ETW()(signals([1.0, 3.0, 0.2, 0.2, 7.0], [0, 0, 2, 2, 3], num_rows=4))
    assert found.tolist() == pytest.approx([0.5, 1.5, 1.0, 1.0, 1.0])


def test_one_certain_sequence_among_others_is_uniform():
    found = ETW()(signals([0.0, 0.0, 1.0, 0.0], [0, 0, 1, 1], num_rows=2))
    assert found.tolist() == [1.0, 1.0, 2.0, 0.0]


@pytest.mark.parametrize("tiny", [1e-30, 1e-39, 1e-44])
def test_tiny_entropies_do_not_overflow(tiny):
    found = ETW()(signals([tiny, 3 * tiny], [0, 0], num_rows=1))
    assert found.tolist() == pytest.approx([0.5, 1.5], rel=0.1)  # 1e-44 is 7 * 2**-149


def test_no_tokens():
    assert ETW()(signals([], [], num_rows=2)).tolist() == []
    assert Uniform()(signals(None, [], num_rows=2)).tolist() == []


def test_uniform_reads_no_entropy():
    assert Uniform().needs == frozenset()
    found = Uniform()(signals(None, [0, 1], num_rows=2))
    assert found.tolist() == [1.0, 1.0]
    assert not found.requires_grad


def test_etw_declares_what_it_reads():
    assert ETW().needs == {"entropies"}
    assert ETW(temperature=2.5).entropy_temperature == 2.5


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_temperature_must_be_positive(temperature):
    with pytest.raises(ValueError, match=r"ETW\.temperature must be > 0; got"):
        ETW(temperature=temperature)


def test_a_weighting_can_not_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ETW().temperature = 2.0
