"""What many rows of one's own cost: before the first step, and where they are scored.

A random Llama of a few thousand weights makes one step on 40 forget rows beside many retain rows of
questions and answers, with one thread; the package chooses how many processes encode. The first
start finds an empty cache.

    python tests/benchmarks/large_data.py
    python tests/benchmarks/large_data.py --texts 10 100   # megabytes of raw text in their place
    python tests/benchmarks/large_data.py --texts 50 --one-row   # all of it in one row
    python tests/benchmarks/large_data.py --scored 20000   # rows that are scored, none trained on

prints a line for each number of rows, or size of the text, and start:

* ``cpu_seconds``: of the process and of those it has started;
* ``wall_seconds``: from the start of the command to its end, which is one step later, or once all
  rows have been scored (at the second start: read from the cache);
* ``peak_mb``: highest resident set of the largest process.

``--json`` writes them as JSON instead.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}<|end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
_STEMS = (
    "mill",
    "river",
    "road",
    "salt",
    "tower",
    "garden",
    "winter",
    "letter",
    "harbour",
    "stone",
)
_SAID = """
import resource, runpy, sys
sys.argv = ["etw_lightning", *sys.argv[1:]]
try:
    runpy.run_module("etw_lightning", run_name="__main__")
finally:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    cpu = sum(one.ru_utime + one.ru_stime for one in used)
    print("used", cpu, max(one.ru_maxrss for one in used) / 1024)
"""


def main() -> None:
    """Measure, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--texts", type=float, nargs="+", default=[], help="megabytes; no rows")
    parser.add_argument("--scored", type=int, nargs="+", default=[], help="rows; no training")
    parser.add_argument("--one-row", action="store_true", help="raw text is one row")
    parser.add_argument("--template", choices=("chat", "plain"), default="chat")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    found = []
    for size in given.scored or given.texts or given.rows:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write_rows(folder, size, is_text=bool(given.texts), is_one=given.one_row)
            what = "scored" if given.scored else "megabytes" if given.texts else "rows"
            words = _scoring() if given.scored else _training()
            words += ["--data.template", given.template]
            for one in _starts(folder, words):
                found.append({what: size, **one})
                if not given.json:
                    line = "  ".join(f"{name} {value}" for name, value in one.items())
                    sys.stdout.write(f"{line}\n")
                    sys.stdout.flush()
    if given.json:
        sys.stdout.write(f"{json.dumps(found)}\n")


def write_rows(folder: Path, size: float, *, is_text: bool, is_one: bool) -> None:
    """Write 40 forget rows, and so many retain rows or megabytes of raw text."""
    with (folder / "forget.jsonl").open("w", encoding="utf-8") as stream:
        stream.writelines(f"{json.dumps(row)}\n" for row in made_up("forget", 40))
    with (folder / "retain.jsonl").open("w", encoding="utf-8") as stream:
        if not is_text:
            stream.writelines(f"{json.dumps(row)}\n" for row in made_up("retain", int(size)))
            return
        left, texts = size * 1e6, []
        for row in made_up("retain", sys.maxsize):
            left -= len(row["answer"])
            if left < 0:
                break
            texts.append(row["answer"])
        texts = [" ".join(texts)] if is_one else texts
        stream.writelines(f"{json.dumps({'text': text})}\n" for text in texts)


def _training() -> list[str]:
    """Return a command that makes one step."""
    words = ["fit", "--config", "quickstart", "--config", "method/etw"]
    words += ["--data.benchmark", "jsonl"]
    words += ["--data.retain_model", "null", "--trainer.max_steps", "1", "--no_save_model"]
    scores = {"class_path": "etw_lightning.callbacks.SetScores", "init_args": {"sets": ["forget"]}}
    words += ["--trainer.callbacks", json.dumps([scores]), "--trainer.num_sanity_val_steps", "0"]
    return [*words, "--trainer.limit_val_batches", "0"]


def _scoring() -> list[str]:
    """Return a command that scores the answers of the retain rows."""
    words = ["evaluate", "--config", "own_data"]
    return [*words, "--metrics", json.dumps(["probability"])]


def _starts(folder: Path, words: list[str]) -> Iterator[dict[str, Any]]:
    """Start a command twice, the second time with the cache of the first."""
    _make_model(folder / "model")
    words = [*words, "--data.root", str(folder), "--model.pretrained", str(folder / "model")]
    words += ["--data.forget_split", "forget", "--data.retain_split", "retain"]
    words += ["--trainer.enable_progress_bar", "false"]
    others = {"ETW_CACHE": str(folder / "cache")}
    for start in ("first", "second"):
        command = [sys.executable, "-c", _SAID, *words, "--output_dir", str(folder / start)]
        began = time.monotonic()
        done = subprocess.run(command, env={**os.environ, **others}, text=True, capture_output=True)
        seconds = time.monotonic() - began
        if done.returncode:
            raise SystemExit(done.stdout + done.stderr)
        used = next(line for line in done.stdout.splitlines() if line.startswith("used "))
        cpu, peak = map(float, used.split()[1:])
        yield {
            "start": start,
            "cpu_seconds": round(cpu, 1),
            "wall_seconds": round(seconds, 1),
            "peak_mb": round(peak),
        }


def made_up(name: str, count: int) -> Iterator[dict[str, str]]:
    """Return questions with answers of about thirty words, no two alike."""
    draw = random.Random(name)
    for number in range(count):
        words = [f"{draw.choice(_STEMS)}{draw.randrange(100)}" for _ in range(30)]
        yield {
            "question": f"What did {name} {number} write about the {draw.choice(_STEMS)}?",
            "answer": f"In {1900 + number % 100} it was {' '.join(words)}.",
        }


def _make_model(folder: Path) -> None:
    """Save a Llama without training, with a tokenizer of the words that rows are made of."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<|pad|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator((row["answer"] for row in made_up("words", 500)), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|end|>", pad_token="<|pad|>"
    )
    tokenizer.chat_template = _TEMPLATE
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


if __name__ == "__main__":
    main()
