"""What the runs of a sweep are, read part by part: a value that many runs have is parsed once.

The parser takes a tenth of a second a run. Of a method the last run is parsed, and that run with
each other value of its grid alone; a run is put together of these where no value changes more than
its own setting. The first run of each method is parsed whole too: where it differs from what was
put together, all runs of the method are.
"""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from etw_lightning.runs.key import run_key, that_count
from etw_lightning.schema import InputError
from etw_lightning.sweeps.runs import Run

__all__ = ["Parse", "SettingsReader", "with_keys"]

#: Gives the configuration that the words of a ``fit`` command mean.
Parse = Callable[[Sequence[str]], Mapping[str, Any]]
#: So many runs take seconds to read.
_MANY = 50
#: Seconds between lines of progress where there is no terminal.
_BETWEEN_LINES = 60.0
_Words = tuple[str, ...]
#: Settings below which each class has arguments of its own.
_CLASSES = ("model.weighting", "model.forget", "model.retain", "trainer")


def with_keys(runs: Sequence[Run], parse: Parse | SettingsReader) -> list[Run]:
    """Give each run its content key, and the name of an earlier run that equals it.

    Args:
        runs: The runs.
        parse: Gives the configuration that the words of a ``fit`` command mean; or a reader, which
            keeps what it has parsed.

    Raises:
        InputError: If the parser refuses the settings of one; names it.
    """
    first: dict[str, str] = {}
    keyed = []
    reader = parse if isinstance(parse, SettingsReader) else SettingsReader(parse, runs)
    for run in _shown(runs):
        try:
            settings = reader.settings(run)
        except InputError as error:
            raise InputError(f"{error} (run {run.name})") from error
        key = run_key(settings)
        name = first.setdefault(key, run.name)
        equal_to = None if name == run.name else name
        keyed.append(replace(run, key=key, settings=that_count(settings), equal_to=equal_to))
    return keyed


def _shown(runs: Sequence[Run]) -> Iterable[Run]:
    """Return runs one by one, and show how far that is while there are many of them."""
    if len(runs) < _MANY:
        return runs
    if not sys.stderr.isatty():
        return _told(runs)
    from rich.console import Console
    from rich.progress import track

    return track(runs, "reading the runs", console=Console(stderr=True), transient=True)


def _told(runs: Sequence[Run]) -> Iterator[Run]:
    """Give runs one by one, with a line a minute."""
    last = time.monotonic()
    for number, run in enumerate(runs):
        if time.monotonic() - last >= _BETWEEN_LINES:
            last = time.monotonic()
            sys.stderr.write(f"reading the runs: {number} of {len(runs)}\n")
            sys.stderr.flush()
        yield run


class SettingsReader:
    """Gives the settings of runs.

    Args:
        parse: Gives the configuration that the words of a ``fit`` command mean.
        runs: All runs that will be asked for.
    """

    def __init__(self, parse: Parse, runs: Sequence[Run]) -> None:
        self.parse = parse
        self.first = {run.base: run for run in reversed(runs)}
        self.last = {run.base: run for run in runs}
        #: Settings of the last run of each base; None where it can't be parsed, or where parts
        #: depend on one another.
        self.bases: dict[_Words, Mapping[str, Any] | None] = {}
        #: What stands at a key once words have set it, by base, key and words; of settings that
        #: mean the same for all methods without a base. None if they change something else too.
        self.values: dict[tuple[_Words, str, _Words], Any] = {}

    def settings(self, run: Run) -> Mapping[str, Any]:
        """Return a run's settings; where it writes is not among them.

        Raises:
            InputError: If the parser refuses them.
        """
        if run.base not in self.bases:
            self.bases[run.base] = self._base(run.base)
        found = self._together(run)
        return self.parse(run.words) if found is None else found

    def _base(self, base: _Words) -> Mapping[str, Any] | None:
        """Parse a method's last run, and see that others can be put together from it."""
        first, last = self.first[base], self.last[base]
        try:
            self.bases[base] = self.parse(_words(base, last.options))
            if first is last:
                return self.bases[base]
            found = self._together(first)
            whole = self.parse(_words(base, first.options))
        except InputError:
            return None  # told of the run that has it
        is_same = found is not None and run_key(found) == run_key(whole)
        return self.bases[base] if is_same else None

    def _together(self, run: Run) -> dict[str, Any] | None:
        """Return a run's settings from those of its parts; None if they can't be had so."""
        base, own = self.bases[run.base], dict(self.last[run.base].options)
        keys = [key for key, _ in run.options]
        if base is None or own.keys() != set(keys) or not _are_apart(keys):
            return None
        whole: dict[str, Any] = copy.deepcopy(dict(base))
        for key, words in run.options:
            if words == own[key]:
                continue  # of the last run, too
            value = self._value(run.base, key, words)
            if value is None or not _set(whole, key.split("."), copy.deepcopy(value[0])):
                return None
        return whole

    def _value(self, base: _Words, key: str, words: _Words) -> tuple[Any] | None:
        """Return what stands at a key once words have set it; None if they change more."""
        of_class = any(f"{key}.".startswith(f"{name}.") for name in _CLASSES)
        place = (base if of_class else (), key, words)
        if place not in self.values:
            before = self.bases[base]
            assert before is not None
            others = [(k, words if k == key else said) for k, said in self.last[base].options]
            try:
                after = dict(self.parse(_words(base, others)))
            except InputError:
                return None  # told of the run that has it
            self.values[place] = _changed(before, after, key)
        found: tuple[Any] | None = self.values[place]
        return found


def _words(base: _Words, options: Iterable[tuple[str, _Words]]) -> list[str]:
    """Return a run's words without its folder."""
    return [*base, *(word for _, words in options for word in words)]


def _are_apart(keys: Sequence[str]) -> bool:
    """Tell whether no key stands within another."""
    return not any(
        f"{one}.".startswith(f"{other}.") for one in keys for other in keys if one is not other
    )


def _changed(before: Mapping[str, Any], after: Mapping[str, Any], key: str) -> tuple[Any] | None:
    """Return the value at a key; None if there is none, or if anything else is another."""
    value = _get(after, key.split("."))
    if value is None:
        return None
    undone: dict[str, Any] = copy.deepcopy(dict(after))
    old = _get(before, key.split("."))
    if old is None or not _set(undone, key.split("."), copy.deepcopy(old[0])):
        return None
    return value if run_key(undone) == run_key(before) else None


def _get(settings: Any, parts: Sequence[str]) -> tuple[Any] | None:
    """Return what stands at a key, as a tuple of one; None if there is no such key."""
    for part in parts:
        settings = _within(settings, part)
        if not isinstance(settings, Mapping) or part not in settings:
            return None
        settings = settings[part]
    return (settings,)


def _set(settings: Any, parts: Sequence[str], value: Any) -> bool:
    """Set what stands at a key; return whether there is such a key."""
    *way, last = parts
    found = _get(settings, way)
    place = _within(found[0], last) if found is not None else None
    if not isinstance(place, dict) or last not in place:
        return False
    place[last] = value
    return True


def _within(settings: Any, part: str) -> Any:
    """Return where an argument of a class stands."""
    is_class = isinstance(settings, Mapping) and part not in settings
    return settings["init_args"] if is_class and "init_args" in settings else settings
