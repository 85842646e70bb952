"""What an attack leaves: a file beside the run, and a table."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from etw_lightning.attacks.attacked_run import AttackedRun
from etw_lightning.attacks.interface import Robustness
from etw_lightning.attacks.running import AttackOutcome
from etw_lightning.metrics import Metric
from etw_lightning.reports.attack_rows import READ_FIRST
from etw_lightning.runs.results import write_results

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["NO_RETAIN", "UNCHANGED", "as_json", "print_outcome", "save_outcome"]

#: What is said where the attack on the retain model is missing.
NO_RETAIN = (
    "no retain model is at hand, so nothing says what a model that never knew the rows answers to "
    "this attack: what came back may be learnt anew, or guessed. --retain_model PATH gives one."
)
#: What is said of an attack that asks forget questions alone.
UNCHANGED = (
    "the attack asks these rows in its own way and changes neither the model nor other questions: "
    "every other number of the run is under it what it was before."
)
_ARROWS = {"up": "↑", "down": "↓", "zero": "→ 0", "retain": "→ retain", "none": ""}


def as_json(
    outcome: AttackOutcome,
    run: AttackedRun,
    name: str,
    settings: Mapping[str, Any],
    kind: Robustness | None = None,
) -> dict[str, Any]:
    """Return all of it, ready for ``json.dumps``.

    Args:
        outcome: What the attack came to.
        run: The run that was attacked.
        name: What the attack is called.
        settings: Its class and arguments.
        kind: Which robustness it measures.
    """
    has_retain = bool(outcome.retain_after)
    numbers = {}
    for number in outcome.after:
        found = {
            "target": outcome.target.get(number),
            "before": outcome.before.get(number),
            "after": outcome.after[number],
            "retain_before": outcome.retain_before.get(number),
            "retain_after": outcome.retain_after.get(number),
        }
        numbers[number] = {
            "direction": outcome.after[number].direction,
            "n": outcome.after[number].n,
            **{key: None if one is None else one.value for key, one in found.items()},
            **_intervals(after=found["after"], retain_after=found["retain_after"]),
            "recovered": outcome.recovered(number),
            "recovered_by_retain": outcome.recovered_by_retain(number),
            **({"is_own": True} if number in outcome.own else {}),
            **({} if kind is None else {"robustness": outcome.robustness(number, kind)}),
        }
    return {
        "attack": name,
        **settings,
        "seed": run.seed,
        **({} if kind is None else {"robustness": kind}),
        "run": {
            "config_hash": run.results.get("config_hash"),
            "git_commit": run.results.get("git_commit"),
        },
        "retain_model": run.name("retain") if has_retain else None,
        **({} if has_retain else {"warning": NO_RETAIN}),
        **({"unchanged": UNCHANGED} if outcome.is_asking else {}),
        **({"left_out": dict(outcome.left_out)} if outcome.left_out else {}),
        "numbers": numbers,
        "seconds": outcome.seconds,
    }


def _intervals(**found: Metric | None) -> dict[str, Any]:
    """Return the confidence intervals that there are, by ``interval_`` and whose they are."""
    return {
        f"interval_{key}": list(one.interval)
        for key, one in found.items()
        if one is not None and one.interval is not None
    }


def save_outcome(found: Mapping[str, Any], path: Path) -> None:
    """Write what ``as_json`` gave."""
    write_results(path, found)


def print_outcome(
    outcome: AttackOutcome,
    title: str,
    kind: Robustness | None = None,
    *,
    shows_all: bool = False,
    console: Console | None = None,
) -> None:
    """Print how much of what was forgotten came back, and what that cost.

    Args:
        outcome: What the attack came to.
        title: What stands above.
        kind: Which robustness it measures.
        shows_all: Every number; else those that a person reads first, and the attack's own.
        console: Where to print; standard output by default.
    """
    from rich.console import Console
    from rich.table import Table

    console = console or Console()
    if not console.is_terminal:
        console.width = max(console.width, _LOG_WIDTH)
    has_retain = bool(outcome.retain_after)
    heads = ["target", "before", "after", "recovered"]
    heads += ["retain before", "after", "recovered"] * has_retain
    heads += [] if kind is None else [_LETTERS[kind]]
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("", no_wrap=True)
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    names = sorted(outcome.after, key=lambda name: outcome.recovered(name) is None)
    first = [name for name in READ_FIRST if name in outcome.after]
    first += [name for name in sorted(outcome.own) if name not in first]
    shown = names if shows_all or not first else first
    for name in shown:
        metric = outcome.after[name]
        cells = [
            _number(outcome.target.get(name)),
            _number(outcome.before.get(name)),
            _number(metric),
            _percent(outcome.recovered(name)),
        ]
        cells += [
            _number(outcome.retain_before.get(name)),
            _number(outcome.retain_after.get(name)),
            _percent(outcome.recovered_by_retain(name)),
        ] * has_retain
        cells += [] if kind is None else [_share(outcome.robustness(name, kind))]
        table.add_row(f"{name} {_ARROWS[metric.direction]}".rstrip(), *cells)
    console.print(table)
    console.print(
        "recovered: (after - before) / (target - before), of numbers of the forget set which the "
        "run had moved the better way; the retain model never knew the rows",
        highlight=False,
    )
    if kind is not None:
        console.print(_ROBUST[kind], highlight=False)
    if outcome.is_asking:
        console.print(UNCHANGED, highlight=False)
    if outcome.left_out:
        console.print(f"left out: {', '.join(outcome.left_out)}; see left_out in the results")
    if len(shown) < len(names):
        console.print(f"{len(names) - len(shown)} further numbers: --all", highlight=False)
    if not has_retain:
        console.print(f"warning: {NO_RETAIN}", highlight=False)


#: What robustness is called, and what it is, by kind.
_LETTERS: Mapping[Robustness, str] = {"relearning": "R", "quantisation": "Q"}
_ROBUST: Mapping[Robustness, str] = {
    "relearning": "R: min(1, rise of the retain model / rise of the unlearned one), 1 where the "
    "number is as robust to relearning as it can be (arXiv:2506.12618)",
    "quantisation": "Q: min(1, before / after), 1 where rounding brings nothing back "
    "(arXiv:2506.12618)",
}
#: Width of what is printed into a log.
_LOG_WIDTH = 150


def _number(metric: Metric | None) -> str:
    if metric is None:
        return "-"
    value = metric.value + 0.0
    return f"{value:.2e}" if 0 < abs(value) < 1e-3 else f"{value:#.4g}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{round(100 * share)} %"
