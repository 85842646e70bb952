"""Stored losses of an independent implementation, as signals of ours.

Its logits at a position predict the label of the next one; all numbers are float64.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from etw_lightning.kernels.distributions import GivenDistributions
from etw_lightning.kernels.signals import Counts, Padded, TokenSignals
from etw_lightning.schema import IGNORE_INDEX

__all__ = ["Group", "Oracle", "assert_matches", "load_oracle"]


@dataclass(frozen=True)
class Group:
    """One group of rows (forget, retain, alternate): inputs, and what a model says of them.

    ``logits`` is a leaf that takes gradients, ``(B, T, V)``; ``labels`` is unshifted, ``(B, T)``.
    """

    logits: Tensor
    reference_logits: Tensor
    labels: Tensor
    signals: TokenSignals

    @property
    def counts(self) -> Counts:
        """Labelled tokens, and rows that have any."""
        per_row = self.signals.row_counts()
        return Counts(tokens=len(self.signals.rows), rows=int((per_row > 0).sum()))


@dataclass(frozen=True)
class Oracle:
    """The stored file. ``activations`` are raw: ``[model | ref][group]`` lists, ``(B, T, D)``."""

    sets: Mapping[str, Any]
    activations: Mapping[str, Any]
    cases: list[dict[str, Any]]

    def of(self, *names: str, **hyper: Any) -> list[dict[str, Any]]:
        """Return the cases of these names whose numbers include ``hyper``; fails without any."""
        found = [
            case
            for case in self.cases
            if case["name"] in names and hyper.items() <= case["hyper"].items()
        ]
        assert found, (names, hyper)
        return found

    def groups(self, set_name: str) -> dict[str, Group]:
        """Return fresh inputs of a set; forget's signals hold alternate's as ``alternative``."""
        stored = self.sets[set_name]
        groups = {
            name: _group(
                torch.tensor(stored["model_logits"][name], dtype=torch.float64),
                torch.tensor(stored["ref_logits"][name], dtype=torch.float64),
                torch.tensor(stored["labels"][name]),
            )
            for name in ("forget", "retain", "alternate")
        }
        forget = groups["forget"]
        signals = replace(forget.signals, alternative=groups["alternate"].signals)
        return {**groups, "forget": replace(forget, signals=signals)}


def load_oracle(data_dir: Path) -> Oracle:
    """Return the stored losses beside the benchmark data; skips where there are none."""
    path = data_dir.parent / "oracle" / "losses.json"
    if not path.is_file():
        pytest.skip("no stored losses: oracle/losses.json beside the benchmark data")
    stored = _read(path)
    return Oracle(stored["sets"], stored["activations"], stored["cases"])


def assert_matches(
    case: Mapping[str, Any], loss: Tensor, groups: Mapping[str, Group], tolerance: float = 1e-10
) -> None:
    """Check a loss and its gradients at all logits; a gradient that is not stored must be 0."""
    value = loss.item()
    assert abs(value - case["loss"]) < tolerance, (case["name"], case["hyper"], value, case["loss"])
    for name, group in groups.items():
        (grad,) = torch.autograd.grad(loss, group.logits, retain_graph=True, allow_unused=True)
        grad = torch.zeros_like(group.logits) if grad is None else grad
        stored = case["grad"].get(name)
        wanted = torch.zeros_like(grad) if stored is None else grad.new_tensor(stored)
        assert (grad - wanted).abs().max() < tolerance, (case["name"], case["hyper"], name)


@cache
def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def _group(logits: Tensor, reference_logits: Tensor, labels: Tensor) -> Group:
    logits.requires_grad_()
    targets = labels[:, 1:]
    rows, places = (targets != IGNORE_INDEX).nonzero(as_tuple=True)
    ids = targets[rows, places]
    said = logits[rows, places].log_softmax(-1)
    reference = reference_logits[rows, places].log_softmax(-1)
    mask = torch.ones_like(labels)
    signals = TokenSignals(
        labels=ids,
        rows=rows,
        num_rows=len(labels),
        logps=said.gather(1, ids[:, None])[:, 0],
        entropies=-(said.detach().exp() * said.detach()).sum(-1),
        distributions=GivenDistributions(said),
        padded=Padded(logits, mask, _head),
        reference_logps=reference.gather(1, ids[:, None])[:, 0],
        reference_entropies=-(reference.exp() * reference).sum(-1),
        reference_distributions=GivenDistributions(reference),
        reference_padded=Padded(reference_logits, mask, _head),
    )
    return Group(logits, reference_logits, labels, signals)


def _head(logits: Tensor) -> GivenDistributions:
    return GivenDistributions(logits.log_softmax(-1))
