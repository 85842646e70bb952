"""The benchmark of the output head: which ways it times, and what it says of one that is absent."""

import json

import pytest
import torch


@pytest.fixture(scope="module")
def head(program):
    return program("head")


SMALL = ["--vocab", "50", "--width", "8", "--positions", "12", "--repeats", "2"]


def test_without_kernels_it_says_why_they_are_not_timed(head, capsys, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert head.main(SMALL) == 0
    said = json.loads(capsys.readouterr().out)
    assert set(said["seconds"]) == {"products", "full", "torch", "ours"}
    why = "the device is cpu" if head.fused_rows.triton else "package triton"
    assert why in said["skipped"]["ours, triton"]
    assert said["largest_difference"] < 1e-5


def test_kernels_are_timed_and_compared_where_the_device_has_them(head, capsys, monkeypatch):
    """By plain operations in their place, that go wrong by a tenth."""

    def wrong(hidden, weight, labels, *, chunk_size, fused):
        found = plain(hidden, weight, labels, chunk_size=chunk_size)
        return found._replace(logps=1.1 * found.logps) if fused else found

    plain = head.linear_scores
    monkeypatch.setattr(head.fused_rows, "missing", lambda device: "")
    monkeypatch.setattr(head, "linear_scores", wrong)
    assert head.main(SMALL) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["over_products"]["ours, triton"] > 0
    assert said["skipped"] == {}
    assert said["largest_difference"] == pytest.approx(0.1, rel=1e-3)


@pytest.mark.skipif(torch.cuda.is_available(), reason="of machines without CUDA")
def test_a_device_that_is_not_there_is_refused(head, capsys):
    with pytest.raises(SystemExit) as ended:
        head.main([*SMALL, "--device", "cuda"])
    assert ended.value.code == 2
    assert "there is no CUDA device" in capsys.readouterr().err
