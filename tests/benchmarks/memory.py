"""How near the predicted memory of a run comes to what it takes, on the CPU.

Random Llamas unlearn a few rows, each in a process of its own with one thread, through the module
and the trainer that ``fit`` uses. Measured is the highest resident set (VmHWM) of the steps after
the first two, less what the process held before it loaded the model; predicted is
``predict_footprint`` of the same configuration, which never sees the model.

    python tests/benchmarks/memory.py

prints both with their ratio and ends with 1 if one is off by more than 15 %. ``--llama`` prints
instead what is predicted for Llama-3.1-8B under each strategy.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import random
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

#: Freed memory goes back at once: an allocator that keeps it would be measured instead.
ALLOCATOR = {
    "OMP_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
    "TOKENIZERS_PARALLELISM": "false",
}
TOLERANCE = 0.15
STEPS = 4


@dataclass(frozen=True)
class Case:
    """A model and how it is trained."""

    name: str
    layers: int = 8
    width: int = 640
    vocabulary: int = 8192
    rows: int = 4
    tokens: int = 256
    dtype: str = "float32"
    precision: str = "32-true"
    checkpointing: bool = False
    reference: str | None = None
    train_only: str | None = None
    tied: bool = False
    accumulate: int = 1


CASES = (
    Case("float32"),
    Case("float32, checkpointing", checkpointing=True),
    Case("bf16-true", dtype="bfloat16", precision="bf16-true"),
    Case("bf16-true, checkpointing", dtype="bfloat16", precision="bf16-true", checkpointing=True),
    Case("bf16-mixed", precision="bf16-mixed"),
    Case("bf16-mixed, checkpointing", precision="bf16-mixed", checkpointing=True),
    Case("large vocabulary", layers=4, width=512, vocabulary=131072, tokens=128),
    Case(
        "large vocabulary, bf16-true",
        layers=4,
        width=512,
        vocabulary=131072,
        tokens=128,
        dtype="bfloat16",
        precision="bf16-true",
    ),
    Case("large tied vocabulary", layers=4, width=512, vocabulary=131072, tokens=128, tied=True),
    Case("live reference", reference="live", tokens=160),
    Case("frozen but the last layers", train_only=r"model\.layers\.[67]\..*", checkpointing=True),
    Case("accumulated", tokens=64, accumulate=2),
    Case("200 M weights", layers=12, width=1024, vocabulary=16384, tokens=64),
)
#: What can be measured in seconds.
SMALL = Case("small", layers=2, width=512, vocabulary=16384, tokens=160)


def llama_config(case: Case) -> Any:
    """Return the configuration of a case's model."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=case.vocabulary,
        hidden_size=case.width,
        intermediate_size=3 * case.width,
        num_hidden_layers=case.layers,
        num_attention_heads=case.width // 64,
        num_key_value_heads=case.width // 128,
        max_position_embeddings=4096,
        tie_word_embeddings=case.tied,
    )


def run_shape(case: Case) -> Any:
    """Return what decides a case's memory."""
    from etw_lightning.memory.run_needs import RunShape

    return RunShape(
        rows=2 * case.rows,
        tokens=case.tokens,
        dtype=case.dtype,
        precision=case.precision,
        gradient_checkpointing=case.checkpointing,
        reference=case.reference,
        train_only=None if case.train_only is None else [case.train_only],
        accumulates=case.accumulate > 1,
        on_cuda=False,
    )


def predict(case: Case) -> int:
    """Return the predicted bytes of a case."""
    from etw_lightning.memory.prediction import predict_footprint
    from etw_lightning.memory.run_needs import run_needs

    return predict_footprint(run_needs(llama_config(case), run_shape(case)), "single", 1).total


# What one process does.


def build(case: Case, folder: Path) -> None:
    """Write a random model and the rows of both streams; forget rows have all their tokens."""
    import torch
    from transformers import AutoModelForCausalLM

    from etw_lightning.benchmarks.quickstart import save_tokenizer, train_tokenizer
    from etw_lightning.models.loading import load_tokenizer

    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=4)) for _ in range(100)]
    num_rows = STEPS * case.rows * case.accumulate

    def text(length: int) -> str:
        return " ".join(draw.choices(words, k=length))

    # The text is cut into whole rows; those of the other stream are shorter, so there is padding.
    streams = {
        "forget": [text(num_rows * case.tokens)],
        "retain": [text(case.tokens - 8) for _ in range(num_rows)],
    }
    for name, texts in streams.items():
        lines = "".join(json.dumps({"text": one}) + "\n" for one in texts)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    tokenizer = train_tokenizer(streams["retain"] + words, vocab_size=1200)
    save_tokenizer(tokenizer, folder / "model")
    loaded = load_tokenizer(str(folder / "model"))
    torch.manual_seed(0)
    config = llama_config(case)
    for name in ("bos", "eos", "pad"):
        setattr(config, f"{name}_token_id", getattr(loaded, f"{name}_token_id"))
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "model")


def train(case: Case, folder: Path) -> int:
    """Train a few steps; return the highest resident set of all but the first, bytes."""
    import torch
    from lightning.pytorch import Callback, Trainer, seed_everything

    from etw_lightning.forget import GA, NPO
    from etw_lightning.training.datamodule import UnlearningDataModule
    from etw_lightning.training.module import UnlearningModule
    from etw_lightning.weighting import Uniform

    class Watch(Callback):
        """Leaves out the first step, and with it how the model was loaded."""

        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            if trainer.global_step == 1:
                reset_peak()

    torch.set_num_threads(1)
    seed_everything(0, verbose=False)
    trainer = Trainer(
        accelerator="cpu",
        precision=case.precision,
        max_steps=STEPS,
        accumulate_grad_batches=case.accumulate,
        gradient_clip_val=1.0,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        logger=False,
        callbacks=[Watch()],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module = UnlearningModule(
        str(folder / "model"),
        weighting=Uniform(),
        forget=GA() if case.reference is None else NPO(),
        reference=case.reference or "cache",
        dtype=case.dtype,
        gradient_checkpointing=case.checkpointing,
        train_only=None if case.train_only is None else [case.train_only],
    )
    data = UnlearningDataModule(
        "jsonl",
        root=str(folder),
        forget_split="forget",
        retain_split="retain",
        template="plain",
        max_length=case.tokens,
        batch_size=case.rows,
        seed=0,
    )
    trainer.fit(module, datamodule=data)
    return status_bytes("VmHWM")


def measure(case: Case, folder: Path) -> int:
    """Return what the steps of a case take beside what the process holds before, bytes."""
    (folder / "first").mkdir()
    first = replace(case, layers=1, width=128, vocabulary=1200, rows=1, tokens=16, train_only=None)
    build(first, folder / "first")
    # What the libraries keep for good is there after a first run.
    train(first, folder / "first")
    base = reset_peak()
    return train(case, folder) - base


def reset_peak() -> int:
    """Forget the highest resident set so far; return what is resident now, bytes."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return status_bytes("VmRSS")


def status_bytes(name: str) -> int:
    """Return a line of this process's status, bytes."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(f"{name}:")).split()[1])


# All cases, and their table.


def run_case(case: Case) -> dict[str, Any]:
    """Predict a case here, and measure it in a fresh process."""
    with tempfile.TemporaryDirectory() as folder:
        build(case, Path(folder))
        done = subprocess.run(
            [sys.executable, __file__, "--measure", json.dumps(asdict(case)), folder],
            env={**os.environ, **ALLOCATOR, "ETW_CACHE": f"{folder}/cache"},
            capture_output=True,
            text=True,
        )
    if done.returncode:
        raise SystemExit(f"{done.stderr}\n{case.name}: the run failed.")
    measured = int(done.stdout.splitlines()[-1])
    predicted = predict(case)
    return {
        "case": case.name,
        "predicted_mb": round(predicted / 2**20),
        "measured_mb": round(measured / 2**20),
        "ratio": round(predicted / measured, 3),
    }


def llama_tables() -> str:
    """Return what Llama-3.1-8B needs, 4 + 4 rows of 512 tokens, in two precisions."""
    from transformers import LlamaConfig

    from etw_lightning.memory.prediction import GIB
    from etw_lightning.memory.run_needs import RunShape, needs_by_strategy
    from etw_lightning.memory.table import memory_table

    config = LlamaConfig(
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        tie_word_embeddings=False,
    )
    evaluation = {"eval_rows": 32, "eval_tokens": 512, "new_tokens": 200}
    shape = RunShape(rows=8, tokens=512, gradient_checkpointing=True, **evaluation)
    parts = []
    for dtype, precision in (("bfloat16", "bf16-true"), ("float32", "bf16-mixed")):
        needs = needs_by_strategy(config, replace(shape, dtype=dtype, precision=precision))
        parts += [f"{dtype} weights, {precision}", memory_table(needs, 80 * GIB), ""]
    return "\n".join(parts)


def main(args: list[str] | None = None) -> int:
    """Read the command line, measure, print.

    Returns:
        1 if a prediction is off by more than it may be.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", help="names of cases")
    parser.add_argument("--llama", action="store_true", help="the table of Llama-3.1-8B alone")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args(args)
    if given.measure:
        case, folder = given.measure
        sys.stdout.write(f"{measure(Case(**json.loads(case)), Path(folder))}\n")
        return 0
    if given.llama:
        sys.stdout.write(llama_tables())
        return 0
    ratios = []
    for case in CASES:
        if given.only and case.name not in given.only:
            continue
        line = run_case(case)
        ratios.append(line["ratio"])
        sys.stdout.write("  ".join(f"{name} {value}" for name, value in line.items()) + "\n")
        sys.stdout.flush()
    return int(any(abs(ratio - 1) > TOLERANCE for ratio in ratios))


if __name__ == "__main__":
    sys.exit(main())
