"""A retain model is scored by all processes that are started together, each part by one."""

import os
import time

import pytest
import torch
from faults import PATIENCE
from sharded import run_forked

from etw_lightning.data.encode import Encoder
from etw_lightning.models.loading import load_tokenizer
from etw_lightning.schema import EvalSet, Example
from etw_lightning.scoring import record_cache

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")


def make_sets():
    rows = tuple(Example(f"s/{row}", f"Answer {row}.", f"What of {row}?") for row in range(3))
    return {
        name: EvalSet(name, rows[:count], gradient_norm=True, max_new_tokens=3)
        for name, count in (("forget", 3), ("retain", 2))
    }


def meet(folder, world):
    """Wait for as many processes to have come here."""
    (folder / str(os.getpid())).touch()
    ends = time.monotonic() + PATIENCE
    while len(list(folder.iterdir())) < world and time.monotonic() < ends:
        time.sleep(0.01)


def score(model_dir, cache, world):
    """Score two sets of three parts; return the records, and what this process has scored."""
    met = cache.with_name(f"met{world}")
    met.mkdir(exist_ok=True)
    torch.set_num_threads(1)
    os.environ["ETW_CACHE"] = str(cache)
    scored, original = [], record_cache.score_in_turn

    def note(scorer, batch, tokenizer):
        # One that is quick would be through with all before another has begun.
        meet(met, world)
        scored.append(f"{batch.dataset} {type(batch).__name__}")
        return original(scorer, batch, tokenizer)

    record_cache.score_in_turn = note
    encoder = Encoder(load_tokenizer(str(model_dir)))
    found = record_cache.score_model(str(model_dir), make_sets(), encoder, 8)
    records = {name: [row.to_json() for row in rows] for name, rows in found.items()}
    return {"records": records, "scored": scored}


def test_parts_are_shared_out_and_all_get_everything(tiny_model_dir, tmp_path):
    (alone,) = run_forked(score, 1, tmp_path / "one", tiny_model_dir, tmp_path / "cache1", 1)
    assert len(alone["scored"]) == len(set(alone["scored"])) == 6
    three = run_forked(score, 3, tmp_path / "three", tiny_model_dir, tmp_path / "cache3", 3)
    assert sorted(part for one in three for part in one["scored"]) == sorted(alone["scored"])
    assert all(one["scored"] for one in three), "none only waits"
    assert all(one["records"] == alone["records"] for one in three)
