"""``evaluate`` on two CPU processes gives what it gives on one, to the last bit."""

import contextlib
import io
import json
import os
import sys
import warnings

import pytest
import torch
from faults import become, fork, free_port
from toy import tofu_words
from warm import prepare_fork

from etw_lightning.scoring.retain_results import load_records
from etw_lightning.training import scoring_module

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")

PARTS = ("probability", "rouge", "mia_gradient_norm")


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def arguments(tmp_path, monkeypatch, tiny_model_dir):
    """``evaluate`` on rows of very different lengths: 13 in one set, 1 to 5 in the others."""
    monkeypatch.chdir(tmp_path)
    return ["evaluate", *tofu_words(tmp_path / "rows", tiny_model_dir)]


def run_here(arguments, folder, cache, out):
    """Run the command in this process, with a cache of its own; return the exit status."""
    from etw_lightning.commands.cli import main

    os.environ["ETW_CACHE"] = str(cache)
    with warnings.catch_warnings(), contextlib.redirect_stdout(out):
        sys.argv = ["etw_lightning", *arguments, f"--output_dir={folder}"]
        return main()


def run_forked(arguments, folder, cache, world, tmp_path):
    """Run the command in forked processes; return what each printed and how much it scored."""
    prepare_fork("evaluate")
    port = free_port()

    def work(rank):
        if world > 1:
            become(rank, world, port)
        batches, original = [], scoring_module.score_in_turn

        def note(scorer, batch, *rest):
            batches.append(batch.dataset)
            return original(scorer, batch, *rest)

        scoring_module.score_in_turn = note
        out = io.StringIO()
        more = [f"--trainer.devices={world}"]
        more += ["--trainer.strategy=ddp"] if world > 1 else []
        status = run_here([*arguments, *more], folder, cache, out)
        report = {"out": out.getvalue(), "batches": len(batches)}
        (tmp_path / f"rank{rank}.json").write_text(json.dumps(report))
        return status

    assert fork(world, work) == [0] * world
    return [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(world)]


def outcome(folder):
    results = json.loads((folder / "results.json").read_text())
    return results["metrics"], load_records(folder)


@pytest.mark.parametrize("batch_size", [pytest.param(4, marks=pytest.mark.slow), 64])
def test_two_processes_give_what_one_gives(arguments, tmp_path, batch_size):
    """Batches of 64 leave one for each part of a set, and not the same number to each process."""
    arguments = [*arguments, f"--data.eval_batch_size={batch_size}"]
    arguments += [f"--metrics={','.join(PARTS)}"]
    (alone,) = run_forked(arguments, tmp_path / "one", tmp_path / "cache1", 1, tmp_path)
    expected = outcome(tmp_path / "one")
    assert all(row.gradient_norm > 0 for row in expected[1]["holdout"])
    assert {name: len(rows) for name, rows in expected[1].items()} == {
        "forget": 13,
        "holdout": 4,
        "real_authors": 1,
        "retain": 5,
        "world_facts": 3,
    }
    both = run_forked(arguments, tmp_path / "two", tmp_path / "cache2", 2, tmp_path)
    assert outcome(tmp_path / "two") == expected
    counts = [report["batches"] for report in both]
    assert sum(counts) == alone["batches"]
    assert abs(counts[0] - counts[1]) <= 1
    assert "results: " in both[0]["out"]
    assert both[1]["out"] == ""


def test_a_process_without_a_batch_joins_in(arguments, tmp_path):
    arguments = [*arguments, "--metrics=exact_memorisation", "--data.eval_batch_size=64"]
    run_forked(arguments, tmp_path / "one", tmp_path / "cache1", 1, tmp_path)
    reports = run_forked(arguments, tmp_path / "two", tmp_path / "cache2", 3, tmp_path)
    assert sorted(report["batches"] for report in reports) == [0, 0, 1]
    assert outcome(tmp_path / "two") == outcome(tmp_path / "one")


def test_what_one_process_left_two_finish(arguments, tmp_path):
    """Half of the journals' lines are taken away; the rest is scored, and only the rest."""
    arguments = [*arguments, "--metrics=probability,rouge", "--data.eval_batch_size=1"]
    (alone,) = run_forked(arguments, tmp_path / "one", tmp_path / "cache", 1, tmp_path)
    lost = 0
    for journal in sorted((tmp_path / "cache" / "scores").glob("*/*.jsonl")):
        lines = journal.read_bytes().splitlines(keepends=True)
        journal.write_bytes(b"".join(lines[: len(lines) // 2]))
        lost += len(lines) - len(lines) // 2
    both = run_forked(arguments, tmp_path / "two", tmp_path / "cache", 2, tmp_path)
    assert 0 < sum(report["batches"] for report in both) == lost < alone["batches"]
    assert "of 6 of 13 rows read from cache, of 7 scored" in both[0]["out"]
    assert outcome(tmp_path / "two") == outcome(tmp_path / "one")
