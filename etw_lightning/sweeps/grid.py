"""A sweep's file: its methods, grids, settings and rule, read and checked."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from etw_lightning.files.config_files import find_config, shipped
from etw_lightning.files.setting_names import SAME
from etw_lightning.files.setting_names import as_typed as names_as_typed
from etw_lightning.files.yaml_checks import check_once
from etw_lightning.schema import InputError
from etw_lightning.sweeps.file_checks import (
    FileKind,
    as_pairs,
    as_texts,
    changes_of,
    check_keys,
    config_of,
    folder_of,
    needed,
    optional,
    read_file,
    setting_key,
    settings_of,
    value_text,
)
from etw_lightning.sweeps.ranges import Range, read_range
from etw_lightning.sweeps.rules import Frontier, Select, read_frontier, read_select

__all__ = [
    "SEED",
    "Grid",
    "Sweep",
    "as_typed",
    "has_ranges",
    "load_sweep",
    "value_text",
]

#: The setting over whose values a report averages.
SEED = "seed_everything"
_KEYS = (
    *("config", "output_dir", "methods", "grid", "settings", "select", "columns", "search"),
    "frontier",
)
#: Its file; what each run gets from the sweep is none of its settings.
_SWEEP = FileKind("sweep", ("config", "output_dir", "overwrite", "ckpt_path"))
_METHODS = Path("configs/method")
_METHODS_HINT = "names of method files, as [etw, ga], or names with grids of their own"
_SELECT_HINT = "the rule by which a grid point is chosen, as {maximise: forget_quality}"
#: Settings with the values of each, or for a search the range that they are drawn from.
Grid = Mapping[str, Sequence[Any] | Range]


@dataclass(frozen=True)
class Sweep:
    """A sweep's file, checked.

    Args:
        config: Complete run files, laid over one another.
        output_dir: Folder of the folders of the runs.
        methods: Label of a method to its file and its whole grid, the common one included.
        settings: Settings that all runs have in common.
        select: How a point of the grid is chosen.
        columns: Numbers the report shows.
        trials: Points that a search draws for each method.
        seed: Seed of what a search draws.
        frontier: How frontiers are compared.
    """

    config: tuple[str, ...]
    output_dir: str
    methods: Mapping[str, tuple[str, Grid]]
    settings: Mapping[str, Any]
    select: Select
    columns: tuple[str, ...]
    trials: int = 20
    seed: int = 0
    frontier: Frontier = field(default_factory=Frontier)


def load_sweep(
    path: str,
    output_dir: str | None = None,
    changes: Sequence[str] = (),
    over: Sequence[str] = (),
) -> Sweep:
    """Read and check a sweep's file.

    Args:
        path: The file.
        output_dir: Folder to use instead of the file's.
        changes: Texts ``key=value``; each takes the place of the file's setting, or of its values
            in every grid.
        over: Texts ``key=range`` or ``key=[values]``; each takes the place of the file's setting,
            and of its values in every grid.

    Raises:
        InputError: If a key is unknown or missing, or a value is none that the key takes.
    """
    given = read_file(path, _SWEEP)
    check_keys("", given, _KEYS)
    files = config_of(given, _SWEEP)
    changed = changes_of("--set", changes, _SWEEP)
    drawn = _grid("--over", changes_of("--over", over, _SWEEP))
    for key in changed.keys() & drawn.keys():
        raise InputError(f"--set and --over are both given {key}; leave it out of one of them.")
    settings = settings_of("settings", optional(given, "settings"), _SWEEP)
    settings = {key: value for key, value in settings.items() if key not in drawn}
    common = _grid("grid", optional(given, "grid"))
    methods: dict[str, tuple[str, Grid]] = {}
    for label, (file, own) in _methods(needed(given, "methods", _METHODS_HINT, _SWEEP)).items():
        grid = {**own, **{key: values for key, values in common.items() if key not in own}, **drawn}
        for key in settings.keys() & grid.keys():
            raise InputError(f"{key} must stand in settings or in a grid; {label} has it in both.")
        methods[label] = file, grid
    in_grids = {key for _, grid in methods.values() for key in grid}
    chosen = {key: [value] for key, value in changed.items() if key in in_grids}
    # Where one method's grid has the setting, all methods get the value.
    methods = {label: (file, {**grid, **chosen}) for label, (file, grid) in methods.items()}
    settings |= {key: value for key, value in changed.items() if key not in in_grids}
    folder = folder_of(output_dir, given, _SWEEP)
    columns = as_texts("columns", given["columns"]) if "columns" in given else None
    # The rule comes last: where it is missing, all else is in order.
    select = read_select(needed(given, "select", _SELECT_HINT, _SWEEP))
    _check_seeds(select, methods)
    shown = columns or [select.metric, *(bound.metric for bound in select.bounds)]
    return Sweep(
        files,
        folder,
        methods,
        settings,
        select,
        tuple(dict.fromkeys(shown)),
        frontier=read_frontier(optional(given, "frontier"), methods),
        **_search(optional(given, "search")),
    )


def as_typed(message: str, path: str, words: Sequence[str] = ()) -> str:
    """Return a message with settings under the names that the user gave them.

    Args:
        message: Of an error, under the names that a run has for them.
        path: The file of several runs, or its name.
        words: What was typed beside it; where a setting stands there its name there counts.
    """
    typed, both = list(words), {name for pair in SAME.items() for name in pair}
    if not both & {text.partition("=")[0] for text in typed}:
        try:
            text = find_config(path).path.read_text(encoding="utf-8")
            # What holds itself has no end.
            check_once(yaml.compose(text), path)
            typed = [*_words(yaml.safe_load(text))]
        except (InputError, OSError, UnicodeDecodeError, yaml.YAMLError):
            return message
    return names_as_typed(message, typed)


def _words(given: Any, key: str = "") -> Iterator[str]:
    """Give the keys of a file, and each with its values, as they would be typed."""
    if isinstance(given, dict):
        for name, value in given.items():
            yield str(name)
            yield from _words(value, str(name))
    elif isinstance(given, list):
        for one in given:
            yield from _words(one, key)
    else:
        yield f"{key}={given}"


def has_ranges(sweep: Sweep) -> bool:
    """Tell whether a setting is to be drawn from a range, so that it is no grid."""
    return any(
        isinstance(one, Range) for _, grid in sweep.methods.values() for one in grid.values()
    )


def _search(given: Any) -> dict[str, int]:
    """Check how many points a search draws, and its seed."""
    check_keys("search.", as_pairs("search", given), ("trials", "seed"))
    for key, value in given.items():
        least = int(key == "trials")
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise InputError(f"search.{key} must be a whole number >= {least}; got {value!r}.")
    return dict(given)


def _check_seeds(select: Select, methods: Mapping[str, tuple[str, Grid]]) -> None:
    """Refuse seeds by which no point could be chosen, as a method is not run with them."""
    for method, (_, grid) in methods.items():
        values = grid.get(SEED, ())
        there = [] if isinstance(values, Range) else list(map(value_text, values))
        for seed in select.seeds:
            if seed not in there:
                raise InputError(
                    f"select.seeds must be among {SEED} of every method; {method} has "
                    f"{', '.join(there) or 'none'}, not {seed}."
                )


def _methods(given: Any) -> dict[str, tuple[str, dict[str, list[Any] | Range]]]:
    """Return label to file and own grid."""
    if isinstance(given, list):
        twice = next((one for one in as_texts("methods", given) if given.count(one) > 1), None)
        if twice is not None:
            raise InputError(f"methods must hold each name once; got {twice!r} more often.")
        given = dict.fromkeys(given)
    if not as_pairs("methods", given):
        raise InputError("methods must hold at least one method; got none.")
    found: dict[str, tuple[str, dict[str, list[Any] | Range]]] = {}
    for name, grid in given.items():
        own = {} if grid is None else dict(as_pairs(f"methods.{name}", grid))
        label, file = _method_file(name, own.pop("method", None))
        if label in found:
            raise InputError(f"methods must hold each name once; got two named {label!r}.")
        found[label] = file, _grid(f"methods.{name}", own)
    return found


def _method_file(name: str, method: Any) -> tuple[str, str]:
    """Return a method's label and file: of its name, or of the ``method`` that stands under it."""
    key, stem = (f"methods.{name}", name) if method is None else (f"methods.{name}.method", method)
    if not isinstance(stem, str):
        raise InputError(f"{key} must be the name of a method file, as etw; got {stem!r:.60}.")
    is_path = "/" in stem or stem.endswith((".yaml", ".yml"))
    file = Path(stem) if is_path else _METHODS / f"{stem}.yaml"
    if not _is_there(str(file)):
        there = _method_names()
        near = difflib.get_close_matches(stem, there, n=1, cutoff=0.5)
        hint = f" Did you mean {near[0]!r}?" if near else f" There are {', '.join(there)}."
        raise InputError(f"{key} must be a method file; {str(file)!r} is none.{hint}")
    if method is None:
        return file.stem, str(file)
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", name):
        raise InputError(f"{key} needs a name of letters, digits and _.- above it; got {name!r}.")
    return name, str(file)


def _is_there(file: str) -> bool:
    try:
        find_config(file)
    except InputError:
        return False
    return True


def _method_names() -> list[str]:
    """Return the names of the methods in the current folder, and of the shipped ones."""
    theirs = [name.removeprefix("method/") for name in shipped() if name.startswith("method/")]
    return sorted({*theirs, *(one.stem for one in _METHODS.glob("*.yaml"))})


def _grid(place: str, given: Any) -> dict[str, list[Any] | Range]:
    grid = settings_of(place, given, _SWEEP)
    for (name, values), typed in zip(grid.items(), given, strict=True):
        key = setting_key(place, name if place.startswith("--") else typed)
        found = read_range(key, values)
        if found is not None:
            grid[name] = found
            continue
        if not isinstance(values, list) or not values:
            raise InputError(
                f"{key} must be a list of values, at least one, or for sweep search a range as "
                f"log:0.01..1; got {values!r:.60}."
            )
        for value in values:
            if isinstance(value, list | dict):
                raise InputError(
                    f"{key} must hold numbers, texts, true, false or null; got {value!r:.60}."
                )
        texts = [value_text(value) for value in values]
        twice = next((text for text in texts if texts.count(text) > 1), None)
        if twice is not None:
            raise InputError(f"{key} must hold each value once; got {twice} more often.")
    return grid
