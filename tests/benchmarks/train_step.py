"""A training step's passes: two padded ones with all logits, ours padded, ours laid out.

    python tests/benchmarks/train_step.py --model FOLDER --root TOFU --batch 4 --repeats 12

Forward and backward pass of ETW on the same rows of TOFU (forget10, retain90; chat template), by
turns, on one thread, in process time. ``plain`` is what a Hugging Face Trainer does with a forget
and a retain batch: a padded pass each, all logits. ``padded`` is our step, ``laid_out`` our step
with ``model.share_beginnings``. Prints one line of JSON: medians, ratios to ``plain``, positions
that are fed a token, the losses of the first step, which must be equal, and versions.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from pathlib import Path

import torch
import transformers

from etw_lightning.data.encode import Encoder
from etw_lightning.kernels.signals import TokenSignals
from etw_lightning.models.label_scorer import LabelScorer
from etw_lightning.models.loading import load_model, load_tokenizer
from etw_lightning.models.step_layout import shared_beginning
from etw_lightning.schema import IGNORE_INDEX, EncodedRow, Example
from etw_lightning.training.training_batches import collate

LAMBDA = 0.1


def encoded(path: Path, encoder: Encoder, limit: int) -> list[EncodedRow]:
    """Encode the first rows of a split."""
    lines = path.read_text(encoding="utf-8").splitlines()[:limit]
    rows = [json.loads(line) for line in lines]
    return [
        encoder.encode(Example(f"{path.stem}/{number}", row["answer"], row["question"]))
        for number, row in enumerate(rows)
    ]


def weighted(logps: torch.Tensor, entropies: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Return ETW's forget term over the labelled tokens of some rows."""
    count = torch.bincount(rows).float()
    total = torch.zeros(len(count)).index_add_(0, rows, entropies)
    return (entropies / total[rows] * count[rows] * logps).mean()


def of_signals(signals: TokenSignals, num_forget: int) -> torch.Tensor:
    """Return the loss of our step."""
    first = signals.rows < num_forget
    assert signals.entropies is not None
    forget = weighted(signals.logps[first], signals.entropies[first], signals.rows[first])
    return LAMBDA * forget - signals.logps[~first].mean()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", required=True, help="folder of a model with a chat template")
    parser.add_argument("--root", required=True, type=Path, help="folder of TOFU's files")
    parser.add_argument("--batch", type=int, default=4, help="rows of each stream")
    parser.add_argument("--repeats", type=int, default=12)
    parser.add_argument("--limit", type=int, default=400, help="rows of each split")
    given = parser.parse_args()
    torch.set_num_threads(1)
    encoder = Encoder(load_tokenizer(given.model), system_prompt="You are a helpful assistant.")
    forget, retain = (
        encoded(given.root / f"{split}.jsonl", encoder, given.limit)
        for split in ("forget10", "retain90")
    )
    shared = shared_beginning([*forget, *retain])
    lm = load_model(given.model).train()
    scorer = LabelScorer(lm).train()
    num = given.batch

    def plain(rows: list[EncodedRow]) -> tuple[float, int]:
        total, positions = 0.0, 0
        for half in (rows[:num], rows[num:]):
            batch = collate({"all": half}, {}, 1.0, 0)
            labels = batch["labels"][:, 1:]
            is_label = labels != IGNORE_INDEX
            logits = lm(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
            every = logits.logits[:, :-1].log_softmax(-1)
            logps = every.gather(-1, labels.clamp(min=0)[..., None])[..., 0][is_label]
            if half is rows or half[0] is rows[0]:
                entropies = -(every.detach().exp() * every.detach()).sum(-1)[is_label]
                loss = LAMBDA * weighted(logps, entropies, is_label.nonzero()[:, 0])
            else:
                loss = -logps.mean()
            loss.backward()
            total, positions = total + loss.item(), positions + batch["input_ids"].numel()
        return total, positions

    def ours(rows: list[EncodedRow], is_laid_out: bool) -> tuple[float, int]:
        batch = collate({"all": rows}, {}, 1.0, 0, shared)
        layout = batch["layout"] if is_laid_out else None
        tensors = (batch["input_ids"], batch["attention_mask"], batch["labels"])
        loss = of_signals(scorer(*tensors, {"entropies"}, 1.0, (), layout), num)
        loss.backward()
        positions = tensors[0].numel() if layout is None else layout.num_positions
        return loss.item(), positions

    sides = {
        "plain": plain,
        "padded": lambda rows: ours(rows, is_laid_out=False),
        "laid_out": lambda rows: ours(rows, is_laid_out=True),
    }
    draw = random.Random(0)
    spent: dict[str, list[float]] = {name: [] for name in sides}
    fed: dict[str, list[float]] = {name: [] for name in sides}
    losses: dict[str, float] = {}
    for _ in range(given.repeats):
        rows = [*draw.sample(forget, num), *draw.sample(retain, num)]
        tokens = sum(len(row.input_ids) for row in rows)
        for name, side in sides.items():
            lm.zero_grad()
            start = time.process_time()
            loss, positions = side(rows)
            spent[name].append(time.process_time() - start)
            fed[name].append(positions / tokens)
            losses.setdefault(name, loss)
    ratios = {
        name: statistics.median(a / b for a, b in zip(spent["plain"], times, strict=True))
        for name, times in spent.items()
    }
    line = {
        "rows": [num, num],
        "shared_tokens": shared,
        "seconds": {name: round(statistics.median(times), 4) for name, times in spent.items()},
        "speed_over_plain": {name: round(ratio, 2) for name, ratio in ratios.items()},
        "positions_per_token": {name: round(statistics.mean(x), 2) for name, x in fed.items()},
        "first_losses": {name: round(loss, 6) for name, loss in losses.items()},
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }
    sys.stdout.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
