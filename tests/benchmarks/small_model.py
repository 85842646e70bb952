"""Makes the small Llama, not trained yet, that learns all of TOFU from nothing on a CPU.

    python tests/benchmarks/small_model.py --root DIR --output models/tofu_small

Its tokenizer, a byte-level BPE of 4,096 entries, is learnt from TOFU's ``full``, ``real_authors``
and ``world_facts``, of which ``--root`` holds the files as of ``data.root``. Prints one line of
JSON: the number of weights, and the SHA-256 of the weights and of the tokenizer; both hang on the
versions of torch, transformers and tokenizers, which are printed too.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from lightning.pytorch import seed_everything

from etw_lightning.benchmarks import quickstart
from etw_lightning.benchmarks.source import Source
from etw_lightning.benchmarks.tofu import TOFU
from etw_lightning.models.random_llama import LlamaShape, save_random_llama

#: Entries of its tokenizer.
VOCABULARY = 4096
#: 3.6 million weights: about 3,000 tokens a second and thread to train.
SHAPE = LlamaShape(num_layers=3, hidden_size=256, intermediate_size=768, num_heads=4, tied=True)


def texts_of(root: Path) -> Iterator[str]:
    """Return the questions and answers that the models will be taught."""
    for example in TOFU(Source(root=root)).examples("full+real_authors+world_facts"):
        yield example.question or ""
        yield example.answer


def main(args: list[str] | None = None) -> int:
    """Make the model and say what it is."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(args)
    seed_everything(given.seed, verbose=False)
    tokenizer = quickstart.train_tokenizer(texts_of(given.root), VOCABULARY)
    quickstart.save_tokenizer(tokenizer, given.output)
    num_weights = save_random_llama(given.output, tokenizer, SHAPE)
    files = {"weights": "model.safetensors", "tokenizer": "tokenizer.json"}
    line = {
        "num_weights": num_weights,
        **{name: _hash(given.output / file) for name, file in files.items()},
        "versions": {name: version(name) for name in ("torch", "transformers", "tokenizers")},
    }
    sys.stdout.write(json.dumps(line) + "\n")
    return 0


def _hash(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
