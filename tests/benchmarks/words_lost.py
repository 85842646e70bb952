"""Which words of the forget answers did runs push down, and how far, against the retain model?

    python tests/benchmarks/words_lost.py --annotations forget10_gpt.jsonl --runs RUN [RUN ...]

Reads the records that finished runs of one target model keep: no model is asked again. Prints the
mean log-probability, in nats, of the answers' tokens by what they are part of: words that a
marking marks (``docs/annotations.md``) or not, each apart by whether the question says the word
too, and the end of the answer. Below it the mean distance to the retain model, the mean over
tokens of ``|logp(run) - logp(retain model)|``, of marked and of all other tokens. Then, of TOFU's
rows, how many right answers are less likely than 1e-10 a token, D*n of forget quality, and D*n of
the truth ratio w / p without the 1e-10 in its denominator.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from etw_lightning.benchmarks.annotations import match_annotations, read_annotations
from etw_lightning.judging.numbers import overshoot
from etw_lightning.metrics.tofu import forget_quality_of, truth_ratios
from etw_lightning.schema import Record
from etw_lightning.scoring.retain_results import load_records

CLASSES = (
    "marked, in the question",
    "marked, not in it",
    "unmarked, in the question",
    "unmarked, not in it",
    "end",
)
_WORD = re.compile(r"\w+")

Values = NDArray[np.float64]


def classes_of(records: Sequence[Record], path: str) -> NDArray[np.int64]:
    """Return the place in `CLASSES` of each token of the records' answers, row after row."""
    answers = [record.answer for record in records]
    questions = [record.question or "" for record in records]
    marked = match_annotations(read_annotations(path), answers, questions)
    found = []
    for record, spans in zip(records, marked, strict=True):
        asked = {word.casefold() for word in _WORD.findall(record.question or "")}
        words = [
            (one.start(), one.end(), one[0].casefold() in asked)
            for one in _WORD.finditer(record.answer)
        ]
        for left, right in record.token_spans or ():
            if left == right:
                found.append(len(CLASSES) - 1)
                continue
            is_marked = any(max(left, first) < min(right, last) for first, last in spans)
            own = [said for first, last, said in words if max(left, first) < min(right, last)]
            found.append(2 * (not is_marked) + (not any(own)))
    return np.array(found)


def logps_of(records: Sequence[Record], like: Sequence[Record]) -> Values:
    """Return the log-probabilities of all answer tokens, nats, in the order of other records."""
    by_id = {record.id: record for record in records}
    missing = [record.id for record in like if record.id not in by_id]
    if missing:
        raise SystemExit(f"{len(missing)} forget rows are not in all records, {missing[0]} first.")
    rows = [by_id[record.id].token_logps or () for record in like]
    for row, record in zip(rows, like, strict=True):
        if len(row) != len(record.token_logps or ()):
            raise SystemExit(f"{record.id} has other tokens in other records.")
    return np.array([value for row in rows for value in row], dtype=np.float64)


def table(classes: NDArray[np.int64], models: Mapping[str, Values], retain: Values) -> list[str]:
    """Return the lines of the table."""
    kinds = [kind for kind in range(len(CLASSES)) if (classes == kind).any()]
    head = ["model", *(CLASSES[kind] for kind in kinds), "distance, marked", "distance, others"]
    counts = [str((classes == kind).sum()) for kind in kinds]
    is_marked = classes < 2
    counts += [str(is_marked.sum()), str((~is_marked).sum())]
    lines = [
        f"| {' | '.join(head)} |",
        f"|{' --- |' * len(head)}",
        f"| {' | '.join(['tokens', *counts])} |",
    ]
    for name, logps in models.items():
        cells = [f"{logps[classes == kind].mean():.2f}" for kind in kinds]
        far = np.abs(logps - retain)
        cells += [f"{far[one].mean():.2f}" if one.any() else "" for one in (is_marked, ~is_marked)]
        lines.append(f"| {' | '.join([name, *cells])} |")
    return lines


def plain_ratios(records: Sequence[Record]) -> Values:
    """Return the truth ratios w / p of rows, from their losses alone."""
    return np.array(
        [np.exp((row.paraphrase_loss or 0.0) - np.mean(row.perturbed_losses)) for row in records]
    )


def ratio_table(models: Mapping[str, Sequence[Record]], retain: Sequence[Record]) -> list[str]:
    """Return the lines of the table of truth ratios, rows in the order of the retain model's."""
    lines = ["| model | rows below 1e-10 | D*n | D*n without 1e-10 |", "| --- | --- | --- | --- |"]
    for name, records in models.items():
        by_id = {row.id: row for row in records}
        rows = [by_id[row.id] for row in retain]
        beyond = round((overshoot({"forget": rows})["beyond_scale"] or 0) * len(rows))
        found = forget_quality_of(truth_ratios(rows), truth_ratios(retain)).d_times_n
        plain = forget_quality_of(plain_ratios(rows), plain_ratios(retain)).d_times_n
        lines.append(f"| {name} | {beyond} | {found} | {plain} |")
    return lines


def main(args: list[str] | None = None) -> int:
    """Read, sort and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=Path, nargs="+", required=True)
    parser.add_argument("--annotations", required=True)
    given = parser.parse_args(args)
    first = given.runs[0]
    results = json.loads((first / "results.json").read_text(encoding="utf-8"))
    like = load_records(first)["forget"]
    records = {"before": load_records(first / "before")["forget"]}
    records |= {run.name: load_records(run)["forget"] for run in given.runs}
    records["retain model"] = load_records(results["retain_results"])["forget"]
    models = {name: logps_of(rows, like) for name, rows in records.items()}
    lines = table(classes_of(like, given.annotations), models, models["retain model"])
    if all(row.perturbed_losses and row.paraphrase_loss is not None for row in like):
        lines += ["", *ratio_table(records, records["retain model"])]
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
