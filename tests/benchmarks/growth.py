"""How a training step's time grows with the rows' length, their number and the vocabulary.

    python tests/benchmarks/growth.py --repeats 5

Forward and backward pass of ETW on random rows of a random Llama (width 128, two layers), whose
sizes double from one to the next, by turns, on one thread, in process time. Prints one line of
JSON: for each quantity its sizes, the median seconds at each, and the slope of a line through the
logarithms of both, where 1 is in proportion and 2 is quadratic; and versions. Ends with 1 if a
slope is above 1.05.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

from etw_lightning.kernels.signals import TokenSignals
from etw_lightning.models.label_scorer import LabelScorer

MOST = 1.05
#: What is held while another quantity grows.
HELD = {"tokens": 64, "rows": 8, "vocabulary": 4096}
SIZES = {
    "tokens": (32, 64, 128, 256, 512),
    "rows": (4, 8, 16, 32, 64),
    "vocabulary": (4096, 8192, 16384, 32768, 65536),
}


def loss_of(signals: TokenSignals) -> torch.Tensor:
    """Return an entropy-weighted forget term of all rows."""
    assert signals.entropies is not None
    total = torch.zeros(signals.num_rows).index_add_(0, signals.rows, signals.entropies)
    return (signals.entropies / total[signals.rows] * signals.logps).sum()


def step_of(tokens: int, rows: int, vocabulary: int) -> Callable[[], None]:
    """Return a step of some size; half of each row is labelled."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
    )
    scorer = LabelScorer(LlamaForCausalLM(config)).train()
    ids = torch.randint(vocabulary, (rows, tokens))
    mask, labels = torch.ones_like(ids), ids.clone()
    labels[:, : tokens // 2] = -100

    def step() -> None:
        scorer.zero_grad()
        loss_of(scorer(ids, mask, labels, {"entropies"})).backward()

    return step


def main(args: list[str] | None = None) -> int:
    """Measure and print.

    Returns:
        1 if a quantity's time grows by more than it may.
    """
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args(args)
    torch.set_num_threads(1)
    line: dict[str, object] = {}
    slopes = []
    for name, sizes in SIZES.items():
        steps = {size: step_of(**{**HELD, name: size}) for size in sizes}
        spent: dict[int, list[float]] = {size: [] for size in sizes}
        for repeat in range(given.repeats + 1):
            for size, step in steps.items():
                start = time.process_time()
                step()
                if repeat:
                    spent[size].append(time.process_time() - start)
        middle = [statistics.median(spent[size]) for size in sizes]
        slopes.append(float(np.polyfit(np.log(sizes), np.log(middle), 1)[0]))
        line[name] = {
            "sizes": sizes,
            "seconds": [round(one, 4) for one in middle],
            "slope": round(slopes[-1], 3),
        }
    line["versions"] = {"torch": torch.__version__, "transformers": transformers.__version__}
    sys.stdout.write(json.dumps(line) + "\n")
    return int(max(slopes) > MOST)


if __name__ == "__main__":
    sys.exit(main())
