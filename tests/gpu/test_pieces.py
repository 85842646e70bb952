"""The program that measures on a GPU, tried on a processor."""

import json

import pieces
import pytest
import torch


def made(out, *more):
    return pieces.main(["--out", str(out), "--device", "cpu", "--small", *more])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device_nothing_is_measured(tmp_path, capsys):
    assert pieces.main(["--out", str(tmp_path / "out")]) == 1
    assert "--device cpu --small" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_piece_that_is_there_is_not_made_again(tmp_path, capsys, monkeypatch):
    calls = []
    monkeypatch.setitem(pieces.PIECES, "head", lambda where: calls.append(where.small) or {"a": 1})
    assert made(tmp_path, "--only", "head") == 0
    assert made(tmp_path, "--only", "head") == 0
    assert calls == [True]
    assert "there already" in capsys.readouterr().out
    whole = json.loads((tmp_path / "gpu.json").read_text())
    assert whole["head"]["found"] == {"a": 1}
    assert whole["head"]["on"]["torch"] == torch.__version__
    assert whole["missing"] == ["llama_1b", "synchronisations", "tests", "train_step"]


def test_tests_that_fail_are_told_and_tried_again(tmp_path, capsys, monkeypatch):
    said = {"status": 1, "said": "1 failed"}
    monkeypatch.setitem(pieces.PIECES, "tests", lambda where: said)
    assert made(tmp_path, "--only", "tests") == 1
    assert "tests: failed, 1 failed" in capsys.readouterr().out
    assert not (tmp_path / "tests.json").exists()


def test_rates_are_of_what_is_counted(monkeypatch):
    """Two products a weight forward, four backward; the rate of a product is measured."""
    where = pieces.Where(torch.device("cpu"), True)
    monkeypatch.setattr(pieces, "by_turns", lambda where, ways: dict.fromkeys(ways, 2.0))
    monkeypatch.setattr(pieces, "matmul_rate", lambda where, dtype: 1e9)
    found = pieces.llama_1b(where)
    weights = found["weights"] - 1000 * 128  # an embedding is looked up, not multiplied with
    share = 6 * weights * found["tokens"] / 2.0 / 1e9
    assert found["share_of_matmul_rate"]["laid_out"] == pytest.approx(share, abs=1e-4)
    assert found["tokens_per_second"]["plain"] == pytest.approx(found["tokens"] / 2, abs=0.1)
    assert found["over_plain"]["padded"] == 1.0


@pytest.mark.parametrize("lacks", ["", "no Triton"])
def test_the_head_is_measured_each_way_that_is_there(monkeypatch, lacks):
    asked, original = [], pieces.linear_scores

    def scores(*given, fused):
        asked.append(fused)
        return original(*given)

    monkeypatch.setattr(pieces, "linear_scores", scores)
    monkeypatch.setattr(pieces.fused_rows, "missing", lambda device: lacks)
    hidden, weight = (torch.randn(num, 4, requires_grad=True) for num in (3, 7))
    ways = pieces.head_ways(hidden, weight, torch.tensor([0, 6, 2]), torch.ones(3))
    assert list(ways) == ["products", "full", "torch", "ours", *["ours, triton"] * (not lacks)]
    for way in ways.values():
        way()
    assert asked == ([False] if lacks else [False, True])


@pytest.mark.slow
def test_all_pieces_run_on_a_processor(tmp_path):
    names = ("train_step", "llama_1b", "head", "synchronisations")
    assert made(tmp_path, "--only", *names) == 0
    whole = json.loads((tmp_path / "gpu.json").read_text())
    assert whole["missing"] == ["tests"]
    (step,) = whole["train_step"]["found"].values()
    assert step["losses"]["laid_out"] == pytest.approx(step["losses"]["plain"], rel=1e-5)
    for name in ("train_step", "llama_1b"):
        found = whole[name]["found"]
        found = step if name == "train_step" else found
        assert all(ratio > 0 for ratio in found["over_plain"].values())
    (head,) = whole["head"]["found"].values()
    assert head["over_products"]["products"] == 1.0
    assert whole["synchronisations"]["found"]["waits"] is None
