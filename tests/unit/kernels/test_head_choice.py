"""Which way logits are gone over: refused where it can't be, measured once, the faster taken."""

import pytest
import torch

from etw_lightning.kernels import fused_rows, head_choice
from etw_lightning.kernels.head_choice import check_way, faster_way, seconds_of_ways
from etw_lightning.schema import InputError

CPU = torch.device("cpu")


@pytest.fixture
def lacks(monkeypatch):
    """Says what the device lacks."""

    def say(words):
        monkeypatch.setattr(fused_rows, "missing", lambda device: words)

    return say


def test_a_way_that_a_device_has_not_is_refused_by_name(lacks):
    lacks("the device is cpu, not cuda")
    check_way("plain", CPU)
    with pytest.raises(InputError) as refused:
        check_way("triton", CPU, " in the checkpoint")
    assert str(refused.value) == (
        "model.head_kernel is triton in the checkpoint, but the device is cpu, not cuda; give "
        "--model.head_kernel plain, which computes the same with other last digits."
    )
    lacks("")
    check_way("triton", CPU)


def test_the_faster_way_is_taken(lacks, monkeypatch):
    sizes = []

    def measured(*given):
        sizes.append(given)
        return seconds

    monkeypatch.setattr(head_choice, "seconds_of_ways", measured)
    given = (3, 5, torch.bfloat16, CPU)
    lacks("")
    for seconds in ({"plain": 2.0, "triton": 1.0}, {"plain": 1.0, "triton": 2.0}):
        assert faster_way(*given) == min(seconds, key=seconds.get)
    assert sizes == [given, given]
    lacks("no kernels")
    assert faster_way(*given) == "plain"
    assert len(sizes) == 2


def test_ways_are_measured_by_turns_and_warm(monkeypatch):
    """The first of each compiles; one that something else held up does not count."""
    now, calls = [0.0], []

    def way(name, first, usual):
        def work(logits, labels, dtype):
            assert logits.shape == (4, 9)
            assert (labels < 9).all()
            num = calls.count(name)
            calls.append(name)
            now[0] += first if num == 0 else 50.0 if num == 3 else usual
            logits.zero_()
            return logits

        return work

    monkeypatch.setattr(head_choice, "_plain", way("plain", 10.0, 2.0))
    monkeypatch.setattr(head_choice, "_fused", way("triton", 100.0, 1.0))
    monkeypatch.setattr(head_choice.time, "perf_counter", lambda: now[0])
    assert seconds_of_ways(4, 9, torch.float32, CPU) == {"plain": 2.0, "triton": 1.0}
    assert calls == ["plain", "triton"] * 8


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_both_ways_do_the_same_work(dtype):
    pytest.importorskip("triton", reason="without Triton there is one way alone")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 70, generator=generator).to(device)
    labels = torch.randint(70, (5,), generator=generator).to(device)
    plain, fused = (
        way(logits.clone(), labels, dtype) for way in (head_choice._plain, head_choice._fused)
    )
    assert plain.dtype == fused.dtype == dtype
    bound = 1e-5 if dtype == torch.float32 else 2**-7
    torch.testing.assert_close(plain, fused, rtol=bound, atol=1e-6)
