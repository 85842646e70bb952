"""What it saves to cast weights once a batch under autocast, while an evaluation scores rows.

    python tests/benchmarks/autocast.py --model DIR --root DIR --rows 4

scores the sets of TOFU's forget10 under bfloat16 autocast, on one thread, by turns in three ways:

* ``anew``: in inference mode, in which autocast keeps no casts: each product casts its weight;
* ``batch``: as a run's evaluation does it: casts are kept until a batch is scored;
* ``evaluation``: they are kept until everything is scored.

Every record must be the same to the last bit. One line of JSON: process seconds of each way and
their ratio to ``batch``, medians of the rounds with the least and the most; the highest resident
set of each; and the bytes of all casts. ``--frozen`` scores a model whose weights want no gradient.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from by_metric import Suite
from evaluation import PEER, _first_rows, _peak_mb, _reset_peak, load_suite

from etw_lightning.data.encode import Encoder
from etw_lightning.schema import Record
from etw_lightning.scoring.batches import (
    build_batches,
    join_generations,
    make_records,
    score_batch,
)


def low() -> AbstractContextManager[Any]:
    """Return the autocast of a run in bf16-mixed."""
    return torch.autocast("cpu", torch.bfloat16)


#: What is around the whole evaluation, and whether that is inference mode.
WAYS: dict[str, tuple[Callable[[], AbstractContextManager[Any]], bool]] = {
    "anew": (nullcontext, True),
    "batch": (nullcontext, False),
    "evaluation": (low, False),
}


def score(suite: Suite, way: str) -> dict[str, list[Record]]:
    """Score all sets."""
    encoder = Encoder(suite.tokenizer, system_prompt=suite.system_prompt, conventions=PEER)
    around, infers = WAYS[way]
    records = {}
    with torch.inference_mode(infers), torch.set_grad_enabled(False), around():
        for name, eval_set in suite.sets.items():
            found = []
            for batch in join_generations(build_batches(eval_set, encoder, suite.batch_size)):
                with low():
                    found += score_batch(suite.scorer, batch, suite.tokenizer)
            records[name] = make_records(eval_set, found)
    return records


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="folder in Hugging Face layout, or .gguf")
    parser.add_argument("--root", required=True, type=Path, help="folder with TOFU's JSON lines")
    parser.add_argument("--rows", type=int, help="rows kept of each set; all by default")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--frozen", action="store_true", help="weights want no gradient")
    parser.add_argument("--system_prompt", default="")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    suite = load_suite(argparse.Namespace(**vars(given), reference=None))
    suite.scorer.requires_grad_(not given.frozen)
    score(_first_rows(suite), "batch")  # What is found out at first use.
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    peaks: dict[str, float | None] = {}
    first: dict[str, list[Record]] = {}
    for repeat in range(given.repeats):
        for way, times in seconds.items():
            watched = repeat == 0 and _reset_peak()
            start = time.process_time()
            records = score(suite, way)
            times.append(time.process_time() - start)
            if repeat == 0:
                peaks[way] = _peak_mb() if watched else None
            first = first or records
            assert records == first, f"{way} scores otherwise"
    products = [one for one in suite.scorer.lm.modules() if isinstance(one, torch.nn.Linear)]
    numbers = sum({one.weight: one.weight.numel() for one in products}.values())
    said = {
        "process_seconds": {way: round(statistics.median(one), 2) for way, one in seconds.items()},
        "to_batch": {way: _spread(seconds[way], seconds["batch"]) for way in WAYS},
        "peak_memory_mb": peaks,
        "casts_mb": round(2 * numbers / 2**20, 1),
        "rows": {name: len(one.examples) for name, one in suite.sets.items()},
        "batch_size": given.batch_size,
        "frozen": given.frozen,
        "torch": torch.__version__,
    }
    sys.stdout.write(json.dumps(said) + "\n")


def _spread(mine: list[float], others: list[float]) -> list[float]:
    """Return median, least and most of the ratios of rounds."""
    ratios = [one / other for one, other in zip(mine, others, strict=True)]
    return [round(one, 3) for one in (statistics.median(ratios), min(ratios), max(ratios))]


if __name__ == "__main__":
    main()
