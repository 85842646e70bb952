"""How a sequence went: numbers after each request, and what earlier requests' rows did since."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from etw_lightning.schema import InputError
from etw_lightning.scoring.provenance import library_versions
from etw_lightning.scoring.retain_results import write_atomically
from etw_lightning.sequences.request_file import RequestFile
from etw_lightning.sequences.rows import RowCounts
from etw_lightning.sequences.steps import WATCHED, Step, model_hash, results_in
from etw_lightning.sweeps.report import table
from etw_lightning.sweeps.runs import Finished

__all__ = ["BOARD", "FILE", "REPORT", "Course"]

#: Files and the folder of TensorBoard's, in a sequence's folder.
FILE, REPORT, BOARD = "sequence.json", "report.md", "course"
_MISSING = "\u2013"


class Course:
    """What the runs of a sequence have left so far.

    Args:
        given: The sequence's file.
        steps: What is done for each request.
    """

    def __init__(self, given: RequestFile, steps: Sequence[Step]) -> None:
        self.given, self.steps = given, steps
        self.folder = Path(given.output_dir)
        #: Hash of the model that each request's run started from, by its folder's name.
        self.starts = _starts_in(self.folder)
        #: The same of runs that this process has begun: another one may report meanwhile.
        self._begun: dict[str, str] = {}

    def begin(self, step: Step) -> None:
        """Note which model a request's run starts from; the first one's has no hash of ours."""
        if step.number > 1:
            start = model_hash(results_in(self.steps[step.number - 2].run.folder))
            self._begun |= {} if start is None else {step.run.folder.name: start}
            self.starts |= self._begun

    def check_start(self, step: Step) -> None:
        """Refuse a finished run that started from another model than the one there is now.

        Raises:
            InputError: With the way out.
        """
        if step.number == 1:
            return
        before = self.steps[step.number - 2].run.folder
        then, now = self.starts.get(step.run.folder.name), model_hash(results_in(before))
        if then is not None and now is not None and then != now:
            raise InputError(
                f"{str(step.run.folder)!r} started from another model than {str(before)!r} holds "
                "now; remove it and those after it, and the same command runs them again."
            )

    @property
    def done(self) -> list[Step]:
        """The requests from the first on that are done."""
        found = []
        for step in self.steps:
            if not results_in(step.run.folder):
                break
            found.append(step)
        return found

    def numbers(self, step: Step, names: Sequence[str]) -> dict[str, float | None]:
        """Return numbers of the model after a request, by name; None for one there is not."""
        found = _finished(step.run.folder)
        return {name: found.number(name) if found else None for name in names}

    def watched(self, request: int, after: int) -> dict[str, float | None]:
        """Return the numbers of a request's rows once some request is done.

        Args:
            request: Whose rows, from 1.
            after: Which request is done; 0 for none yet.

        Returns:
            Each watched number, None for one there is not.
        """
        scored = _finished(self.folder / WATCHED / f"{after}_on_{request}")
        if scored:
            return {name: scored.number(name) for name in self.given.watched}
        is_next = after == request - 1
        is_in_run = (is_next or after == request) and not self.given.watched_with
        run = _finished(self.steps[request - 1].run.folder) if is_in_run else None
        return {
            name: run.number(name, of_target=is_next) if run else None
            for name in self.given.watched
        }

    def course(self, request: int, name: str) -> list[float | None]:
        """Return one number of a request's rows: before all requests, then after each."""
        return [self.watched(request, after)[name] for after in range(len(self.steps) + 1)]

    def line(self, step: Step) -> str:
        """Return one line of the numbers after a request."""
        said = _said(self.numbers(step, self.given.columns))
        earlier = [
            f"request {number}: {_said(self.watched(number, step.number))}"
            for number in range(1, step.number)
        ]
        since = f"; since, {'; '.join(earlier)}" if earlier else ""
        place = f"{step.number} of {len(self.steps)}, {self._split(step)}"
        return f"request {place}: {said}{since}"

    def _split(self, step: Step) -> str:
        return self.given.requests[step.number - 1].forget

    def as_json(self, counts: Sequence[RowCounts]) -> dict[str, Any]:
        """Return all numbers, ready for JSON."""
        done = [step.number for step in self.done]
        requests = []
        for step, count in zip(self.steps, counts, strict=True):
            request = self.given.requests[step.number - 1]
            afters = range(len(self.steps) + 1)
            own = self.numbers(step, self.given.columns) if step.number in done else None
            watched = {after: self.watched(step.number, after) for after in afters}
            known = {
                str(after): numbers
                for after, numbers in watched.items()
                if any(value is not None for value in numbers.values())
            }
            requests.append(
                {
                    "number": step.number,
                    **{name: value for name, value in asdict(request).items() if value},
                    "rows": asdict(count),
                    "folder": step.run.folder.name,
                    "config_hash": step.run.key,
                    "started_from": self.starts.get(step.run.folder.name),
                    "model": model_hash(results_in(step.run.folder)),
                    "numbers": own,
                    "watched": known,
                }
            )
        return {
            "command": "sequence",
            "finished": len(done) == len(self.steps),
            "config": list(self.given.config),
            "settings": dict(self.given.settings),
            "requests": requests,
            "versions": library_versions(),
        }

    def as_markdown(self, counts: Sequence[RowCounts]) -> str:
        """Return the tables: the model after each request, then each request's rows over time."""
        rows = []
        for step, count in zip(self.steps, counts, strict=True):
            numbers = self.numbers(step, self.given.columns)
            cells = [_written(value) for value in numbers.values()]
            again = f", {count.asked_before} again" if count.asked_before else ""
            rows.append([str(step.number), self._split(step), f"{count.forget}{again}", *cells])
        lines = [
            f"After each of {len(self.steps)} requests; forget numbers are of the request's own "
            "rows, against its own retain model.",
            "",
            *table(["request", "forgets", "rows", *self.given.columns], rows),
        ]
        heads = ["before", *(f"after {step.number}" for step in self.steps)]
        for name in self.given.watched:
            rows = [self._row(step, name) for step in self.steps]
            lines += ["", f"{name} of each request's rows; bold once they are forgotten.", ""]
            lines += table(["request", "forgets", *heads, "since"], rows)
        told = "since: from the request's own step to the last that is known; -- is not measured."
        return "\n".join([*lines, "", told.replace("--", _MISSING)])

    def _row(self, step: Step, name: str) -> list[str]:
        course = self.course(step.number, name)
        cells = [
            f"**{_written(value)}**" if after == step.number and value is not None
            else _written(value)
            for after, value in enumerate(course)
        ]  # fmt: skip
        own = course[step.number]
        later = [value for value in course[step.number + 1 :] if value is not None]
        is_known = own is not None and later
        since = f"{later[-1] - own:+.3f}" if is_known and own is not None else _MISSING
        return [str(step.number), self._split(step), *cells, since]

    def write(self, counts: Sequence[RowCounts]) -> str:
        """Write ``sequence.json``, ``report.md`` and TensorBoard's curves; return the report."""
        self.starts |= _starts_in(self.folder) | self._begun
        text = self.as_markdown(counts)
        made = json.dumps(self.as_json(counts), indent=2, ensure_ascii=False)
        write_atomically(self.folder / FILE, f"{made}\n".encode())
        write_atomically(self.folder / REPORT, f"{text}\n".encode())
        self._write_board()
        return text

    def _write_board(self) -> None:
        """Write curves over requests, anew: what TensorBoard has of an earlier call is replaced."""
        from torch.utils.tensorboard import SummaryWriter

        shutil.rmtree(self.folder / BOARD, ignore_errors=True)
        with SummaryWriter(str(self.folder / BOARD)) as board:
            for step in self.done:
                for name, value in self.numbers(step, self.given.columns).items():
                    if value is not None:
                        board.add_scalar(f"after each request/{name}", value, step.number)
            for step in self.steps:
                for name in self.given.watched:
                    for after, value in enumerate(self.course(step.number, name)):
                        if value is not None:
                            tag = f"{name} of each request/{step.number} {self._split(step)}"
                            board.add_scalar(tag, value, after)


def _starts_in(folder: Path) -> dict[str, str]:
    """Return the hash of the model that each request's run started from, by its folder's name."""
    try:
        found = json.loads((folder / FILE).read_text(encoding="utf-8"))
        held = {one["folder"]: one["started_from"] for one in found["requests"]}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return {name: start for name, start in held.items() if isinstance(start, str)}


def _finished(folder: Path) -> Finished | None:
    results = results_in(folder)
    return Finished(folder, results) if results else None


def _said(numbers: Mapping[str, float | None]) -> str:
    return ", ".join(f"{name} {_written(value)}" for name, value in numbers.items())


def _written(value: float | None) -> str:
    if value is None:
        return _MISSING
    is_small = 0 < abs(value) < 0.001
    return f"{value:.1e}" if is_small else f"{value:.3f}"
