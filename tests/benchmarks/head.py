"""The output head's forward and backward pass against the products that no way gets around.

    python tests/benchmarks/head.py --vocab 49152 --width 576 --positions 512

Ways alternate in one process; on a processor on one thread, in process time, with ``--device cuda``
until the device has done what was asked for. ``products`` are the three matrix
products of a loss that depends on logits (the logits, and the gradients of hidden states and of
the head), ``full`` keeps all logits as autograd does, with entropies, ``torch`` is PyTorch's
``linear_cross_entropy``, without entropies, ``ours`` is ``linear_scores`` with entropies, and
``ours, triton`` the same by the kernels of ``model.head_kernel: triton``, where the device has
them; where it has not, ``skipped`` says why. Prints one line of JSON: median seconds, ratios to
``products``, the largest difference of a gradient from that of ``full`` over its largest number,
and versions.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from etw_lightning.kernels import fused_rows
from etw_lightning.kernels.head import linear_scores

TRITON = "ours, triton"


def ways_of(hidden: Tensor, weight: Tensor, labels: Tensor, chunk: int) -> dict[str, Callable]:
    """Return what is compared; all but the bare products end in gradients."""
    generator = torch.Generator().manual_seed(1)
    token_weights = torch.rand(len(labels), generator=generator).to(labels.device)

    @torch.no_grad()
    def products() -> None:
        logits = hidden @ weight.T
        _ = logits @ weight, logits.T @ hidden

    def full() -> None:
        logps = functional.linear(hidden, weight).float().log_softmax(-1)
        with torch.no_grad():
            _ = -(logps.exp() * logps).sum(-1)
        (logps.gather(-1, labels[:, None])[:, 0] * token_weights).sum().backward()

    def fused() -> None:
        losses = functional.linear_cross_entropy(hidden, weight, labels, reduction="none")
        (losses * -token_weights).sum().backward()

    def ours(kernels: bool) -> None:
        scores = linear_scores(hidden, weight, labels, chunk_size=chunk, fused=kernels)
        (scores.logps * token_weights).sum().backward()

    ways = {"products": products, "full": full, "torch": fused, "ours": lambda: ours(False)}
    if not fused_rows.missing(hidden.device):
        ways[TRITON] = lambda: ours(True)
    return ways


def seconds_of(way: Callable[[], None], device: torch.device) -> float:
    """Return what a way takes of the processor, or of the time on a device."""
    if device.type == "cpu":
        start = time.process_time()
        way()
        return time.process_time() - start
    torch.cuda.synchronize(device)
    start = time.perf_counter()
    way()
    torch.cuda.synchronize(device)
    return time.perf_counter() - start


def main(args: list[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--vocab", type=int, default=49152)
    parser.add_argument("--width", type=int, default=576)
    parser.add_argument("--positions", type=int, default=512)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--chunk", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    given = parser.parse_args(args)
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device")
    device = torch.device(given.device)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    dtype = getattr(torch, given.dtype)
    hidden = torch.randn(given.positions, given.width).to(device, dtype).requires_grad_()
    weight = (torch.randn(given.vocab, given.width) * 0.05).to(device, dtype).requires_grad_()
    labels = torch.randint(given.vocab, (given.positions,)).to(device)
    ways = ways_of(hidden, weight, labels, given.chunk)
    spent: dict[str, list[float]] = {name: [] for name in ways}
    gradients: dict[str, tuple[Tensor, Tensor]] = {}
    # What comes first on a device compiles and warms up.
    for repeat in range(-1 if device.type == "cuda" else 0, given.repeats):
        for name, way in ways.items():
            hidden.grad = weight.grad = None
            seconds = seconds_of(way, device)
            if repeat >= 0:
                spent[name].append(seconds)
            if hidden.grad is not None and weight.grad is not None and name != "torch":
                gradients[name] = hidden.grad, weight.grad
    middle = {name: statistics.median(times) for name, times in spent.items()}
    off = max(
        ((one - other).abs().max() / other.abs().max()).item()
        for name in gradients.keys() & {"ours", TRITON}
        for one, other in zip(gradients[name], gradients["full"], strict=True)
    )
    skipped = {} if TRITON in ways else {TRITON: fused_rows.missing(device)}
    line = {
        "vocab": given.vocab,
        "width": given.width,
        "positions": given.positions,
        "dtype": given.dtype,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "seconds": {name: round(one, 4) for name, one in middle.items()},
        "over_products": {name: round(one / middle["products"], 3) for name, one in middle.items()},
        "skipped": skipped,
        "largest_difference": off,
        "versions": {"torch": torch.__version__},
    }
    sys.stdout.write(json.dumps(line) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
