"""How much process time one scoring pass saves against a pass for every metric.

Two ways to the same numbers run alternately in one process, with one thread:

* ``one_pass``: this package. Each set is scored once; every metric is computed from its records.
* ``by_metric``: the way of locuslab/open-unlearning's TOFU suite: every metric has a pass of its
  own over its set, in file order. See ``by_metric.py``.

Both follow ``Conventions.peer()``, and every loss, score and generated text of every row must be
the same before a number is printed. Forget quality and PrivLeak read stored results of a retain
model on both sides and feed nothing, so they are left out. With ``--reference DIR`` the attack that
compares with another model is made too, for which both ways run that model (not counted below).

    python tests/benchmarks/evaluation.py --model DIR --root DIR

prints one line of JSON:

* ``ratio``: process time of ``by_metric`` over that of ``one_pass``, medians of the repeats;
* ``process_seconds``: these medians;
* ``answer_positions``, ``generation_positions``: positions that went through the model;
* ``needed_positions``: those of all answers if what those of a batch begin with alike is fed once;
* ``padding_share``: positions fed beside those that have to be, per one of these;
* ``peak_memory_mb``: highest resident set while a way ran the first time, all of the process
  included: the kernel's mark (VmHWM) is reset before each, freed memory given back first; null
  where the system has no such mark;
* ``largest_difference``: of any loss or score between the two.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import torch
from by_metric import ATTACKS, Fed, Suite, Values, by_metric

from etw_lightning import metrics
from etw_lightning.benchmarks.source import Source
from etw_lightning.benchmarks.tofu import TOFU
from etw_lightning.catalogue.entries import Given
from etw_lightning.catalogue.suite import select
from etw_lightning.data.encode import Encoder
from etw_lightning.metrics import text
from etw_lightning.models.loading import LabelScorer, load_model, load_tokenizer
from etw_lightning.models.step_layout import num_distinct
from etw_lightning.schema import Conventions, EvalSet, Record
from etw_lightning.scoring.batches import (
    AnswerBatch,
    build_batches,
    join_generations,
    make_records,
    score_batch,
)

SETS = ("forget", "retain", "real_authors", "world_facts", "holdout")
#: The peer's suite, by this package's names.
METRICS = (
    "probability",
    "rouge",
    "truth_ratio",
    "model_utility",
    "extraction_strength",
    "exact_memorisation",
    *(f"mia_{attack}" for attack in ATTACKS),
)
TOLERANCE = 2e-5
PEER = Conventions.peer()


# One pass.


def one_pass(suite: Suite, fed: Fed) -> dict[str, list[Record]]:
    """Score every set once and compute every metric from the records."""
    # A process that evaluates once has not compared these texts before.
    text._rouge_scores.cache_clear()
    records = {name: _score(suite, suite.scorer, one, fed) for name, one in suite.sets.items()}
    # What the table of the suite shows, intervals included.
    given, chosen = Given(records=records, conventions=PEER), METRICS
    if suite.reference is not None:
        # Records of another model are read from a file as a rule; here they are paid for.
        known = {
            name: _score(suite, suite.reference, _gold(suite.sets[name]), Fed())
            for name in ("forget", "holdout")
        }
        given, chosen = replace(given, retain=known), (*METRICS, "mia_reference")
        records |= {f"{name}, reference": rows for name, rows in known.items()}
    select(list(chosen), "tofu", has=("retain", "retain_tokens")).compute(given)
    return records


def _score(suite: Suite, scorer: LabelScorer, eval_set: EvalSet, fed: Fed) -> list[Record]:
    encoder = Encoder(suite.tokenizer, system_prompt=suite.system_prompt, conventions=PEER)
    scores = []
    for batch in join_generations(build_batches(eval_set, encoder, suite.batch_size)):
        fed.kind = "answers" if isinstance(batch, AnswerBatch) else "generation"
        scores += score_batch(scorer, batch, suite.tokenizer)
    return make_records(eval_set, scores)


def _gold(eval_set: EvalSet) -> EvalSet:
    examples = [
        replace(one, paraphrased_answer=None, perturbed_answers=()) for one in eval_set.examples
    ]
    return replace(eval_set, examples=tuple(examples), max_new_tokens=0)


def row_values(records: dict[str, list[Record]]) -> Values:
    """Return what the other way gives, from the records."""
    found: Values = {}
    for name in SETS:
        rows = records[name]
        if name in ("forget", "retain"):
            found[name, "paraphrase"] = [row.paraphrase_loss for row in rows]
        if name != "holdout":
            found[name, "answer"] = [row.answer_loss for row in rows]
            found[name, "perturbed"] = [list(row.perturbed_losses) for row in rows]
            found[name, "text"] = [row.generation for row in rows]
            found[name, "rouge"] = list(metrics.rouge_values(rows, "rougeL_recall"))
    for name in ("forget", "holdout"):
        reference = records.get(f"{name}, reference")
        for attack in ATTACKS if reference is None else (*ATTACKS, "reference"):
            scores = metrics.attack_scores(
                records[name], attack, reference=reference, conventions=PEER
            )
            found[name, attack] = list(scores)
    forget = records["forget"]
    found["forget", "extraction"] = list(metrics.extraction_strength_values(forget, PEER))
    found["forget", "memorisation"] = list(metrics.exact_memorisation_values(forget, PEER))
    return found


# The comparison.


@dataclass
class Runs:
    """What the runs of one way gave."""

    seconds: list[float] = field(default_factory=list)
    fed: Fed = field(default_factory=Fed)
    values: Values = field(default_factory=dict)
    peak_mb: float | None = None


def compare(suite: Suite, repeats: int = 1) -> dict[str, Any]:
    """Run both ways alternately; return the line that is printed.

    Raises:
        AssertionError: If a number or a text differs between the ways; names set, value and row.
    """
    ways: dict[str, Callable[[Suite, Fed], Any]] = {"one_pass": one_pass, "by_metric": by_metric}
    runs = {name: Runs() for name in ways}
    for way in ways.values():  # What is imported at first use is not theirs to pay.
        way(_first_rows(suite), Fed())
    for repeat in range(repeats):
        for name, way in ways.items():
            run = runs[name]
            run.fed = Fed()
            watched = repeat == 0 and _reset_peak()
            with run.fed.counting(suite.scorer.lm):
                start = time.process_time()
                given = way(suite, run.fed)
                run.seconds.append(time.process_time() - start)
            if watched:
                run.peak_mb = _peak_mb()
            run.values = row_values(given) if way is one_pass else given
        difference = largest_difference(runs["one_pass"].values, runs["by_metric"].values)
    ours, theirs = runs["one_pass"], runs["by_metric"]
    needed = _needed(suite)
    seconds = {name: statistics.median(run.seconds) for name, run in runs.items()}
    return {
        "ratio": round(seconds["by_metric"] / seconds["one_pass"], 2),
        "process_seconds": {name: round(value, 2) for name, value in seconds.items()},
        "answer_positions": {name: run.fed.answers for name, run in runs.items()},
        "generation_positions": {name: run.fed.generation for name, run in runs.items()},
        "needed_positions": needed,
        "padding_share": {
            "one_pass": round(ours.fed.answers / needed - 1, 4),
            "by_metric": round(theirs.fed.answers / theirs.fed.tokens - 1, 4),
        },
        "peak_memory_mb": {name: run.peak_mb for name, run in runs.items()},
        "largest_difference": difference,
        "rows": {name: len(one.examples) for name, one in suite.sets.items()},
        "repeats": repeats,
        "batch_size": suite.batch_size,
    }


def largest_difference(ours: Values, theirs: Values) -> float:
    """Return the largest difference of two numbers; every text must be the same."""
    assert ours.keys() == theirs.keys(), ours.keys() ^ theirs.keys()
    largest = 0.0
    for (name, what), values in ours.items():
        for row, (mine, other) in enumerate(zip(values, theirs[name, what], strict=True)):
            same = mine == other
            if not isinstance(mine, str):
                difference = float(np.max(np.abs(np.subtract(mine, other))))
                largest, same = max(largest, difference), difference <= TOLERANCE
            assert same, f"row {row} of {name}, {what}: {mine!r} in one pass, {other!r} by metric"
    return largest


def _first_rows(suite: Suite) -> Suite:
    sets = {name: replace(one, examples=one.examples[:2]) for name, one in suite.sets.items()}
    return replace(suite, sets=sets)


def _needed(suite: Suite) -> int:
    """Return the positions of all answers, what those of a batch begin with alike once."""
    encoder = Encoder(suite.tokenizer, system_prompt=suite.system_prompt, conventions=PEER)
    batches = [
        batch
        for one in suite.sets.values()
        for batch in build_batches(one, encoder, suite.batch_size)
        if isinstance(batch, AnswerBatch)
    ]
    every = [[one.row for group in batch.groups for one in group] for batch in batches]
    return sum(num_distinct(rows) for rows in every)


def _reset_peak() -> bool:
    """Forget the process's highest resident set so far; tell whether that could be done."""
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _peak_mb() -> float:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return round(int(next(one for one in lines if one.startswith("VmHWM")).split()[1]) / 1024, 1)


def load_suite(given: argparse.Namespace) -> Suite:
    """Read the model and the rows of TOFU's forget10."""
    sets = TOFU(Source(root=given.root)).eval_sets(SETS)
    return Suite(
        scorer=LabelScorer(load_model(given.model)).eval(),
        tokenizer=load_tokenizer(given.model),
        sets={
            name: replace(sets[name], examples=sets[name].examples[: given.rows]) for name in SETS
        },
        batch_size=given.batch_size,
        system_prompt=given.system_prompt or None,
        reference=given.reference and LabelScorer(load_model(given.reference)).eval(),
    )


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="folder in Hugging Face layout")
    parser.add_argument("--root", required=True, type=Path, help="folder with TOFU's JSON lines")
    parser.add_argument("--rows", type=int, help="rows kept of each set; all by default")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--system_prompt", default="You are a helpful assistant.")
    parser.add_argument("--reference", help="folder of another model with the same tokenizer")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    suite = load_suite(given)
    sys.stdout.write(json.dumps(compare(suite, given.repeats)) + "\n")


if __name__ == "__main__":
    main()
