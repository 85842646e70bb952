"""The pieces of ``tests/gpu/run.sh``; each leaves a file, and is left alone where it has one.

* ``train_step``: a step of ETW on random rows of TOFU's lengths on a tiny Llama, by turns: plain (a
  padded pass with all logits for each stream), padded, and laid out.
* ``llama_1b``: the same with AdamW for a Llama of Llama-3.2-1B's shape and random weights, its
  share of the rate of a large matrix product measured beside it, and its peak memory.
* ``head``: the output head against its three products, all logits and ``linear_cross_entropy``,
  both ways (``model.head_kernel``) where there is Triton.
* ``synchronisations``: how often the laid-out step makes the processor wait for the device.
* ``tests``: whether those of this folder pass, and those of the kernels.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from etw_lightning.kernels import fused_rows
from etw_lightning.kernels.head import linear_scores
from etw_lightning.kernels.signals import TokenSignals
from etw_lightning.models.label_scorer import LabelScorer
from etw_lightning.models.packed_attention import moved
from etw_lightning.schema import IGNORE_INDEX, EncodedRow
from etw_lightning.training.training_batches import Batch, collate

ROOT = Path(__file__).parents[2]
#: Seconds of all pieces together, and of the tests.
BUDGET, TESTS = 600, 300
LAMBDA = 0.1
#: Tokens that all rows begin with, as a chat template's.
COMMON = 28
TINY = {"vocab_size": 1000, "hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 4}
TINY |= {"num_attention_heads": 4, "num_key_value_heads": 2}
LLAMA_1B = {
    "vocab_size": 128_256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "tie_word_embeddings": True,
}


@dataclass(frozen=True)
class Where:
    """Where and how large.

    Args:
        device: ``cuda`` or ``cpu``.
        small: Sizes that take seconds on a processor.
    """

    device: torch.device
    small: bool

    @property
    def repeats(self) -> int:
        """Times that are measured of each."""
        return 2 if self.small else 10

    def settle(self) -> None:
        """Wait until all is done that was asked for."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def seconds(self, work: Callable[[], Any]) -> float:
        """Return how long something takes."""
        self.settle()
        start = time.perf_counter()
        work()
        self.settle()
        return time.perf_counter() - start

    def forget_peak(self) -> None:
        """Begin to look for a peak of memory."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()

    def peak_gib(self) -> float | None:
        """Return the peak since; None on a processor."""
        if self.device.type != "cuda":
            return None
        return round(torch.cuda.max_memory_allocated() / 2**30, 3)


def by_turns(where: Where, ways: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Return the median seconds of some ways to the same, one after the other, warm."""
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(where.repeats + 1):
        for name, way in ways.items():
            taken = where.seconds(way)
            if repeat:
                spent[name].append(taken)
    return {name: statistics.median(times) for name, times in spent.items()}


def ratios(seconds: dict[str, float], of: str) -> dict[str, float]:
    """Return how many times as fast as one of them each way is."""
    return {name: round(seconds[of] / one, 3) for name, one in seconds.items()}


def model(where: Where, shape: dict[str, Any], dtype: torch.dtype) -> LabelScorer:
    """Return a Llama with random weights."""
    torch.manual_seed(0)
    with where.device:
        lm = LlamaForCausalLM(LlamaConfig(**shape, max_position_embeddings=1024))
    return LabelScorer(lm.to(dtype)).train()


def rows_of(num: int, size: int, seed: int = 0) -> list[EncodedRow]:
    """Return rows that begin alike, then a question, then a labelled answer."""
    draw = random.Random(seed)
    common = tuple(range(1, COMMON + 1))
    rows = []
    for number in range(num):
        question, answer = (
            tuple(draw.randrange(size) for _ in range(draw.randint(*span)))
            for span in ((12, 24), (24, 90))
        )
        silent = (IGNORE_INDEX,) * (COMMON + len(question))
        rows.append(EncodedRow(str(number), common + question + answer, silent + answer))
    return rows


def weighted(logps: Tensor, entropies: Tensor, rows: Tensor, num: int) -> Tensor:
    """Return ETW's forget term."""
    total = torch.zeros(num, device=logps.device).index_add_(0, rows, entropies)
    return (entropies / total[rows] * logps).sum() / num


def our_loss(signals: TokenSignals, num: int) -> Tensor:
    """Return the loss of half forget and half retain rows."""
    assert signals.entropies is not None
    is_forget = (signals.rows < num).float()
    rows = signals.rows.clamp(max=num - 1)
    forget = weighted(signals.logps * is_forget, signals.entropies * is_forget, rows, num)
    return LAMBDA * forget - (signals.logps * (1 - is_forget)).sum() / num


def on_device(batch: Batch, device: torch.device) -> Any:
    """Return a batch's layout on a device."""
    layout = batch["layout"]
    assert layout is not None
    tensors = {name: getattr(layout, name).to(device) for name in ("labels", "rows", "places")}
    packed = None if layout.packed is None else moved(layout.packed, device)
    return layout._replace(**tensors, packed=packed)


def sides(
    where: Where, scorer: LabelScorer, num: int, parameters: Callable[[], None]
) -> tuple[dict[str, Callable[[], Tensor]], int]:
    """Return a step made plainly, padded and laid out; and the tokens of its rows."""
    size = scorer.lm.config.vocab_size
    batch = collate({"all": rows_of(2 * num, size)}, {}, 1.0, 0)
    names = ("input_ids", "attention_mask", "labels")
    ids, mask, labels = (batch[name].to(where.device) for name in names)
    layout = on_device(batch, where.device)

    def plain() -> Tensor:
        total = torch.zeros((), device=where.device)
        for part in (slice(0, num), slice(num, None)):
            logits = scorer.lm(input_ids=ids[part], attention_mask=mask[part]).logits[:, :-1]
            is_label = labels[part, 1:] != IGNORE_INDEX
            every = logits.float().log_softmax(-1)
            logps = every.gather(-1, labels[part, 1:].clamp(min=0)[..., None])[..., 0][is_label]
            if part.start == 0:
                entropies = -(every.detach().exp() * every.detach()).sum(-1)[is_label]
                loss = LAMBDA * weighted(logps, entropies, is_label.nonzero()[:, 0], num)
            else:
                loss = -logps.sum() / num
            loss.backward()
            total += loss.detach()
        parameters()
        return total

    def ours(laid_out: bool) -> Tensor:
        chosen = layout if laid_out and scorer.takes_packed else None
        loss = our_loss(scorer(ids, mask, labels, {"entropies"}, layout=chosen), num)
        loss.backward()
        parameters()
        return loss.detach()

    ways = {"plain": plain, "padded": lambda: ours(False), "laid_out": lambda: ours(True)}
    return ways, int(mask.sum())


def tests(where: Where) -> dict[str, Any]:
    """Run the tests of this folder, and those of the kernels, which are compiled on CUDA."""
    what = ["tests/gpu", "tests/unit/kernels/test_fused_rows.py", "-k", "strategy or fused_rows"]
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", *what]
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=TESTS, check=False
        )
    except subprocess.TimeoutExpired:
        return {"status": 1, "said": f"not through after {TESTS} s"}
    lines = done.stdout.strip().splitlines()
    return {"status": done.returncode, "said": lines[-1] if lines else done.stderr[-300:]}


def train_step(where: Where) -> dict[str, Any]:
    """Compare a step's passes on a tiny model."""
    dtype = torch.float32
    found: dict[str, Any] = {}
    for num in (4,) if where.small else (4, 16):
        scorer = model(where, TINY, dtype)
        ways, tokens = sides(where, scorer, num, lambda scorer=scorer: scorer.zero_grad())
        losses = {name: way().item() for name, way in ways.items()}
        largest = max(abs(one - losses["plain"]) for one in losses.values())
        assert largest < 1e-4 * abs(losses["plain"]), losses
        seconds = by_turns(where, ways)
        found[f"{num} + {num}"] = {
            "tokens": tokens,
            "seconds": seconds,
            "over_plain": ratios(seconds, "plain"),
            "losses": losses,
        }
    return found


def matmul_rate(where: Where, dtype: torch.dtype) -> float:
    """Return the rate of a large matrix product, operations a second."""
    size = 256 if where.small else 8192
    one = torch.randn(size, size, device=where.device, dtype=dtype)
    taken = by_turns(where, {"product": lambda: one @ one})["product"]
    return float(2 * size**3 / taken)


def llama_1b(where: Where) -> dict[str, Any]:
    """Measure a training step with its optimiser."""
    shape = {**TINY, "num_hidden_layers": 2} if where.small else LLAMA_1B
    dtype = torch.float32 if where.small else torch.bfloat16
    scorer = model(where, shape, dtype)
    optimizer = torch.optim.AdamW(scorer.parameters(), lr=1e-5, fused=where.device.type == "cuda")

    def update() -> None:
        optimizer.step()
        optimizer.zero_grad()

    ways, tokens = sides(where, scorer, 2 if where.small else 8, update)
    found: dict[str, Any] = {"tokens": tokens, "weights": scorer.lm.num_parameters()}
    rate = matmul_rate(where, dtype)
    peaks = {}
    for name, way in ways.items():
        where.forget_peak()
        way()
        peaks[name] = where.peak_gib()
    seconds = by_turns(where, ways)
    # Each weight but the embedding's is multiplied with each token once forward, twice backward.
    embedding = scorer.lm.get_input_embeddings().weight.numel()
    is_tied = bool(scorer.lm.config.tie_word_embeddings)
    products = 6 * tokens * (found["weights"] - (0 if is_tied else embedding))
    found |= {
        "seconds": seconds,
        "over_plain": ratios(seconds, "plain"),
        "tokens_per_second": {name: round(tokens / one, 1) for name, one in seconds.items()},
        "matmul_tflops": round(rate / 1e12, 3),
        "share_of_matmul_rate": {
            name: round(products / one / rate, 4) for name, one in seconds.items()
        },
        "peak_gib": peaks,
    }
    return found


def head(where: Where) -> dict[str, Any]:
    """Time the output head, forward and backward."""
    sizes = [(1000, 64, 32)] if where.small else [(49_152, 576, 512), (128_256, 2048, 2048)]
    dtype = torch.float32 if where.small else torch.bfloat16
    found = {}
    for vocabulary, width, positions in sizes:
        with where.device:
            hidden = torch.randn(positions, width, dtype=dtype).requires_grad_()
            weight = (torch.randn(vocabulary, width) * 0.05).to(dtype).requires_grad_()
            labels = torch.randint(vocabulary, (positions,))
            scale = torch.rand(positions)
        seconds = by_turns(where, head_ways(hidden, weight, labels, scale))
        over = {name: round(one / seconds["products"], 3) for name, one in seconds.items()}
        key = f"V {vocabulary}, D {width}, N {positions}"
        found[key] = {"seconds": seconds, "over_products": over}
    return found


def head_ways(
    hidden: Tensor, weight: Tensor, labels: Tensor, scale: Tensor
) -> dict[str, Callable[[], None]]:
    """Return what is compared; all but the bare products end in gradients."""

    @torch.no_grad()
    def products() -> None:
        logits = hidden @ weight.T
        _ = logits @ weight, logits.T @ hidden

    def full() -> None:
        logps = functional.linear(hidden, weight).float().log_softmax(-1)
        with torch.no_grad():
            _ = -(logps.exp() * logps).sum(-1)
        (logps.gather(-1, labels[:, None])[:, 0] * scale).sum().backward()

    def fused() -> None:
        losses = functional.linear_cross_entropy(hidden, weight, labels, reduction="none")
        (losses * -scale).sum().backward()

    def ours(kernels: bool) -> None:
        (linear_scores(hidden, weight, labels, fused=kernels).logps * scale).sum().backward()

    ways = {"products": products, "full": full, "torch": fused, "ours": lambda: ours(False)}
    if not fused_rows.missing(hidden.device):
        ways["ours, triton"] = lambda: ours(True)
    return ways


def synchronisations(where: Where) -> dict[str, Any]:
    """Count where a laid-out step makes the processor wait; only CUDA can tell."""
    scorer = model(where, {**TINY, "num_hidden_layers": 2}, torch.float32)
    ways, _ = sides(where, scorer, 4, lambda: scorer.zero_grad())
    ways["laid_out"]()
    if where.device.type != "cuda":
        return {"waits": None, "why": "torch.cuda.set_sync_debug_mode tells of CUDA alone"}
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            ways["laid_out"]()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    places = [f"{Path(one.filename).name}:{one.lineno}" for one in said]
    return {"waits": len(places), "places": sorted(set(places))}


PIECES: dict[str, Callable[[Where], dict[str, Any]]] = {
    "train_step": train_step,
    "llama_1b": llama_1b,
    "head": head,
    "synchronisations": synchronisations,
    "tests": tests,
}


def versions(where: Where) -> dict[str, Any]:
    """Return what was measured on, and with what."""
    is_cuda = where.device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name() if is_cuda else platform.machine(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "small": where.small,
    }


def write(path: Path, found: dict[str, Any]) -> None:
    """Write a file whole or not at all."""
    path.with_suffix(".part").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    path.with_suffix(".part").replace(path)


def main(arguments: list[str] | None = None) -> int:
    """Make the pieces that are missing, and put all into one file.

    Returns:
        1 if there is no such device, a piece failed or there was no time for it.
    """
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"))
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--small", action="store_true", help="sizes to try the programs with")
    parser.add_argument("--only", nargs="*", choices=PIECES, default=list(PIECES))
    given = parser.parse_args(arguments)
    if given.device == "cuda" and not torch.cuda.is_available():
        sys.stderr.write("there is no CUDA device; --device cpu --small tries the programs\n")
        return 1
    where = Where(torch.device(given.device), given.small)
    given.out.mkdir(parents=True, exist_ok=True)
    began, failed = time.monotonic(), []
    for name in given.only:
        path = given.out / f"{name}.json"
        if path.exists():
            sys.stdout.write(f"{name}: there already ({path})\n")
            continue
        if time.monotonic() - began > BUDGET - TESTS and name == "tests":
            sys.stdout.write(f"{name}: no time left; the same command goes on with it\n")
            failed.append(name)
            continue
        start = time.monotonic()
        found = PIECES[name](where)
        seconds = round(time.monotonic() - start, 1)
        if found.get("status", 0):
            sys.stdout.write(f"{name}: failed, {found['said']}\n")
            failed.append(name)
            continue
        write(path, {"seconds": seconds, "on": versions(where), "found": found})
        sys.stdout.write(f"{name}: {seconds} s\n")
        sys.stdout.flush()
    done = {name: given.out / f"{name}.json" for name in PIECES}
    parts = {
        name: json.loads(path.read_text(encoding="utf-8"))
        for name, path in done.items()
        if path.exists()
    }
    date = time.strftime("%Y-%m-%d", time.gmtime())
    write(given.out / "gpu.json", {"date": date, "missing": sorted({*PIECES} - {*parts}), **parts})
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
