"""The benchmark of the reference model: what it counts, compares and prints."""

from argparse import Namespace

import pytest
import torch


@pytest.fixture(scope="module")
def reference(program):
    return program("reference")


def line(way, **changes):
    return {
        "method": "npo",
        "trained": "all",
        "reference": way,
        "peak_mb": 200.0,
        "tensor_mb": 100.0,
        "file_mb": 0.0,
        "first_epoch_seconds": 4.0,
        "later_epoch_seconds": 2.0,
        "loss": 1.5,
        **changes,
    }


@pytest.fixture
def given():
    return Namespace(
        methods=["npo"], trained=["all"], references=["cache", "live"], top_k=2, vocabulary=9
    )


def test_each_way_is_related_to_live(reference, given, monkeypatch):
    said = {"live": line("live"), "cache": line("cache", peak_mb=150.0, first_epoch_seconds=5.0)}
    monkeypatch.setattr(reference, "_in_a_process", lambda *args: said[args[-1]])
    lines = reference.measure_all(given)
    assert [one["reference"] for one in lines] == ["live", "cache"]
    assert lines[1]["to_live"] == {
        "peak_mb": 0.75,
        "tensor_mb": 1.0,
        "first_epoch_seconds": 1.25,
        "later_epoch_seconds": 1.0,
    }
    rows = reference.table(lines).splitlines()
    assert rows[0].split()[:4] == ["method", "trained", "reference", "peak_mb"]
    assert "150.0 (0.75)" in rows[2]
    assert "5.0 (1.25)" in rows[2]


def test_a_missing_mark_is_no_number(reference):
    assert " - " in reference.table([line("live", peak_mb=None)])


def test_ways_that_say_something_else_are_refused(reference, given):
    live, other = line("live"), line("cache", loss=1.6)
    with pytest.raises(SystemExit, match=r"1\.6 with cache"):
        reference._check_same(live, other, given)
    # Of distributions only the largest are kept.
    reference._check_same(live, {**other, "method": "kl"}, given)
    with pytest.raises(SystemExit):
        reference._check_same(live, {**other, "method": "kl", "reference": "adapter"}, given)
    given.top_k = 9
    with pytest.raises(SystemExit):
        reference._check_same(live, {**other, "method": "kl"}, given)


def test_tensors_are_counted_once_with_their_gradients(reference):
    before = reference._tensor_bytes(torch.Tensor)
    weight = torch.zeros(1 << 20, requires_grad=True)
    part = weight.detach()[:3]
    assert reference._tensor_bytes(torch.Tensor) - before == 4 << 20
    weight.sum().backward()
    assert reference._tensor_bytes(torch.Tensor) - before == 8 << 20
    assert len(part) == 3


def test_one_epoch_cant_be_told_from_the_first(reference, capsys):
    with pytest.raises(SystemExit):
        reference.main(["--epochs", "1"])
    assert "--epochs must be at least 2" in capsys.readouterr().err
