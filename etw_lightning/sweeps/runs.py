"""The runs of a sweep: each with a name, a command, a folder, and the results it has left."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from etw_lightning.files.places import require_inside
from etw_lightning.runs.folder import UNREADABLE, finished_command, made_as, settings_in
from etw_lightning.runs.newer_options import unlike
from etw_lightning.schema import InputError
from etw_lightning.sweeps.grid import SEED, Sweep, value_text
from etw_lightning.sweeps.ranges import Range

__all__ = [
    "Finished",
    "Run",
    "base_words",
    "expand",
    "find_finished",
    "is_finished",
    "make_run",
    "option_words",
    "strangers",
]

_SHORT = {"model.forget_weight": "lambda", SEED: "seed"}
#: Settings that the command line takes as a flag, without a value.
_FLAGS = ("save_model",)


@dataclass(frozen=True)
class Run:
    """One run of a sweep.

    Args:
        name: Name of its folder.
        method: Label of its method.
        point: Short names of the grid's settings, without the seed, to their values.
        fixed: The same of the settings that the method's grid has one value for; not in the name.
        seed: Its seed; empty if the grid holds none.
        words: Its command after ``python -m etw_lightning``.
        folder: Where it writes.
        base: The part of its command that all runs of its method begin with.
        options: Its own settings, each with the words that set it.
        key: Content key; empty until the parser has seen it.
        settings: The settings that the key is made of.
        equal_to: Name of an earlier run of the same key, which stands for it.
    """

    name: str
    method: str
    point: tuple[tuple[str, str], ...]
    fixed: tuple[tuple[str, str], ...]
    seed: str
    words: tuple[str, ...]
    folder: Path
    base: tuple[str, ...] = ()
    options: tuple[tuple[str, tuple[str, ...]], ...] = ()
    key: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    equal_to: str | None = None


def expand(sweep: Sweep) -> list[Run]:
    """Return the runs: method by method, the last setting of a grid changing fastest.

    Raises:
        InputError: If two runs would write to one folder, or one would not write in a folder of
            its own below the sweep's, or a grid holds a range.
    """
    runs: dict[str, Run] = {}
    for method, (_, grid) in sweep.methods.items():
        lists: dict[str, Sequence[Any]] = {}
        for key, values in grid.items():
            if isinstance(values, Range):
                raise InputError(
                    f"{key} of {method} is the range {values}, which sweep search draws from; "
                    "plan and run need a list of values."
                )
            lists[key] = values
        varied = {key for key, values in lists.items() if len(values) > 1}
        # The seed comes last, so that a point's runs stand side by side.
        keys = sorted(lists, key=lambda key: key == SEED)
        for values in itertools.product(*(lists[key] for key in keys)):
            run = make_run(sweep, method, dict(zip(keys, values, strict=True)), varied)
            if run.name in runs:
                raise InputError(
                    f"two runs would write to the folder {run.name!r}, as their values differ in "
                    "signs that a folder's name can't hold; put them in sweeps of their own."
                )
            runs[run.name] = run
    return list(runs.values())


def make_run(sweep: Sweep, method: str, values: Mapping[str, Any], varied: Collection[str]) -> Run:
    """Return the run of a method with these values of its grid.

    Args:
        sweep: The sweep.
        method: Label of the method.
        values: Each setting of its grid with a value, the seed last.
        varied: Settings that tell the method's runs apart, and so stand in the name.

    Raises:
        InputError: If it would not write in a folder of its own below the sweep's.
    """
    short = _short_names({key for _, grid in sweep.methods.values() for key in grid})
    whole = {short[key]: value_text(value) for key, value in values.items()}
    fixed = {short[key] for key in values if key != SEED and key not in varied}
    texts = {name: text for name, text in whole.items() if name not in fixed}
    name = "_".join([method, *(_part(key, text) for key, text in texts.items())])
    _check_name(name, method)
    folder = Path(sweep.output_dir) / name
    require_inside(folder, Path(sweep.output_dir), f"run {name!r} of the sweep")
    own = [(key, tuple(option_words(key, value))) for key, value in values.items()]
    base = base_words(sweep, method)
    words = [*base, *(w for _, option in own for w in option), "--output_dir", str(folder)]
    seed = texts.pop(_SHORT[SEED], "")
    same_for_all = tuple(pair for pair in whole.items() if pair[0] in fixed)
    point = tuple(texts.items())
    return Run(name, method, point, same_for_all, seed, tuple(words), folder, base, tuple(own))


def base_words(sweep: Sweep, method: str) -> tuple[str, ...]:
    """Return the words that the commands of all runs of a method begin with."""
    common = [word for file in sweep.config for word in ("--config", file)]
    same = [word for key, value in sweep.settings.items() for word in option_words(key, value)]
    return ("fit", *common, "--config", sweep.methods[method][0], *same)


def _check_name(name: str, method: str) -> None:
    if "/" in name or "\\" in name or name in (".", ".."):
        raise InputError(
            f"methods.{method}: a run would write to {name!r}, which is no folder of the sweep's "
            "own; name files and settings without '/' and leading '.'."
        )


def _short_names(keys: Collection[str]) -> dict[str, str]:
    """Return the shortest end of each key that no other key has."""
    parts = {key: [part for part in key.split(".") if part != "init_args"] for key in keys}
    ends = {key: _ends(key, parts[key]) for key in keys}
    return {
        key: next(
            (
                end
                for end in ends[key]
                if not any(end in ends[other] for other in keys if other != key)
            ),
            key,
        )
        for key in keys
    }


def _ends(key: str, parts: Sequence[str]) -> list[str]:
    if key in _SHORT:
        return [_SHORT[key]]
    return [".".join(parts[-count:]) for count in range(1, len(parts) + 1)]


def _part(key: str, text: str) -> str:
    """Return a setting as a part of a folder's name."""
    value = re.sub(r"[^\w.+-]", "-", text)
    return f"{key}{value}" if value[:1].isdigit() else f"{key}-{value}"


def option_words(key: str, value: Any) -> list[str]:
    """Return the words that set a key on the command line."""
    text = value if isinstance(value, str) else json.dumps(value)
    if key in _FLAGS and isinstance(value, bool):
        return [f"--{key}" if value else f"--no_{key}"]
    # What begins with a minus sign would be taken for another option.
    return [f"--{key}={text}"] if text.startswith("-") or not text else [f"--{key}", text]


@dataclass(frozen=True)
class Finished:
    """What a finished run has left.

    Args:
        folder: Its folder.
        results: Its ``results.json``.
    """

    folder: Path
    results: Mapping[str, Any]

    @property
    def metrics(self) -> Mapping[str, Any]:
        """The numbers of the model after training, with what belongs to each."""
        return self._pairs(self.results.get("metrics"))

    @property
    def provenance(self) -> Mapping[str, Any]:
        """What the run's records were made with; empty of an older run."""
        given = self.results.get("provenance")
        return {} if given is None else self._pairs(given)

    @property
    def target_metrics(self) -> Mapping[str, Any]:
        """The numbers of the target model: those of the start of training."""
        history = self.results.get("history", ())
        entries = [self._pairs(one) for one in history] if isinstance(history, list) else []
        return next(
            (self._pairs(one.get("metrics")) for one in entries if one.get("epoch") == 0), {}
        )

    def number(self, metric: str, *, of_target: bool = False) -> float | None:
        """Return a number, None if there is none of this name.

        Raises:
            InputError: If what stands there is no number.
        """
        group = self.target_metrics if of_target else self.metrics
        if metric not in group:
            return None
        value = self._pairs(group[metric]).get("value")
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not math.isfinite(value)
        ):
            raise InputError(
                f"{self.folder / 'results.json'}: {metric} must be a number; got {value!r:.60}. "
                "Remove the folder to run it again."
            )
        return float(value)

    def _pairs(self, given: Any) -> Mapping[str, Any]:
        if not isinstance(given, dict):
            raise InputError(
                f"{self.folder / 'results.json'} must hold what a run writes as pairs; got "
                f"{given!r:.60}. Remove the folder to run it again."
            )
        return given


def find_finished(runs: Sequence[Run]) -> dict[str, Finished]:
    """Return what the finished runs have left, by their content keys.

    All folders beside those of the runs are looked through: a run that was made when the grid had
    other values lies under another name. Where several hold a run, its own folder counts.

    Raises:
        InputError: If the folder of a run that is not finished holds anything else that is.
    """
    wanted = {run.key: run for run in runs if run.equal_to is None}
    found: dict[str, Finished] = {}
    for folder in _folders(runs):
        results = _results(folder)
        key = results.get("config_hash")
        run = wanted.get(key) if isinstance(key, str) else None
        if run is not None and (run.key not in found or folder == run.folder):
            require_inside(folder, folder.parent, f"run {folder.name!r} of the sweep")
            found[run.key] = Finished(folder, results)
    for key, run in wanted.items():
        if key not in found and is_finished(run):
            found[key] = Finished(run.folder, _results(run.folder))
    return found


def strangers(runs: Sequence[Run], found: Mapping[str, Finished]) -> str:
    """Return a line that names the folders beside those of the runs; empty if there are none."""
    known = {run.folder for run in runs} | {one.folder for one in found.values()}
    names = [folder.name for folder in _folders(runs) if folder not in known]
    if not names:
        return ""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    parent = str(runs[0].folder.parent)
    return f"in {parent!r}, of no run of this sweep: {', '.join(names[:5])}{more}"


def _folders(runs: Sequence[Run]) -> list[Path]:
    parents = dict.fromkeys(run.folder.parent for run in runs)
    return sorted(
        path
        for parent in parents
        if parent.is_dir()
        for path in parent.iterdir()
        if path.is_dir() and not path.name.startswith(".")
    )


def _results(folder: Path) -> Mapping[str, Any]:
    """Return the results of a finished ``fit``; nothing of any other folder."""
    try:
        results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    is_finished_fit = (
        isinstance(results, dict)
        and results.get("finished")
        and results.get("command", "fit") == "fit"
    )
    return results if is_finished_fit else {}


def is_finished(run: Run) -> bool:
    """Tell whether a run's own folder holds its finished results.

    Raises:
        InputError: If the folder holds anything else that is finished.
    """
    way_out = "remove the folder, or give another --output_dir."
    if run.folder.exists() and not run.folder.is_dir():
        raise InputError(
            f"{str(run.folder)!r} is a file in the place of a run's folder; remove it, or give "
            "another --output_dir."
        )
    command = finished_command(run.folder)
    if command is None:
        return False
    if command != "fit":
        what = (
            "a results.json that can't be read" if command == UNREADABLE else f"a run of {command}"
        )
        raise InputError(f"{str(run.folder)!r} holds {what}; {way_out}")
    key = _results(run.folder).get("config_hash")
    if key is None:
        raise InputError(
            f"{str(run.folder)!r} holds a results.json without config_hash, which tells whose "
            f"results they are; {way_out}"
        )
    if key != run.key and not made_as(run.folder, key, run.settings):
        raise InputError(
            f"{str(run.folder)!r} holds a finished run of other settings ({_unlike(run, key)}); "
            f"{way_out}"
        )
    return True


def _unlike(run: Run, key: Any) -> str:
    """Say in what a run differs from the one whose results lie in its folder."""
    there = settings_in(run.folder)
    others = unlike(there, run.settings) if there else {}
    if not others:
        return f"config_hash {key}, this one's is {run.key}"
    said = [f"{name} {_short(a)}, this one's {_short(b)}" for name, (a, b) in others.items()]
    more = f"; and {len(said) - 3} more" if len(said) > 3 else ""
    return "; ".join(said[:3]) + more


def _short(text: str, longest: int = 40) -> str:
    return text if len(text) <= longest else f"{text[: longest - 3]}..."
