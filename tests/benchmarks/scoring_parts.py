"""What one scoring pass of TOFU's suite spends its process time on, and what writing it would take.

    python tests/benchmarks/scoring_parts.py --model DIR --root DIR --rows 24

runs ``one_pass`` of ``evaluation.py`` on one thread and prints one line of JSON: ``seconds`` of
process time (median), and percent of them for ``layers`` (the model's, over answers), ``head``,
``generation``, ``layout`` (tokens and trees) and ``other`` (metrics, records). ``writing`` is what
saving the records takes, percent of the same, on top of them: ``json``, which holds Python's lock,
``gzip`` and ``file``; ``journal`` is that of the batches as they are finished.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import evaluation
import torch
from by_metric import Fed, Suite

from etw_lightning.models import label_scorer
from etw_lightning.schema import Record
from etw_lightning.scoring import batches
from etw_lightning.scoring.batches import Score
from etw_lightning.scoring.cache.journals import Journal
from etw_lightning.scoring.retain_results import save_records

#: Where each part is called.
PARTS: dict[str, tuple[Any, str]] = {
    "layers": (label_scorer, "run_packed"),
    "head": (label_scorer.LabelScorer, "_score_at"),
    "generation": (batches, "continue_in_turn"),
    "layout": (evaluation, "build_batches"),
}


def clocked(function: Callable[..., Any], spent: list[float]) -> Callable[..., Any]:
    """Return a function that adds its process time; of a generator, that of what it gives."""

    def each(found: Iterator[Any]) -> Iterator[Any]:
        while True:
            start = time.process_time()
            try:
                one = next(found)
            except StopIteration:
                return
            finally:
                spent[0] += time.process_time() - start
            yield one

    def call(*given: Any, **settings: Any) -> Any:
        start = time.process_time()
        found = function(*given, **settings)
        spent[0] += time.process_time() - start
        return each(found) if isinstance(found, Iterator) else found

    return call


def measure(suite: Suite) -> dict[str, Any]:
    """Return the process time of a pass, seconds, and percents of it."""
    spent = {part: [0.0] for part in PARTS}
    scored: list[list[Score]] = []

    def score_batch(*given: Any) -> list[Score]:
        scored.append(batches.score_batch(*given))
        return scored[-1]

    with ExitStack() as stack:
        for part, (owner, name) in PARTS.items():
            own = clocked(getattr(owner, name), spent[part])
            stack.enter_context(patch.object(owner, name, own))
        stack.enter_context(patch.object(evaluation, "score_batch", score_batch))
        start = time.process_time()
        records = evaluation.one_pass(suite, Fed())
        whole = time.process_time() - start
    share = {part: 100 * seconds / whole for part, (seconds,) in spent.items()}
    writing = {name: 100 * one / whole for name, one in seconds_of_writing(records, scored).items()}
    return {"seconds": whole, **share, "other": 100 - sum(share.values()), "writing": writing}


def seconds_of_writing(
    records: dict[str, list[Record]], scored: list[list[Score]]
) -> dict[str, float]:
    """Return the process time of what is written of a pass, seconds."""
    packing = [0.0]
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        stack.enter_context(patch.dict(os.environ, {"ETW_CACHE": folder}))
        for name in ("write", "close"):
            own = clocked(getattr(gzip.GzipFile, name), packing)
            stack.enter_context(patch.object(gzip.GzipFile, name, own))
        start = time.process_time()
        save_records(folder, records)
        saved = time.process_time()
        journal = Journal("parts", of_rows=False)
        for some in scored:
            journal.append(some)
        journal.close()
        kept = time.process_time()
    gzipped = packing[0]
    return {"gzip": gzipped, "json and files": saved - start - gzipped, "journal": kept - saved}


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="folder in Hugging Face layout")
    parser.add_argument("--root", required=True, type=Path, help="folder with TOFU's JSON lines")
    parser.add_argument("--rows", type=int, help="rows kept of each set; all by default")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--system_prompt", default="")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    suite = evaluation.load_suite(argparse.Namespace(**vars(given), reference=None))
    evaluation.one_pass(evaluation._first_rows(suite), Fed())  # What is imported at first use.
    runs = sorted((measure(suite) for _ in range(given.repeats)), key=lambda run: run["seconds"])
    sys.stdout.write(json.dumps(_rounded(runs[len(runs) // 2])) + "\n")


def _rounded(found: dict[str, Any]) -> dict[str, Any]:
    return {
        name: _rounded(one) if isinstance(one, dict) else round(one, 2)
        for name, one in found.items()
    }


if __name__ == "__main__":
    main()
