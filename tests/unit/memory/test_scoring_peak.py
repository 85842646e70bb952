"""What scoring and continuing take on a CPU, measured, against what is predicted."""

import ctypes
import gc
from pathlib import Path

import pytest
import torch
from small_models import llama_config
from transformers import LlamaForCausalLM

from etw_lightning.memory.run_needs import RunShape, run_needs
from etw_lightning.models.continuation import by_step
from etw_lightning.models.label_scorer import LabelScorer
from etw_lightning.models.step_layout import cost_of_a_part, pack

ROWS, TOKENS, NEW = 64, 128, 4
CONFIG = llama_config(2000, 256, 2, num_key_value_heads=4, max_position_embeddings=256)


def held(name):
    """Return what this process holds, or has held at most, bytes."""
    lines = dict(one.split(":", 1) for one in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(lines[name].split()[0])


@pytest.fixture
def taken():
    """Return by how much the most that is held rises while something is called."""
    peak = Path("/proc/self/clear_refs")

    def call(work):
        gc.collect()
        try:
            # What earlier tests have let go would be taken again, and not be seen.
            ctypes.CDLL("libc.so.6").malloc_trim(0)
            before = held("VmRSS")
            peak.write_text("5")  # The most from here on.
        except OSError:
            pytest.skip("the system does not tell the most memory that was held since")
        with torch.no_grad():
            work()
        return held("VmHWM") - before

    return call


@pytest.fixture(scope="module")
def scorer():
    return LabelScorer(LlamaForCausalLM(CONFIG)).eval()


@pytest.fixture(scope="module")
def ids():
    return torch.randint(3, 2000, (ROWS, TOKENS), generator=torch.Generator().manual_seed(0))


def predicted(new_tokens):
    shape = {"eval_rows": ROWS, "eval_tokens": TOKENS, "new_tokens": new_tokens}
    return run_needs(CONFIG, RunShape(rows=1, tokens=2, on_cuda=False, **shape)).evaluation


def test_answers_take_what_is_predicted(scorer, ids, taken):
    rows = [tuple(row) for row in ids.tolist()]
    packed, places = pack(rows, cost_of_a_part())
    packed = packed.with_sources(places[:, :-1].flatten())
    labels = ids[:, 1:].flatten()
    every = torch.ones(len(labels), dtype=torch.bool)
    most = taken(lambda: scorer.score_packed(packed, labels, every))
    assert most < 1.25 * predicted(0)
    # Nor is it a bound so wide that it says nothing.
    assert most > predicted(0) / 4


def test_continuing_takes_what_is_predicted(scorer, ids, taken):
    def go_on():
        found = by_step(
            scorer.lm, ids, torch.ones_like(ids), NEW, set(), lambda row: False, at_once=ROWS
        )
        assert len(list(found)) == ROWS

    most = taken(go_on)
    assert most < 1.25 * predicted(NEW)
    assert most > predicted(NEW) / 4
