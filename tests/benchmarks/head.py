"""The output head's forward and backward pass against the products that no way gets around.

    python tests/benchmarks/head.py --vocab 49152 --width 576 --positions 512

Ways alternate in one process, on one thread, in process time. ``products`` are the three matrix
products of a loss that depends on logits (the logits, and the gradients of hidden states and of
the head), ``full`` keeps all logits as autograd does, with entropies, ``torch`` is PyTorch's
``linear_cross_entropy``, without entropies, ``ours`` is ``linear_scores`` with entropies. Prints
one line of JSON: median seconds, ratios to ``products``, the largest difference of a gradient from
that of ``full`` over its largest number, and versions.
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

from etw_lightning.kernels.head import linear_scores


def ways_of(hidden: Tensor, weight: Tensor, labels: Tensor, chunk: int) -> dict[str, Callable]:
    """Return what is compared; all but the bare products end in gradients."""
    token_weights = torch.rand(len(labels), generator=torch.Generator().manual_seed(1))

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

    def ours() -> None:
        scores = linear_scores(hidden, weight, labels, chunk_size=chunk)
        (scores.logps * token_weights).sum().backward()

    return {"products": products, "full": full, "torch": fused, "ours": ours}


def main(args: list[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--vocab", type=int, default=49152)
    parser.add_argument("--width", type=int, default=576)
    parser.add_argument("--positions", type=int, default=512)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--chunk", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args(args)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    dtype = getattr(torch, given.dtype)
    hidden = torch.randn(given.positions, given.width).to(dtype).requires_grad_()
    weight = (torch.randn(given.vocab, given.width) * 0.05).to(dtype).requires_grad_()
    labels = torch.randint(given.vocab, (given.positions,))
    ways = ways_of(hidden, weight, labels, given.chunk)
    spent: dict[str, list[float]] = {name: [] for name in ways}
    gradients: dict[str, tuple[Tensor, Tensor]] = {}
    for _ in range(given.repeats):
        for name, way in ways.items():
            hidden.grad = weight.grad = None
            start = time.process_time()
            way()
            spent[name].append(time.process_time() - start)
            if hidden.grad is not None and weight.grad is not None and name != "torch":
                gradients[name] = hidden.grad, weight.grad
    middle = {name: statistics.median(times) for name, times in spent.items()}
    off = max(
        ((one - other).abs().max() / other.abs().max()).item()
        for one, other in zip(gradients["ours"], gradients["full"], strict=True)
    )
    line = {
        "vocab": given.vocab,
        "width": given.width,
        "positions": given.positions,
        "dtype": given.dtype,
        "seconds": {name: round(one, 4) for name, one in middle.items()},
        "over_products": {name: round(one / middle["products"], 3) for name, one in middle.items()},
        "largest_difference": off,
        "versions": {"torch": torch.__version__},
    }
    sys.stdout.write(json.dumps(line) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
