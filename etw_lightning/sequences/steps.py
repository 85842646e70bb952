"""The runs of a sequence: one of ``fit`` a request, and what scores the rows of earlier ones."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from etw_lightning.files.places import require_inside
from etw_lightning.files.setting_names import why_unread
from etw_lightning.runs.key import run_key, that_count
from etw_lightning.schema import InputError
from etw_lightning.sequences.request_file import RequestFile
from etw_lightning.sweeps.runs import Run, option_words

__all__ = [
    "Step",
    "Watch",
    "is_watched",
    "make_steps",
    "model_hash",
    "results_in",
    "watch_of",
    "watches_of",
]

#: Folder of what scores the rows of requests, in a sequence's.
WATCHED = "watched"
_Parse = Callable[[Sequence[str]], Mapping[str, Any]]


@dataclass(frozen=True)
class Step:
    """What is done for one request.

    Args:
        number: From 1.
        run: Its run of ``fit``.
    """

    number: int
    run: Run

    @property
    def data(self) -> Mapping[str, Any]:
        """Settings of its rows."""
        found: Mapping[str, Any] = self.run.settings["data"]
        return found


@dataclass(frozen=True)
class Watch:
    """The scoring of one request's rows by the model after some request.

    Args:
        after: Number of that request; 0 for the model that the sequence starts from.
        request: Number of the request whose rows are scored.
        run: Its run of ``evaluate``.
    """

    after: int
    request: int
    run: Run


def make_steps(given: RequestFile, parse: _Parse) -> list[Step]:
    """Return what is done for each request, with its content key.

    Request k starts from the model of request k - 1; rows of the requests so far are left out of
    its retain rows, wherever they stand.

    Args:
        given: The sequence's file.
        parse: Gives the configuration that the words of a command mean.

    Raises:
        InputError: If the parser refuses the settings of one; names it.
    """
    common = _common(given.config, given.settings)
    steps: list[Step] = []
    for number, request in enumerate(given.requests, start=1):
        splits = [one.forget for one in given.requests[:number]]
        settings: dict[str, Any] = {**request.settings, "data.leave_out": "+".join(splits)}
        if steps:
            settings["model.pretrained"] = str(steps[-1].run.folder / "model")
        own = [word for key, value in settings.items() for word in option_words(key, value)]
        name = f"{number}_{_part(request.forget)}"
        folder = Path(given.output_dir) / name
        require_inside(folder, Path(given.output_dir), f"request {name!r} of the sequence")
        words = ("fit", *common, *own, "--output_dir", str(folder))
        steps.append(Step(number, _with_key(Run(name, "", (), (), "", words, folder), parse)))
    return steps


def watches_of(
    given: RequestFile, steps: Sequence[Step], after: int, metrics: Sequence[str], parse: _Parse
) -> list[Watch]:
    """Return what scores the rows of requests once a request is done.

    These are the rows of all earlier requests; those of this one too where its run lacks a number,
    and with ``watched_with`` those of the next one, whose numbers before it no run gives then.

    Args:
        given: The sequence's file.
        steps: All steps.
        after: Number of the request that is done; 0 for none yet.
        metrics: What to compute, by the names of ``--metrics``.
        parse: Gives the configuration that the words of a command mean.
    """
    if given.watched_with:
        last = min(after + 1, len(steps))
    else:
        last = after - 1 if after and _has_all(steps[after - 1], given.watched) else after
    return [watch_of(given, steps, after, number, metrics, parse) for number in range(1, last + 1)]


def watch_of(
    given: RequestFile,
    steps: Sequence[Step],
    after: int,
    number: int,
    metrics: Sequence[str],
    parse: _Parse,
) -> Watch:
    """Return what scores the rows of one request once some request is done.

    The retain model of a request is its own at every step, so that what changes is the model that
    is watched.

    Args:
        given: The sequence's file.
        steps: All steps.
        after: Number of the request that is done; 0 for none yet.
        number: Of the request whose rows are scored.
        metrics: As of ``watches_of``.
        parse: As of ``watches_of``.
    """
    request = given.requests[number - 1]
    settings: dict[str, Any] = dict(request.settings)
    # What only training reads, scoring would refuse.
    read = {
        key: value
        for key, value in given.settings.items()
        if why_unread("evaluate", option_words(key, value)) is None
    }
    if request.watched_as is not None:
        settings["data.forget_split"] = request.watched_as
    settings |= given.watched_with
    if after:
        settings["model.pretrained"] = str(steps[after - 1].run.folder / "model")
    own = [word for key, value in settings.items() for word in option_words(key, value)]
    name = f"{after}_on_{number}"
    folder = Path(given.output_dir) / WATCHED / name
    words = ("evaluate", *_common(given.config, read), *own, "--metrics", ",".join(metrics))
    run = Run(name, "", (), (), "", (*words, "--output_dir", str(folder)), folder)
    return Watch(after, number, _with_key(run, parse))


def _has_all(step: Step, names: Sequence[str]) -> bool:
    """Tell whether a run has numbers of its own rows, as far as it is there."""
    metrics = results_in(step.run.folder).get("metrics")
    return metrics is None or all(name in metrics for name in names)


def _common(config: Sequence[str], settings: Mapping[str, Any]) -> tuple[str, ...]:
    files = [word for file in config for word in ("--config", file)]
    same = [word for key, value in settings.items() for word in option_words(key, value)]
    return (*files, *same)


def _with_key(run: Run, parse: _Parse) -> Run:
    try:
        settings = parse(run.words)
    except InputError as error:
        raise InputError(f"{error} (run {run.name})") from error
    return replace(run, key=run_key(settings), settings=that_count(settings))


def _part(split: str) -> str:
    """Return a split as a part of a folder's name.

    Example:
        >>> _part("sust/forget_1"), _part("a+../b")
        ('sust-forget_1', 'a+..-b')
    """
    return re.sub(r"[^\w.+-]", "-", split)


def is_watched(watch: Watch, steps: Sequence[Step]) -> bool:
    """Tell whether a scoring is done, and of the model that is there now."""
    results = results_in(watch.run.folder)
    if results.get("command") != "evaluate" or results.get("config_hash") != watch.run.key:
        return False
    if watch.after == 0:
        return True
    model = model_hash(results_in(steps[watch.after - 1].run.folder))
    return model is not None and model_hash(results) == model


def results_in(folder: Path) -> dict[str, Any]:
    """Return finished results; nothing where there are none."""
    path = folder / "results.json"
    try:
        status = path.stat()
        return _read(path, (status.st_ino, status.st_mtime_ns, status.st_size))
    except (OSError, ValueError):
        return {}


@lru_cache
def _read(path: Path, _state: tuple[int, int, int]) -> dict[str, Any]:
    """Read results once for each state of their file: a course asks for them again and again."""
    found = json.loads(path.read_text(encoding="utf-8"))
    return found if isinstance(found, dict) and found.get("finished") else {}


def model_hash(results: Mapping[str, Any]) -> str | None:
    """Return the hash of the weights whose results these are; None if it is not noted."""
    found = ((results.get("provenance") or {}).get("model") or {}).get("hash")
    return found if isinstance(found, str) else None
