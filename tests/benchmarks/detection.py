"""Which words do token weights find, by several markings, and how far do the weights pile up?

    python tests/benchmarks/detection.py --model models/SmolLM2-135M-Instruct.Q4_1.gguf --root DIR \
        --rows 100 --annotations forget10_gpt.jsonl forget10_filtered.json ...

Asks a model once for its predictions of the first rows of TOFU's ``forget10``, in its chat template
with the system prompt of ``configs/tofu_smollm2.yaml``, in float32. Prints a table: for each
weighting the pooled ROC-AUC for the words of each marking (``docs/annotations.md``), the Gini
coefficient within a row (a mean over rows) and the largest weight. ``--untouched`` names the model
before it learnt the rows, whose entropies are then weighed too. Without a system prompt in the
model's template: ``--no_system_prompt``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from etw_lightning.benchmarks.annotations import match_annotations, read_annotations
from etw_lightning.benchmarks.source import Source
from etw_lightning.benchmarks.tofu import TOFU
from etw_lightning.data.encode import Encoder
from etw_lightning.data.marks import number_words
from etw_lightning.kernels.signals import TokenSignals
from etw_lightning.metrics.tokens import Marks, token_auc
from etw_lightning.models.loading import load_model, load_tokenizer
from etw_lightning.schema import IGNORE_INDEX, EncodedRow, Example
from etw_lightning.weighting import ETW, WGA, SatImp, TokenWeighting
from etw_lightning.weighting.spread import row_ginis
from etw_lightning.weighting.within_rows import Pooling, pool_words

SYSTEM_PROMPT = "You are a helpful assistant."
TEMPERATURES = (0.5, 1.0, 2.0, 4.0)
_IMP = SatImp(beta1=0.0, beta2=1.0)


class ByWord(TokenWeighting):
    """Another weighting's weights, those of a word's tokens made one."""

    def __init__(self, of: TokenWeighting, pooling: Pooling) -> None:
        self.of, self.pooling = of, pooling

    def __call__(self, signals: TokenSignals) -> Tensor:
        """Return the pooled weights, ``(N,)``."""
        return pool_words(self.of(signals), signals, self.pooling)


#: What is compared, by name; ``{}`` are entropies at temperature 1 of the model itself.
WEIGHTINGS: Mapping[str, TokenWeighting] = {
    "ETW": ETW(),
    "Imp": _IMP,
    "WGA": WGA(),
    "ETW by word, sum": ETW(unit="word"),
    "ETW by word, maximum": ETW(unit="word", word_entropy="max"),
    "Imp by word, maximum": ByWord(_IMP, "max"),
    "ETW, T .5": ETW(temperature=0.5),
    "ETW, T 2": ETW(temperature=2.0),
    "ETW, T 4": ETW(temperature=4.0),
    "ETW, floor .1": ETW(floor=0.1),
    "ETW, floor .5": ETW(floor=0.5),
    "ETW by word, floor .5": ETW(unit="word", floor=0.5),
}
#: The same with the entropies of the untouched model.
OF_UNTOUCHED: Mapping[str, TokenWeighting] = {
    "ETW, untouched model's": ETW(source="reference"),
    "ETW by word, untouched model's": ETW(source="reference", unit="word"),
}


class Said(NamedTuple):
    """What a model says at the labelled tokens of some rows.

    Args:
        logps: Of the labels, nats, ``(N,)``.
        entropies: By temperature, nats, ``(N,)`` each.
    """

    logps: Tensor
    entropies: dict[float, Tensor]


@torch.no_grad()
def ask(model: str, rows: Sequence[EncodedRow]) -> Said:
    """Return what a model predicts, from all of its logits, in float64 after the head."""
    lm = load_model(model)
    logps, entropies = [], {one: list[Tensor]() for one in TEMPERATURES}
    for row in rows:
        labels = torch.tensor(row.labels[1:])
        is_label = labels != IGNORE_INDEX
        logits = lm(torch.tensor([row.input_ids])).logits[0, :-1][is_label].double()
        logps.append(logits.log_softmax(-1).gather(-1, labels[is_label, None])[:, 0])
        for temperature, found in entropies.items():
            shares = (logits / temperature).log_softmax(-1)
            found.append(torch.special.entr(shares.exp()).sum(-1))
    return Said(torch.cat(logps), {one: torch.cat(found) for one, found in entropies.items()})


def signals_of(
    rows: Sequence[EncodedRow], words: Sequence[Sequence[int]], said: Said, before: Said | None
) -> dict[float, TokenSignals]:
    """Return the signals of the rows by the temperature of their entropies."""
    sizes = torch.tensor([row.num_labels for row in rows])
    pairs = [
        pair
        for row, own in zip(rows, words, strict=True)
        for pair in zip(row.labels, own, strict=True)
    ]
    kept = [(label, word) for label, word in pairs if label != IGNORE_INDEX]
    return {
        temperature: TokenSignals(
            labels=torch.tensor([label for label, _ in kept]),
            rows=torch.repeat_interleave(torch.arange(len(rows)), sizes),
            num_rows=len(rows),
            logps=said.logps,
            entropies=entropies,
            words=torch.tensor([word for _, word in kept]),
            reference_entropies=None if before is None else before.entropies[temperature],
        )
        for temperature, entropies in said.entropies.items()
    }


def marks_of(path: str, examples: Sequence[Example], encoder: Encoder) -> list[Marks]:
    """Return which labelled tokens a marking marks; None for what is no part of the answer."""
    answers = [example.answer for example in examples]
    questions = [example.question or "" for example in examples]
    spans = match_annotations(read_annotations(path), answers, questions)
    return [
        tuple(
            any(max(left, first) < min(right, last) for first, last in marked)
            if left < right
            else None
            for left, right in encoder.answer_spans(example)
        )
        for example, marked in zip(examples, spans, strict=True)
    ]


def table(
    signals: Mapping[float, TokenSignals],
    markings: Mapping[str, list[Marks]],
    weightings: Mapping[str, TokenWeighting],
) -> list[str]:
    """Return the lines of the table."""
    head = ["weights", *markings, "Gini", "largest"]
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    for name, weighting in weightings.items():
        given = signals[weighting.entropy_temperature or 1.0]
        weights = weighting(given)
        rows = [one.tolist() for one in weights.split(given.row_counts().int().tolist())]
        areas = [f"{token_auc(rows, marks).pooled:.3f}" for marks in markings.values()]
        spread = f"{row_ginis(weights, given).mean().item():.3f}"
        lines.append(f"| {' | '.join([name, *areas, spread, f'{weights.max().item():.2f}'])} |")
    return lines


def main(args: list[str] | None = None) -> int:
    """Ask, weigh and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--untouched")
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=100)
    parser.add_argument("--annotations", nargs="+", required=True)
    parser.add_argument("--no_system_prompt", action="store_true")
    given = parser.parse_args(args)
    source = Source(root=given.root, limits={"forget10": given.rows})
    examples = TOFU(source).examples("forget10")
    prompt = None if given.no_system_prompt else SYSTEM_PROMPT
    encoder = Encoder(load_tokenizer(given.model), "chat", 256, prompt)
    rows = encoder.encode_all(examples)
    words = number_words(examples, rows, encoder)
    before = ask(given.untouched, rows) if given.untouched else None
    signals = signals_of(rows, words, ask(given.model, rows), before)
    markings = {Path(one).stem: marks_of(one, examples, encoder) for one in given.annotations}
    weightings = {**WEIGHTINGS, **(OF_UNTOUCHED if before else {})}
    sys.stdout.write("\n".join(table(signals, markings, weightings)) + "\n")
    counts = signals[1.0].row_sums(signals[1.0].entropies)
    sys.stdout.write(
        f"\n{len(rows)} rows, {len(signals[1.0].rows)} tokens; nats a row, median "
        f"{counts.median().item():.2f}, least {counts.min().item():.2f}\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
