"""How many single faults the tests of a few rooms find; one JSON line with the score.

``python tests/mutation/run.py --mutants 150 --seed 0`` draws faults (``mutants.py``), collects the
rooms' tests once, runs them once to see which functions each calls, and then gives each fault a
forked process in which the tests that call its function run, the quickest first, until one fails.
Faults that change nothing are listed in ``equivalent.json`` with the reason, and are not counted.
"""

import argparse
import importlib
import inspect
import json
import os
import random
import signal
import sys
import time
from collections import defaultdict
from functools import cached_property
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(ROOT)]
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest  # noqa: E402
from mutants import mutants_of  # noqa: E402

PACKAGE = "etw_lightning"
ROOMS = ("weighting", "forget", "kernels", "metrics", "data", "scoring")
#: Tests that are run for a room, beside ``tests/unit/ROOM``.
OTHERS = (
    "tests/parity",
    "tests/property",
    "tests/unit/retain",
    "tests/unit/training/test_module.py",
)
#: Seconds for a fault, as many times as its tests take without it, and so many more.
PATIENCE, MORE = 10, 60


class Runner:
    """A plugin that runs the collected tests for each fault in place of running them once.

    Args:
        mutants: The faults.
        known: Names of those that change nothing.
    """

    def __init__(self, mutants, known):
        self.mutants, self.known = mutants, known
        self.calls = defaultdict(set)
        self.seconds = {}
        self.failed = set()
        self.results = []

    @pytest.hookimpl
    def pytest_runtestloop(self, session):
        items = session.items
        for item, after in zip(items, [*items[1:], items[0]], strict=True):
            started = time.process_time()
            sys.setprofile(self.note(item))
            try:
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=after)
            finally:
                sys.setprofile(None)
            self.seconds[item] = time.process_time() - started
        items = [item for item in items if item.nodeid not in self.failed]
        for mutant in self.mutants:
            name = (mutant.module, mutant.place)
            chosen = [item for item in items if is_of_all(mutant) or name in self.calls[item]]
            chosen.sort(key=self.seconds.get)
            state = (
                "equivalent" if mutant.name in self.known else self.try_out(session, mutant, chosen)
            )
            self.results.append((state, mutant))
            sys.stderr.write(f"{state} {mutant.name} (line {mutant.line}, {len(chosen)} tests)\n")
        return True

    @pytest.hookimpl
    def pytest_runtest_logreport(self, report):
        if report.failed:
            self.failed.add(report.nodeid)

    def note(self, item):
        """Return what notes the functions of the package that a test calls."""
        calls, prefix = self.calls[item], str(ROOT / PACKAGE)

        def called(frame, event, _):
            code = frame.f_code
            if event == "call" and code.co_filename.startswith(prefix):
                module = frame.f_globals.get("__name__")
                calls.add((module, code.co_qualname.split(".<locals>")[0]))

        return called

    def try_out(self, session, mutant, items):
        """Return ``found``, ``late`` or ``missed``."""
        child = os.fork()
        if not child:
            status = 3
            try:
                os.setpgrp()
                quiet = os.open(os.devnull, os.O_WRONLY)
                os.dup2(quiet, 1)
                os.dup2(quiet, 2)
                status = self.run_with(session, mutant, items)
            finally:
                os._exit(status)
        ends = time.monotonic() + MORE + PATIENCE * sum(self.seconds[item] for item in items)
        while time.monotonic() < ends:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                return "missed" if os.waitstatus_to_exitcode(status) == 0 else "found"
            time.sleep(0.02)
        os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return "late"

    def run_with(self, session, mutant, items):
        put_in(mutant)
        self.failed.clear()
        if not items:
            return 0
        session._setupstate.teardown_exact(items[0])
        for item, after in zip(items, [*items[1:], None], strict=True):
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=after)
            if self.failed:
                return 1
        return 0


def is_of_all(mutant):
    """Tell whether a fault lies outside of functions, where no call tells of it."""
    found = importlib.import_module(mutant.module)
    for name in filter(None, mutant.place.split(".")):
        found = getattr(found, name, None)
    return inspect.isclass(found) or inspect.ismodule(found)


def put_in(mutant):
    """Put a fault into a module that is loaded: code, defaults and constants."""
    module = importlib.import_module(mutant.module)
    fresh = ModuleType(mutant.module)
    fresh.__file__ = module.__file__
    tree = mutant.tree(Path(module.__file__).read_text("utf-8"))
    exec(compile(tree, module.__file__, "exec"), vars(fresh))
    exchange(module, fresh)


#: Of a class or a module, what is not of the source.
_KEPT = {"__name__", "__file__", "__dict__", "__doc__", "__module__", "__builtins__", "__all__"}


def exchange(owner, fresh):
    """Give what a module or class holds the code and values of its changed twin."""
    name_of = owner.__module__ if inspect.isclass(owner) else owner.__name__
    old, new = dict(vars(owner)), dict(vars(fresh))
    for name in (old.keys() & new.keys()) - _KEPT:
        value, other = old[name], new[name]
        mine, theirs = plain(value), plain(other)
        if inspect.isclass(value):
            if value.__module__ == name_of:
                exchange(value, other)
        elif inspect.isfunction(mine) and inspect.isfunction(theirs):
            if mine.__code__.co_freevars == theirs.__code__.co_freevars:
                exchange_code(mine, theirs)
            if hasattr(value, "cache_clear"):
                value.cache_clear()
        elif isinstance(value, int | float | str | tuple | frozenset | dict) and value != other:
            for place in [owner, *sys.modules.values()]:
                is_ours = place is owner or getattr(place, "__name__", "").startswith(PACKAGE)
                if is_ours and vars(place).get(name) is value:
                    setattr(place, name, other)


def exchange_code(mine, theirs):
    mine.__code__ = theirs.__code__
    mine.__defaults__, mine.__kwdefaults__ = theirs.__defaults__, theirs.__kwdefaults__
    cells = zip(mine.__closure__ or (), theirs.__closure__ or (), strict=True)
    for cell, other in cells:
        # Defaults of a dataclass; not the class that ``super`` looks for.
        if isinstance(other.cell_contents, int | float | str | tuple | frozenset):
            cell.cell_contents = other.cell_contents


def plain(value):
    """Return the function inside of what a decorator has made of it."""
    for wrapped in ("__func__", "fget", "func", "__wrapped__"):
        inner = getattr(value, wrapped, None)
        if inner is not None and not (wrapped == "func" and not isinstance(value, cached_property)):
            return plain(inner)
    return value


def drawn(rooms, count, seed):
    """Return that many faults of the rooms' modules, the same for the same seed."""
    found = []
    for room in rooms:
        for path in sorted((ROOT / PACKAGE / room).glob("*.py")):
            if path.name != "__init__.py" or room == "metrics":
                name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
                found += mutants_of(name.removesuffix(".__init__"), path.read_text("utf-8"))
    return random.Random(seed).sample(found, min(count, len(found))), len(found)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rooms", nargs="+", default=ROOMS, choices=ROOMS)
    parser.add_argument("--mutants", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tests", nargs="+", help="in place of the rooms' own")
    given = parser.parse_args()
    mutants, there_are = drawn(given.rooms, given.mutants, given.seed)
    known = json.loads((HERE / "equivalent.json").read_text("utf-8"))
    runner = Runner(mutants, known)
    tests = given.tests or [*(f"tests/unit/{room}" for room in given.rooms), *OTHERS]
    os.chdir(ROOT)
    pytest.main(["-q", "-o", "addopts=", "-p", "no:cacheprovider", *tests], [runner])
    states = [state for state, _ in runner.results]
    counted = [state for state in states if state != "equivalent"]
    found = sum(state in ("found", "late") for state in counted)
    line = {
        "seed": given.seed,
        "faults_there_are": there_are,
        "mutants": len(counted),
        "found": found,
        "score": round(found / max(1, len(counted)), 4),
        "equivalent": states.count("equivalent"),
        "failing_without_a_fault": sorted(runner.failed),
        "missed": [f"{m.name} (line {m.line})" for state, m in runner.results if state == "missed"],
    }
    sys.stdout.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
