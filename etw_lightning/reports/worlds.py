"""Runs that began with the same model, whose rows can be read side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from etw_lightning.reports.finished_runs import FinishedRun
from etw_lightning.reports.methods import by_method

__all__ = ["World", "spread", "worlds"]


@dataclass(frozen=True)
class World:
    """Runs of the same rows that began with the same model.

    Args:
        name: What tells it from the others: the seed where that does, else its first run.
        runs: Its runs.
    """

    name: str
    runs: tuple[FinishedRun, ...]


def worlds(runs: Sequence[FinishedRun]) -> list[World]:
    """Return the runs by the rows, and by what the other models said of them.

    Args:
        runs: The runs.
    """
    groups: dict[tuple[tuple[str | None, ...], ...], list[FinishedRun]] = {}
    for run in runs:
        # Greedy texts, not probabilities: those of batches of other shapes differ in last digits.
        # Before training all may say the truth; the retain model tells such apart.
        rows = (run.before or run.after).get("forget", ())
        said = tuple(one.generation for one in run.before.get("forget", ()))
        retained = tuple(one.generation for one in run.retain.get("forget", ()))
        key = (tuple(f"{row.id} {row.answer}" for row in rows), said, retained)
        groups.setdefault(key, []).append(run)
    seeds = [{run.settings.get("seed") for run in group} for group in groups.values()]
    all_seeds = [seed for some in seeds for seed in some]
    is_told = all(len(some) == 1 for some in seeds) and len(set(all_seeds)) == len(all_seeds)
    return [
        World(f"seed {group[0].settings.get('seed')}" if is_told else group[0].name, tuple(group))
        for group in groups.values()
    ]


def spread(runs: Sequence[FinishedRun], most: int) -> list[FinishedRun]:
    """Return at most so many runs, of as many methods as there are, in the order given.

    Args:
        runs: The runs.
        most: How many.
    """
    lines: dict[str, list[FinishedRun]] = {}
    for method in by_method(runs):
        lines.setdefault(method.line, []).extend(method.runs)
    taken: list[FinishedRun] = []
    for place in range(len(runs)):
        taken += [group[place] for group in lines.values() if place < len(group)]
    kept = {id(run) for run in taken[:most]}
    return [run for run in runs if id(run) in kept]
