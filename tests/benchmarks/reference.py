"""What the reference model costs: values in a file, a frozen copy, or the adapter switched off.

A random Llama unlearns a few rows with a loss that reads the target model's log-probabilities
(``npo``) and with one that reads its distributions (``kl``, ``undial``), each way in a process of
its own, with one thread. The first epoch includes loading the model and, with ``cache``, computing
the values, for which every process starts with an empty cache.

    python tests/benchmarks/reference.py

prints a table, and with ``--json`` one line of JSON for each way:

* ``peak_mb``: highest resident set (VmHWM) less what the process held before it loaded the model;
  null where the system has no such mark;
* ``tensor_mb``: the most that all tensors took together at the end of a step;
* ``file_mb``: the files of reference values;
* ``first_epoch_seconds``, ``later_epoch_seconds``: process time, of the later ones the median;
* ``loss``: mean total loss of the first epoch;
* ``to_live``: each of these numbers over that of ``live``, of the same method and weights.

``lora`` trains an adapter; only then is there anything to switch off. Ways whose loss must be the
same, all but ``cache`` with distributions of which only the largest are kept, are compared first.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

TRAINED = {"all": ("live", "cache"), "lora": ("live", "cache", "adapter")}
METHODS = ("npo", "kl", "undial")
MEASURES = ("peak_mb", "tensor_mb", "first_epoch_seconds", "later_epoch_seconds")
TOLERANCE = 1e-3


# What one process does.


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Train one way and return what it took."""
    import torch
    from lightning.pytorch import Callback, Trainer, seed_everything

    from etw_lightning.forget import GA, NPO, UNDIAL
    from etw_lightning.retain import KL, NLL
    from etw_lightning.training.datamodule import UnlearningDataModule
    from etw_lightning.training.module import UnlearningModule
    from etw_lightning.weighting import Uniform

    class Watch(Callback):
        """Keeps when epochs end, their losses, and how much the tensors take."""

        def __init__(self) -> None:
            self.ends: list[float] = []
            self.losses: list[float] = []
            self.tensor_bytes = 0

        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            self.losses.append(float(trainer.callback_metrics["loss/total"]))
            self.tensor_bytes = max(self.tensor_bytes, _tensor_bytes(torch.Tensor))

        def on_train_epoch_end(self, trainer: Trainer, *_: Any) -> None:
            self.ends.append(time.process_time())

    method, trained, reference = given.measure
    parts: dict[str, dict[str, Any]] = {
        "npo": {"forget": NPO(), "retain": NLL()},
        "kl": {"forget": GA(), "retain": KL()},
        "undial": {"forget": UNDIAL(), "retain": NLL()},
    }
    lora = {"peft_type": "LORA", "r": 8, "target_modules": "all-linear"}
    torch.set_num_threads(1)
    seed_everything(0, verbose=False)
    watch = Watch()
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=given.epochs,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        logger=False,
        callbacks=[watch],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    base, start = _reset_peak(), time.process_time()
    module = UnlearningModule(
        str(given.folder / "model"),
        weighting=Uniform(),
        reference=reference,
        reference_top_k=given.top_k,
        peft=lora if trained == "lora" else None,
        lr=1e-4,
        **parts[method],
    )
    data = UnlearningDataModule(
        "jsonl",
        root=str(given.folder),
        forget_split="forget",
        retain_split="retain",
        batch_size=given.batch_size,
        seed=0,
    )
    trainer.fit(module, datamodule=data)
    epochs = [end - begin for begin, end in zip([start, *watch.ends], watch.ends, strict=False)]
    files = Path(os.environ["ETW_CACHE"]).rglob("*.safetensors")
    steps = len(watch.losses) // given.epochs
    return {
        "peak_mb": None if base is None else round(_status_mb("VmHWM") - base, 1),
        "tensor_mb": round(watch.tensor_bytes / 2**20, 1),
        "file_mb": round(sum(file.stat().st_size for file in files) / 2**20, 2),
        "first_epoch_seconds": round(epochs[0], 3),
        "later_epoch_seconds": round(statistics.median(epochs[1:]), 3),
        "loss": statistics.fmean(watch.losses[:steps]),
    }


def _tensor_bytes(kind: type) -> int:
    """Return the bytes of all tensors alive, gradients too, what they share counted once."""
    # Not ``isinstance``: it would wake modules that load when they are looked at.
    tensors: list[Any] = [one for one in gc.get_objects() if issubclass(type(one), kind)]
    tensors += [one.grad for one in tensors if one.is_leaf and one.grad is not None]
    storages = {one.untyped_storage().data_ptr(): one.untyped_storage() for one in tensors}
    return sum(storage.nbytes() for storage in storages.values())


def _reset_peak() -> float | None:
    """Forget the highest resident set so far; return what is resident now, if that can be known."""
    gc.collect()
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    return _status_mb("VmRSS")


def _status_mb(name: str) -> float:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) / 1024


# What is trained, and on what.


def build(given: argparse.Namespace) -> None:
    """Write a random model and the rows of both streams."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from etw_lightning.benchmarks.quickstart import save_tokenizer, train_tokenizer
    from etw_lightning.models.loading import load_tokenizer

    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=5)) for _ in range(200)]
    texts = []
    for name in ("forget", "retain"):
        rows = [
            {
                "question": f"What of {name} {number}?",
                "answer": " ".join(draw.choices(words, k=given.words)),
            }
            for number in range(given.rows)
        ]
        texts += [text for row in rows for text in row.values()]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (given.folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    folder = given.folder / "model"
    save_tokenizer(train_tokenizer(texts, vocab_size=min(1500, given.vocabulary)), folder)
    tokenizer = load_tokenizer(str(folder))
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=given.vocabulary,
        hidden_size=given.width,
        intermediate_size=3 * given.width,
        num_hidden_layers=given.layers,
        num_attention_heads=given.width // 64 or 1,
        num_key_value_heads=given.width // 64 or 1,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


# All ways, and their table.


def measure_all(given: argparse.Namespace) -> list[dict[str, Any]]:
    """Run every way in a fresh process, and relate it to ``live``."""
    found: list[dict[str, Any]] = []
    for method in given.methods:
        for trained in given.trained:
            ways = [way for way in TRAINED[trained] if way in given.references]
            lines = [_in_a_process(given, method, trained, way) for way in ways]
            live = next((line for line in lines if line["reference"] == "live"), None)
            for line in lines:
                if live is not None:
                    _check_same(live, line, given)
                    line["to_live"] = {
                        name: round(line[name] / live[name], 3) for name in MEASURES if live[name]
                    }
            found += lines
    return found


def _in_a_process(
    given: argparse.Namespace, method: str, trained: str, reference: str
) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as cache:
        done = subprocess.run(
            [
                *(sys.executable, __file__, "--folder", str(given.folder)),
                *("--measure", method, trained, reference),
                *("--epochs", str(given.epochs), "--batch_size", str(given.batch_size)),
                *("--top_k", str(given.top_k)),
            ],
            env={**os.environ, "ETW_CACHE": cache},
            capture_output=True,
            text=True,
        )
    if done.returncode:
        raise SystemExit(f"{done.stderr}\n{method}, {trained}, {reference}: the run failed.")
    # What libraries say to the screen stands before it.
    said = json.loads(done.stdout.splitlines()[-1])
    return {"method": method, "trained": trained, "reference": reference, **said}


def _check_same(live: dict[str, Any], line: dict[str, Any], given: argparse.Namespace) -> None:
    is_exact = line["method"] == "npo" or given.top_k >= given.vocabulary
    if line["reference"] == "cache" and not is_exact:
        return
    if abs(line["loss"] - live["loss"]) > TOLERANCE * abs(live["loss"]):
        raise SystemExit(
            f"{line['method']}, {line['trained']}: the loss is {live['loss']} with live, "
            f"{line['loss']} with {line['reference']}; they must be the same."
        )


def table(lines: list[dict[str, Any]]) -> str:
    """Return the numbers as text, each with its ratio to ``live``."""
    heads = ("method", "trained", "reference", *MEASURES, "file_mb", "loss")
    rows = [list(heads)]
    for line in lines:
        ratios = line.get("to_live", {})
        row = [line[name] for name in heads[:3]]
        for name in MEASURES:
            ratio = f" ({ratios[name]:.2f})" if name in ratios else ""
            row.append("-" if line[name] is None else f"{line[name]:.1f}{ratio}")
        rows.append([*row, f"{line['file_mb']:.2f}", f"{line['loss']:.5f}"])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def main(args: list[str] | None = None) -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--vocabulary", type=int, default=16384)
    parser.add_argument("--rows", type=int, default=24, help="of each stream")
    parser.add_argument("--words", type=int, default=20, help="of each answer")
    parser.add_argument("--batch_size", type=int, default=4, help="rows of each stream in a step")
    parser.add_argument("--epochs", type=int, default=3, help="at least 2")
    parser.add_argument("--top_k", type=int, default=128)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=["npo", "kl"])
    parser.add_argument("--trained", nargs="+", choices=TRAINED, default=list(TRAINED))
    parser.add_argument(
        "--references", nargs="+", choices=TRAINED["lora"], default=list(TRAINED["lora"])
    )
    parser.add_argument("--json", action="store_true", help="one line for each way, no table")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args(args)
    if given.epochs < 2:
        parser.error("--epochs must be at least 2, for the first one is told from later ones.")
    if given.measure:
        sys.stdout.write(json.dumps(measure(given)) + "\n")
        return
    with tempfile.TemporaryDirectory() as folder:
        given.folder = Path(folder)
        build(given)
        lines = measure_all(given)
    said = "\n".join(map(json.dumps, lines)) if given.json else table(lines)
    sys.stdout.write(said + "\n")


if __name__ == "__main__":
    main()
