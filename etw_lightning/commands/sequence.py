"""``sequence``: forget requests one after the other, each from the model that the last one left.

After each request its own numbers are told, and what the rows of all earlier requests do meanwhile:
whether what was forgotten comes back. The same command goes on where it was ended.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from etw_lightning.commands.refusals.options import Options
from etw_lightning.notices import program
from etw_lightning.schema import InputError
from etw_lightning.sequences.request_file import RequestFile, load_requests
from etw_lightning.sweeps.grid import as_typed
from etw_lightning.sweeps.processes import PROGRAM, Kind, held, run_all, say
from etw_lightning.sweeps.reading import Parse
from etw_lightning.sweeps.report import check_numbers
from etw_lightning.sweeps.runs import is_finished

__all__ = ["parser", "sequence"]


def sequence(args: Sequence[str], reader: Callable[[], Parse]) -> int:
    """Run ``sequence plan``, ``sequence run`` or ``sequence report``.

    Args:
        args: Words after ``sequence``.
        reader: Makes what gives the configuration that the words of a command mean; called once
            the sequence's file has been found to be in order.

    Returns:
        0 if all went well, 1 if a run failed or there is nothing to report yet.

    Raises:
        InputError: If the sequence's file, a run's configuration, its rows or its folder can't be
            used.
    """
    options = parser().parse_args(list(args))
    try:
        given = load_requests(options.config, options.output_dir, options.set, options.method)
        return _Sequence(given, reader()).answer(options.command, args)
    except InputError as error:
        raise InputError(as_typed(str(error), options.config, options.set)) from error


class _Sequence:
    """A sequence whose file is in order.

    Args:
        given: The file.
        parse: Gives the configuration that the words of a command mean.
    """

    def __init__(self, given: RequestFile, parse: Parse) -> None:
        from etw_lightning.catalogue.suite import metric_of
        from etw_lightning.commands.parser import data_of
        from etw_lightning.sequences.course import Course
        from etw_lightning.sequences.rows import count_rows
        from etw_lightning.sequences.steps import make_steps

        self.given, self.parse = given, parse
        check_numbers({"columns": given.columns, "watched": given.watched})
        found = [metric_of(name) for name in given.watched]
        self.metrics = list(dict.fromkeys(name for name in found if name is not None))
        self.steps = make_steps(given, parse)
        self.counts = count_rows(given.requests, self.steps, data_of)
        self.course = Course(given, self.steps)

    def answer(self, command: str, args: Sequence[str]) -> int:
        """Do what was asked for; return the exit status.

        Raises:
            InputError: If a request's folder holds a finished run of other settings, or what a
                later request reads can't be read.
        """
        # Before scores are made again or a report is written over: nothing is lost.
        for step in self.steps:
            is_finished(step.run)
        if command in ("plan", "run") and not self._is_done():
            self._check_inputs(runs=command == "run")
        if command == "plan":
            self.plan()
            return 0
        if command == "run":
            with held(Path(self.given.output_dir), "sequence"):
                status = self.run()
                say(self.course.write(self.counts))
            return status
        if not self.course.done:
            line = shlex.join(["sequence", "run", *args[1:]])
            say(f"nothing is finished in {self.given.output_dir!r}; {program()} {line} runs it")
            return 1
        say(self.course.write(self.counts))
        return 0

    def _is_done(self) -> bool:
        """Tell whether every request is done, and its rows have been scored after each."""
        from etw_lightning.sequences.steps import is_watched

        return len(self.course.done) == len(self.steps) and all(
            is_watched(watch, self.steps)
            for after in range(len(self.steps) + 1)
            for watch in self._watches(after)
        )

    def _check_inputs(self, *, runs: bool) -> None:
        """Refuse at once what a later request would be refused for at its turn."""
        from etw_lightning.commands.parser import data_of
        from etw_lightning.sequences.inputs import check_inputs
        from etw_lightning.sequences.steps import watch_of

        last = len(self.steps)
        watches = [
            watch_of(self.given, self.steps, last, step.number, self.metrics, self.parse)
            for step in self.steps
        ]
        check_inputs(self.given, self.steps, watches, data_of, runs=runs)

    def plan(self) -> None:
        """Print the rows of each request, and the commands in their order."""
        from etw_lightning.sequences.steps import is_watched

        for after in range(len(self.steps) + 1):
            if after:
                step = self.steps[after - 1]
                name = self.given.requests[after - 1].forget
                say(f"# request {after}, {name}: {self.counts[after - 1]}")
                self._print(step.run.words, is_done=is_finished(step.run))
            for watch in self._watches(after):
                self._print(watch.run.words, is_done=is_watched(watch, self.steps))

    def _print(self, words: Sequence[str], *, is_done: bool) -> None:
        line = shlex.join([*PROGRAM, *words])
        say(f"# finished: {line}" if is_done else line)

    def run(self) -> int:
        """Run what is not finished, in order; return 1 if something failed."""
        for after in range(len(self.steps) + 1):
            if not (self._forget(after) and self._watch(after)):
                return 1
            if after:
                say(self.course.line(self.steps[after - 1]))
        return 0

    def _forget(self, number: int) -> bool:
        """Run a request; return whether it is done."""
        if not number:
            return True
        step = self.steps[number - 1]
        say(
            f"request {number}, {self.given.requests[number - 1].forget}: {self.counts[number - 1]}"
        )
        if is_finished(step.run):
            self.course.check_start(step)
            say(f"skipped {step.run.name}: finished, {step.run.folder}")
            return True
        self.course.begin(step)
        self.course.write(self.counts)
        return not run_all([step.run], 1)

    def _watch(self, after: int) -> bool:
        """Score the rows of requests after one; return whether all were."""
        from etw_lightning.runs.folder import remove_run
        from etw_lightning.sequences.steps import is_watched

        waiting = {
            one.run.name: one for one in self._watches(after) if not is_watched(one, self.steps)
        }
        for one in waiting.values():
            # Scores of another model, or of other settings; scores are kept elsewhere.
            remove_run(one.run.folder, "evaluate")
        kind = Kind(lambda run: is_watched(waiting[run.name], self.steps), lambda _: True)
        return not run_all([one.run for one in waiting.values()], 1, kind)

    def _watches(self, after: int) -> Any:
        from etw_lightning.sequences.steps import watches_of

        return watches_of(self.given, self.steps, after, self.metrics, self.parse)


def parser() -> Options:
    """Return the command's options."""
    parser = Options("sequence", __doc__)
    parser.add_argument(
        "command",
        choices=("plan", "run", "report"),
        help="count rows and print the commands; run what is not finished; print the tables (exit "
        "status 1: nothing to report yet)",
    )
    parser.add_file(
        "sequence",
        "sequence/quickstart",
        "setting of every run; takes the place of the file's; what is given to run must be given "
        "to report too",
    )
    parser.add_argument(
        "--method",
        help="method file, as method/npo, laid over the sequence's configurations; it too must be "
        "given to report",
    )
    return parser
