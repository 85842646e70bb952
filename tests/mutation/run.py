"""How many single faults the tests of a few rooms find: one JSON line a room, and one of all.

``python tests/mutation/run.py --mutants 40 --seed 0`` draws that many faults of each room
(``mutants.py``), runs the rooms' tests once, but for the slow ones, to see which lines each of them
reaches, and then gives each fault a forked process in which the tests that reach its lines run, the
quickest first, until one fails. A test that takes ten times the processor time that it took without
the fault is ended: such a fault is found too, but counted by itself, as ``late``. Faults that
change nothing are listed in ``equivalent.json`` with the reason, and are not counted. Of a module
that nothing runs without a package that is absent, none is drawn; it is named as ``left_out``.
"""

import argparse
import ast
import gc
import importlib.util
import inspect
import json
import os
import random
import signal
import sys
import time
from collections import defaultdict
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from types import ModuleType, SimpleNamespace

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(ROOT)]
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest  # noqa: E402
from mutants import mutants_of  # noqa: E402

PACKAGE = "etw_lightning"
ROOMS = ("data", "scoring", "metrics", "weighting", "forget", "kernels", "sweeps", "sequences")
#: Tests that are run for a room, beside ``tests/unit/ROOM``: the quick ones of its numbers.
BESIDE = {
    "weighting": ("tests/parity/test_weightings.py",),
    "forget": (
        "tests/parity/test_oracle_losses_distributions.py",
        "tests/parity/test_oracle_losses_likelihoods.py",
        "tests/parity/test_bounded_objectives.py",
        "tests/parity/test_prefix_objectives.py",
    ),
    "kernels": ("tests/parity/test_etw_formula.py", "tests/parity/test_class_axis.py"),
    "metrics": (
        "tests/property/test_metrics_properties.py",
        "tests/parity/test_oracle_metrics.py",
        "tests/unit/benchmarks/test_choice.py",
    ),
    "scoring": ("tests/unit/runs/test_row_weights.py", "tests/unit/api/test_weights.py"),
}
#: Modules that nothing runs without a package.
NEEDS = {"etw_lightning.kernels.fused_rows": "triton"}
#: Text of the modules, as it was when the run began.
SOURCES: dict[str, str] = {}
#: Seconds that a test may take: as many times what it took without a fault, and so many more.
PATIENCE, MORE = 10, 3
#: More lines than any module has.
LONGEST = 1000
#: More faults than any room has.
EVERY = 10**6
#: On a busy machine a process waits for its turn.
WAITING = 20


class Runner:
    """A plugin that runs the collected tests for each fault in place of running them once.

    Args:
        mutants: The faults.
        known: Names of those that change nothing.
    """

    def __init__(self, mutants, known):
        self.mutants, self.known = mutants, known
        self.reached = defaultdict(set)
        self.seconds = {}
        self.failed = set()
        self.results = []

    @pytest.hookimpl
    def pytest_runtestloop(self, session):
        items = session.items
        for item, after in zip(items, [*items[1:], items[0]], strict=True):
            forget_results()
            started = time.process_time()
            self.trace_into(item)
            try:
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=after)
            finally:
                sys.settrace(None)
            self.seconds[item] = time.process_time() - started
        items = [item for item in items if item.nodeid not in self.failed]
        took = sum(self.seconds.values())
        sys.stderr.write(f"\n{len(items)} tests, {took:.0f} s of processor time\n")
        gc.freeze()
        for mutant in self.mutants:
            chosen = sorted(self.tests_of(mutant, items), key=self.seconds.get)
            known = mutant.name in self.known
            state = "equivalent" if known else self.try_out(session, mutant, chosen)
            self.results.append((state, mutant))
            sys.stderr.write(
                f"{state} {mutant.name} (line {mutant.lines.start}, {len(chosen)} tests)\n"
            )
        return True

    @pytest.hookimpl
    def pytest_runtest_logreport(self, report):
        if report.failed:
            self.failed.add(report.nodeid)

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef):
        """Note what a fixture reaches by itself: it is every test's that uses it."""
        if sys.gettrace() is None or fixturedef.scope == "function":
            return (yield)
        outer = sys.gettrace()
        self.trace_into(fixturedef)
        try:
            return (yield)
        finally:
            sys.settrace(outer)

    def trace_into(self, key):
        """Note the lines of the package that are reached from now on."""
        reached, prefix = self.reached[key], str(ROOT / PACKAGE)

        def called(frame, event, _):
            return line if frame.f_code.co_filename.startswith(prefix) else None

        def line(frame, event, _):
            reached.add((frame.f_code.co_filename, frame.f_lineno))
            return line

        sys.settrace(called)

    def fixtures_of(self, item):
        """Return the fixtures of a test that outlive it."""
        found = (item._fixtureinfo.name2fixturedefs.get(name, ()) for name in item.fixturenames)
        return [one for some in found for one in some if one in self.reached]

    def tests_of(self, mutant, items):
        """Return the tests that reach the lines of a fault."""
        lines = lines_of(mutant)
        # Tests of defaults read them from the package, and reach no line.
        package = sys.modules[mutant.module.rpartition(".")[0]].__file__
        files = {path for path, _ in lines} | {package}

        def reach(key):
            return not lines.isdisjoint(self.reached[key])

        def knows(item):
            shared = vars(item.module).values()
            return any(
                getattr(one, "__file__", None) in files
                or getattr(one, "__module__", None) == mutant.module
                for one in shared
            )

        return [
            item
            for item in items
            if any(reach(key) for key in (item, *self.fixtures_of(item)))
            or (not mutant.is_within and knows(item))
        ]

    def try_out(self, session, mutant, items):
        """Return ``found``, ``late`` or ``missed``."""
        sys.stderr.flush()
        child = os.fork()
        if not child:
            status = 3
            try:
                os.setpgrp()
                quiet = os.open(os.devnull, os.O_WRONLY)
                os.dup2(quiet, 1)
                os.dup2(quiet, 2)
                session.config.pluginmanager.unregister(name="terminalreporter")
                status = self.run_with(session, mutant, items)
            finally:
                os._exit(status)
        _, status = os.waitpid(child, 0)
        with suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(status)
        if code in (-signal.SIGPROF, -signal.SIGALRM):
            return "late"
        return "missed" if code == 0 else "found"

    def run_with(self, session, mutant, items):
        put_in(mutant)
        self.failed.clear()
        if not items:
            return 0
        lines = lines_of(mutant)
        shared = {one for item in items for one in self.fixtures_of(item)}
        touched = {one.scope for one in shared if not lines.isdisjoint(self.reached[one])}
        # What was made without the fault is made again.
        kept = None if "session" in touched else SimpleNamespace(listchain=lambda: [session])
        session._setupstate.teardown_exact(kept if touched else items[0])
        for item, after in zip(items, [*items[1:], None], strict=True):
            allowed = MORE + PATIENCE * self.seconds[item]
            signal.setitimer(signal.ITIMER_PROF, allowed)
            signal.setitimer(signal.ITIMER_REAL, WAITING * allowed)
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=after)
            if self.failed:
                return 1
        return 0


def lines_of(mutant):
    """Return the places in files one of which a test must reach to tell of a fault.

    Of what lies outside of functions, all of its module, and of those that import the constant.
    """
    module = importlib.import_module(mutant.module)
    if mutant.is_within:
        return {(module.__file__, line) for line in mutant.lines}
    tree = ast.parse(SOURCES[mutant.module])
    statement = next(one for one in tree.body if one.end_lineno >= mutant.lines.start)
    names = {one.id for one in getattr(statement, "targets", ()) if isinstance(one, ast.Name)}
    files = {
        one.__file__
        for one in ours(PACKAGE)
        for name in names & vars(one).keys()
        if vars(one)[name] is vars(module).get(name)
    }
    return {(file, line) for file in {module.__file__, *files} for line in range(1, LONGEST)}


def ours(*prefixes):
    """Return the package's modules that are loaded."""
    return [one for name, one in list(sys.modules.items()) if name.startswith(prefixes)]


def forget_results():
    """Clear what functions of the rooms keep, so that every test reaches what it needs."""
    for module in ours(*(f"{PACKAGE}.{room}" for room in ROOMS)):
        for value in vars(module).values():
            if getattr(value, "__module__", None) == module.__name__:
                getattr(value, "cache_clear", int)()


def put_in(mutant):
    """Put a fault into a module that is loaded: code, defaults and constants."""
    module = importlib.import_module(mutant.module)
    fresh = ModuleType(mutant.module)
    fresh.__file__ = module.__file__
    tree = mutant.tree(SOURCES[mutant.module])
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
            elif inspect.isclass(owner):
                # What a dataclass is made with, which holds the defaults of its fields.
                setattr(owner, name, other)
            if hasattr(value, "cache_clear"):
                value.cache_clear()
        elif isinstance(value, int | float | str | tuple | frozenset | dict) and value != other:
            for place in [owner, *sys.modules.values()]:
                # Tests import constants, too.
                file = getattr(place, "__file__", None) or ""
                is_ours = place is owner or file.startswith(str(ROOT))
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


def drawn(room, count, seed):
    """Return that many faults of a room's modules, the same for the same seed, and how many are."""
    found = []
    for path in sorted((ROOT / PACKAGE / room).rglob("*.py")):
        if path.name != "__init__.py" or room == "metrics":
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            name = name.removesuffix(".__init__")
            if is_absent(name):
                continue
            SOURCES.setdefault(name, path.read_text("utf-8"))
            found += mutants_of(name, SOURCES[name])
    return random.Random(seed).sample(found, min(count, len(found))), len(found)


def is_absent(module):
    """Tell whether a module lacks the package without which nothing runs it."""
    return module in NEEDS and importlib.util.find_spec(NEEDS[module]) is None


def score(results):
    """Return what is told of some faults."""
    states = [state for state, _ in results]
    counted = len(states) - states.count("equivalent")
    found = states.count("found") + states.count("late")
    return {
        "mutants": counted,
        "found": found,
        "late": states.count("late"),
        "score": round(found / max(1, counted), 4),
        "equivalent": states.count("equivalent"),
        "missed": [f"{m.name} (line {m.lines.start})" for state, m in results if state == "missed"],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rooms", nargs="+", default=ROOMS, choices=ROOMS)
    parser.add_argument("--mutants", type=int, default=40, help="of each room")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="faults whose name has this in it")
    given = parser.parse_args()
    drawn_of = {room: drawn(room, given.mutants, given.seed) for room in given.rooms}
    mutants = [one for some, _ in drawn_of.values() for one in some if given.only in one.name]
    known = json.loads((HERE / "equivalent.json").read_text("utf-8"))
    there_are = {one.name for room in ROOMS for one in drawn(room, EVERY, 0)[0]}
    if unknown := known.keys() - there_are:
        parser.error(f"equivalent.json names what is no fault any more: {sorted(unknown)}")
    runner = Runner(mutants, known)
    tests = [f"tests/unit/{room}" for room in given.rooms]
    tests += [test for room in given.rooms for test in BESIDE.get(room, ())]
    os.chdir(ROOT)
    # As pyproject.toml has it, but in one process and without the examples of docstrings.
    plainly = ["-q", "-o", "addopts=", "-p", "no:cacheprovider", "-m", "not slow"]
    pytest.main([*plainly, *tests], [runner])
    for room in given.rooms:
        results = [one for one in runner.results if one[1].module.split(".")[1] == room]
        line = {"room": room, "seed": given.seed, "faults_there_are": drawn_of[room][1]}
        line["left_out"] = [one for one in NEEDS if room in one.split(".") and is_absent(one)]
        sys.stdout.write(json.dumps({**line, **score(results)}) + "\n")
    whole = score(runner.results)
    del whole["missed"]
    line = {
        "seed": given.seed,
        **whole,
        "processor_seconds": round(sum(os.times()[:4])),
        "failing_without_a_fault": sorted(runner.failed),
    }
    sys.stdout.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
