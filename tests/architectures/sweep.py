"""Every causal architecture of transformers through our code; writes ``docs/architectures.md``.

``python tests/architectures/sweep.py --out results.json --write docs/architectures.md``: about
twelve minutes of one idle core for all of them. ``--new`` goes on where an earlier one stopped.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
from collections import Counter
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import transformers
from families import VARIANTS
from study import EXAMPLES, study
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from etw_lightning.benchmarks.quickstart import save_tokenizer, train_tokenizer

FAMILIES = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
JOBS = {name: (name, {}) for name in FAMILIES} | VARIANTS


def make_tokenizer(folder):
    """Save a byte-level tokenizer that has learnt from the rows, and return it loaded."""
    texts = [text for one in EXAMPLES for text in (one.question, one.answer)]
    save_tokenizer(train_tokenizer(texts, vocab_size=320), Path(folder))
    return transformers.AutoTokenizer.from_pretrained(folder)


class Slow(BaseException):
    """A model took longer than it may; no check is to catch this."""


def run(names, out, *, timeout, keep):
    """Study architectures one after the other; what is found is kept after each."""
    results = json.loads(out.read_text()) if keep and out.is_file() else {}

    def stop(*_):
        raise Slow

    signal.signal(signal.SIGALRM, stop)
    with tempfile.TemporaryDirectory() as work:
        tokenizer = make_tokenizer(Path(work) / "tokenizer")
        for name in names:
            if name in results:
                continue
            signal.alarm(timeout)
            try:
                results[name] = study(*JOBS[name], tokenizer, work)
            except Slow:
                results[name] = {"family": JOBS[name][0], "verdict": "too slow"}
            signal.alarm(0)
            sys.stdout.write(f"{name}: {results[name]['verdict']} {results[name].get('why', '')}\n")
            sys.stdout.flush()
            out.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
    return results


def page(results):
    """Return the page of the docs."""
    families = {name: found for name, found in results.items() if name in FAMILIES}
    variants = {name: found for name, found in results.items() if name not in FAMILIES}
    lines = [
        "# Architectures",
        "",
        f"{len(families)} of the {len(FAMILIES)} causal architectures of transformers "
        f"{transformers.__version__} and {len(variants)} of {len(VARIANTS)} settings that real "
        "checkpoints have, each as a tiny random model in "
        "float32 (windows shorter than every row, logits far from uniform), with what our code "
        "says of it held against transformers' own logits of each row alone: label "
        "log-probabilities and entropies of a padded batch in training and in evaluation (2e-4 "
        "nats), gradients, also recomputed, and their norm (1e-3 of the whole), hidden states of "
        "a layer, losses of all answers of an evaluation row, greedy continuations of a "
        "left-padded batch against steps by hand, and the saved model.",
        "",
        "Written by `python tests/architectures/sweep.py --out results.json --write "
        f"docs/architectures.md` (PyTorch {torch.__version__.partition('+')[0]}).",
        "",
        "| | architectures | settings |",
        "| --- | --- | --- |",
    ]
    counts = [Counter(found["verdict"] for found in some.values()) for some in (families, variants)]
    for verdict in ("right", "refused", "not built", "wrong", "crash", "too slow"):
        lines.append(f"| {verdict} | {counts[0][verdict]} | {counts[1][verdict]} |")
    lines += [
        "",
        "*Not built*: transformers can't build, save and load a tiny model of this class by "
        "itself, so that nothing can be said. *Refused*: one line when the model is loaded, or "
        "before the first step.",
        "",
        "## Right",
        "",
        ", ".join(f"`{name}`" for name, one in results.items() if one["verdict"] == "right"),
    ]
    limited = {n: o for n, o in results.items() if o["verdict"] == "right" and "problems" in o}
    lines += ["", "Right but for a feature that is refused in one line:", ""]
    lines += ["| architecture | feature | why |", "| --- | --- | --- |"]
    for name, found in limited.items():
        for feature, why in found["problems"].items():
            lines.append(f"| `{name}` | {feature} | {_cell(why)} |")
    lines += ["", "Right, with a line that says what takes longer or is left out:", ""]
    lines += [
        f"* `{name}`: {_cell(line)}"
        for name, found in results.items()
        if found["verdict"] == "right"
        for line in found.get("said", ())
    ]
    for verdict in ("refused", "not built", "wrong", "crash", "too slow"):
        some = {name: one for name, one in results.items() if one["verdict"] == verdict}
        if some:
            lines += [
                "",
                f"## {verdict.capitalize()}",
                "",
                "| architecture | why |",
                "| --- | --- |",
            ]
            lines += [f"| `{name}` | {_cell(one.get('why', ''))} |" for name, one in some.items()]
    return "\n".join(lines) + "\n"


def _cell(text):
    return text.removeprefix("refused: ").replace("|", "\\|").replace("\n", " ")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="results, as JSON")
    parser.add_argument("--only", default="", help="names, separated by commas")
    parser.add_argument("--new", action="store_true", help="leave out what the results hold")
    parser.add_argument("--timeout", type=int, default=300, help="seconds for one architecture")
    parser.add_argument("--write", type=Path, help="the page to write from the results")
    args = parser.parse_args()
    names = args.only.split(",") if args.only else list(JOBS)
    results = run(names, args.out, timeout=args.timeout, keep=args.new or bool(args.only))
    if args.write is not None:
        args.write.write_text(page(dict(sorted(results.items()))))


if __name__ == "__main__":
    main()
