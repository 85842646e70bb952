"""The retain and the target model of a run, as far as the run's callbacks read their records."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Protocol, get_args

from lightning.pytorch import Trainer

from etw_lightning.catalogue.entries import Part
from etw_lightning.scoring.other_results import Role
from etw_lightning.training.module import UnlearningModule
from etw_lightning.training.other_models import OtherModels

__all__ = ["Reads", "needs_of_others", "score_others"]


class Reads(Protocol):
    """Something that reads other models' records."""

    retain_needs: Mapping[str, Collection[Part]]
    target_needs: Mapping[str, Collection[Part]]


def needs_of_others(readers: Iterable[Reads]) -> dict[Role, dict[str, set[Part]]]:
    """Return all parts of all sets that any of several reads, of each model."""
    needs: dict[Role, dict[str, set[Part]]] = {"retain": {}, "target": {}}
    for reader in readers:
        for role, wanted in (("retain", reader.retain_needs), ("target", reader.target_needs)):
            for name, parts in wanted.items():
                needs[role].setdefault(name, set()).update(parts)  # type: ignore[index]
    return needs


def score_others(trainer: Trainer, module: UnlearningModule, readers: Iterable[Reads]) -> None:
    """Make sure that the records that are read are there; of models that are named, score them.

    What the command line, or an earlier call, has seen to is left alone.

    Args:
        trainer: Whose device and precision they are scored in.
        module: The run's model.
        readers: The run's callbacks that evaluate.

    Raises:
        InputError: If there are no such records and nothing to make them of.
    """
    data = module.datamodule
    needs = needs_of_others(readers)
    others = OtherModels(data, trainer, module.dtype_name, module.attention, data.seed or 0)
    for role in get_args(Role):
        if data.has_of_other(role, needs[role]):
            continue
        if data.results_paths[role] is None and others.pretrained(role) is not None:
            # Scored for less; what is known is read, not scored again.
            data.results.pop(role, None)
        others.need(role, needs[role])
