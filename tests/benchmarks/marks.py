"""Mark words of TOFU's forget answers by entropy, by chance and by least entropy.

    python tests/benchmarks/marks.py --model models/SmolLM2-135M-Instruct.Q4_1.gguf --root DIR \
        --like DIR/annotations/tpo/forget10_gpt.jsonl --out marks

Writes ``entropy.jsonl``, ``random.jsonl`` and ``least.jsonl``, files for ``data.annotations``
(``docs/annotations.md``). Each marks as many words of an answer as ``--like`` does there: those of
the largest entropies (a word's is the sum of its tokens', by a model that has not learnt the
answers, asked as in ``detection.py``), as many drawn by chance (one seed for all answers), and
those of the least. Prints which share of its words each has in common with ``--like``.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import detection

from etw_lightning.benchmarks.annotations import match_annotations, read_annotations
from etw_lightning.benchmarks.source import Source
from etw_lightning.benchmarks.tofu import TOFU
from etw_lightning.data.encode import Encoder
from etw_lightning.data.marks import number_words
from etw_lightning.models.loading import load_tokenizer
from etw_lightning.schema import IGNORE_INDEX
from etw_lightning.weighting.within_rows import pool_words

WAYS = ("entropy", "random", "least")


class Word(NamedTuple):
    """A word of an answer: its first character, one past its last, its entropy in nats."""

    start: int
    end: int
    entropy: float


def words_of(
    answer: str, spans: Sequence[tuple[int, int]], words: Sequence[int], entropies: Sequence[float]
) -> list[Word]:
    """Return the words of an answer, signs and the token that ends it left out.

    Args:
        answer: The answer.
        spans: Characters of each of its tokens.
        words: Number of the word that each token belongs to.
        entropies: Of the word of each token, nats.
    """
    found: dict[int, Word] = {}
    for (start, end), word, entropy in zip(spans, words, entropies, strict=True):
        if start < end:
            before = found.get(word, Word(start, end, entropy))
            found[word] = Word(min(before.start, start), max(before.end, end), before.entropy)
    texts = [(word, answer[word.start : word.end]) for word in found.values()]
    return [
        Word(word.end - len(text.lstrip()), word.start + len(text.rstrip()), word.entropy)
        for word, text in texts
        if any(letter.isalnum() for letter in text)
    ]


def choose(words: Sequence[Word], count: int, draw: random.Random) -> dict[str, list[Word]]:
    """Return so many words by each way; of equal entropies the earlier word comes first."""
    falling = sorted(words, key=lambda word: -word.entropy)
    return {
        "entropy": falling[:count],
        "random": draw.sample(list(words), count),
        "least": falling[len(falling) - count :],
    }


def main(args: list[str] | None = None) -> int:
    """Ask the model, choose, write and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--like", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--no_system_prompt", action="store_true")
    given = parser.parse_args(args)
    source = Source(root=given.root)
    examples = TOFU(source).examples("forget10")
    prompt = None if given.no_system_prompt else detection.SYSTEM_PROMPT
    encoder = Encoder(load_tokenizer(given.model), "chat", 256, prompt)
    rows = encoder.encode_all(examples)
    numbers = number_words(examples, rows, encoder)
    said = detection.ask(given.model, rows)
    signals = detection.signals_of(rows, numbers, said, None)[1.0]
    assert signals.entropies is not None
    by_row = pool_words(signals.entropies, signals, "sum").split([row.num_labels for row in rows])
    answers = [example.answer for example in examples]
    questions = [example.question or "" for example in examples]
    marks = match_annotations(read_annotations(given.like), answers, questions)
    draw = random.Random(0)
    lines: dict[str, list[str]] = {way: [] for way in WAYS}
    common, total = dict.fromkeys(WAYS, 0), 0
    for example, row, own, entropies, marked in zip(
        examples, rows, numbers, by_row, marks, strict=True
    ):
        labelled = [
            word for label, word in zip(row.labels, own, strict=True) if label != IGNORE_INDEX
        ]
        words = words_of(
            example.answer, encoder.answer_spans(example), labelled, entropies.tolist()
        )
        like = [
            word
            for word in words
            if any(max(word.start, left) < min(word.end, right) for left, right in marked)
        ]
        total += len(like)
        for way, chosen in choose(words, len(like), draw).items():
            common[way] += len(set(chosen) & set(like))
            spans = sorted([word.start, word.end] for word in chosen)
            lines[way].append(json.dumps({"answer": example.answer, "spans": spans}) + "\n")
    given.out.mkdir(parents=True, exist_ok=True)
    for way, written in lines.items():
        (given.out / f"{way}.jsonl").write_text("".join(written))
        sys.stdout.write(f"{way}: {common[way] / max(total, 1):.3f} of {total} words\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
