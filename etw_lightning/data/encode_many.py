"""Many rows encoded: in batches, by several processes where there are enough, and with a word."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from itertools import chain, islice
from typing import Any, TypeVar

from etw_lightning.data.encode import JOINT, Encoder
from etw_lightning.data.joined_text import WIDTH, merged, tokenise, windows_of
from etw_lightning.schema import EncodedRow, Example, InputError

__all__ = [
    "TOGETHER",
    "cut_each",
    "cut_many",
    "do_many",
    "encode_each",
    "encode_many",
    "num_cores",
]

#: Rows that are encoded in one call.
TOGETHER = 512
#: Rows of a process below which starting it costs more than it saves.
_WORTH_A_PROCESS = 4 * TOGETHER
#: The same, in characters of raw texts.
_TEXT_WORTH_A_PROCESS = 4 * WIDTH
_MOST_PROCESSES = 8
#: Seconds between lines where there is no terminal to draw a bar on.
_BETWEEN_LINES = 60.0
#: What a process that was started to encode does with a part.
_WORK: list[Callable[[Any], Any]] = []

_Part = TypeVar("_Part")
_Made = TypeVar("_Made")
_Item = TypeVar("_Item")


def encode_each(
    examples: Sequence[Example], encoder: Encoder, answers: Sequence[str] | None = None
) -> list[EncodedRow]:
    """Encode some rows, batch by batch, in this process.

    Args:
        examples: The rows.
        encoder: What encodes them.
        answers: Take the places of theirs.

    Raises:
        InputError: As ``Encoder.encode``, of the first row that it refuses.
    """
    rows: list[EncodedRow] = []
    for start in range(0, len(examples), TOGETHER):
        part = slice(start, start + TOGETHER)
        rows += encoder.encode_all(examples[part], None if answers is None else answers[part])
    return rows


def encode_many(
    examples: Iterable[Example], encoder: Encoder, total: int, words: str
) -> Iterator[EncodedRow]:
    """Encode rows as they come, in their order; few of them are in memory at a time.

    How far it is is shown: by a bar on a terminal, else by a line now and again.

    Args:
        examples: The rows.
        encoder: What encodes them.
        total: Number of rows.
        words: What is shown with the progress.

    Raises:
        InputError: As ``Encoder.encode``; or if a process was ended from outside.
    """
    for batch in do_many(encoder.encode_all, examples, total, words):
        yield from batch


def do_many(
    work: Callable[[list[_Item]], _Made], items: Iterable[_Item], total: int, words: str
) -> Iterator[_Made]:
    """Do work on some hundreds of rows at a time, in their order, as ``encode_many`` does.

    Args:
        work: What is done with some of them.
        items: The rows.
        total: Their number.
        words: What is shown with the progress.

    Raises:
        InputError: As the work; or if a process was ended from outside.
    """
    count, done = _num_processes(total), 0
    given = iter(items)
    parts = iter(lambda: list(islice(given, TOGETHER)), [])
    with _shown(words, f"{total} rows", total, count) as advance:
        for made in _worked(work, parts, count):
            yield made
            advance(min(TOGETHER, total - done))
            done += TOGETHER


def cut_many(
    texts: Iterable[str], encoder: Encoder, name: str, total: int, words: str
) -> Iterator[EncodedRow]:
    """Cut raw texts into the rows that ``Encoder.chunk`` makes of them, as they come.

    Args:
        texts: The texts.
        encoder: What encodes them.
        name: As of ``Encoder.chunk``.
        total: Number of their characters, about.
        words: What is shown with the progress.

    Raises:
        InputError: As ``Encoder.chunk``; or if a process was ended from outside.
    """
    count = _num_processes(total, _TEXT_WORTH_A_PROCESS)
    work = partial(tokenise, encoder.tokenizer)
    with _shown(words, f"{total} characters of text", total, count) as advance:

        def tokens() -> Iterator[list[int]]:
            for ids in merged(_worked(work, windows_of(texts, JOINT, WIDTH), count), work):
                yield ids.tolist()
                advance(WIDTH)

        yield from encoder.cut_tokens(chain.from_iterable(tokens()), name)


def cut_each(texts: Iterable[str], encoder: Encoder, name: str) -> list[EncodedRow]:
    """Cut raw texts into the rows that ``Encoder.chunk`` makes of them, window by window, here.

    Args:
        texts: The texts.
        encoder: What encodes them.
        name: As of ``Encoder.chunk``.

    Raises:
        InputError: As ``Encoder.chunk``.
    """
    work = partial(tokenise, encoder.tokenizer)
    ids = merged(map(work, windows_of(texts, JOINT, WIDTH)), work)
    return list(encoder.cut_tokens(chain.from_iterable(part.tolist() for part in ids), name))


def num_cores() -> int:
    """Return the number of cores this process may use, >= 1, where the system tells."""
    has_affinity = hasattr(os, "sched_getaffinity")
    return len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1


def _worked(work: Callable[[_Part], _Made], parts: Iterator[_Part], count: int) -> Iterator[_Made]:
    """Do work on parts, in their order: here, or in so many processes."""
    return map(work, parts) if count < 2 else _by_processes(work, parts, count)


def _num_processes(total: int, each: int = _WORTH_A_PROCESS) -> int:
    """Return how many processes pay for so many rows, or for what else ``each`` counts."""
    torch = sys.modules.get("torch")
    # A process that has begun with a GPU can't be copied.
    if sys.platform != "linux" or (torch is not None and torch.cuda.is_initialized()):
        return 1
    return min(num_cores(), _MOST_PROCESSES, total // each)


def _by_processes(
    work: Callable[[_Part], _Made], parts: Iterator[_Part], count: int
) -> Iterator[_Made]:
    """Do work on parts in copies of this process, some ahead of what is asked for."""
    # Copies, not new processes: a script of the user's that starts this one is not run again.
    context = multiprocessing.get_context("fork")
    _WORK[:] = [work]
    pool = ProcessPoolExecutor(count, context, _begin, (os.getpid(),))
    try:
        coming: deque[Future[_Made]] = deque()
        for part in parts:
            coming.append(pool.submit(_work, part))
            if len(coming) > 2 * count:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()
    except BrokenProcessPool as error:
        raise InputError(
            "a process that encodes rows was ended from outside, perhaps for want of memory; give "
            "the same command again where there is more."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)
        _WORK.clear()


def _begin(parent: int) -> None:
    """Make ready a process that encodes: signals are its parent's affair, and it ends with it."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    # Threads of the tokenizer are not copied with the process.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _work(part: Any) -> Any:
    return _WORK[0](part)


class _Lines:
    """Says how far something is, where there is no terminal: at once, then every minute."""

    def __init__(self, words: str, total: int) -> None:
        self.words, self.total, self.done = words, total, 0
        self.began = self.said = time.monotonic()

    def advance(self, count: int) -> None:
        """Count some more, and say so if it is time."""
        self.done += count
        now = time.monotonic()
        # A text's last window may be short, and is counted whole.
        if self.done < self.total and now - self.said >= _BETWEEN_LINES:
            self.said = now
            share = 100 * self.done // self.total
            sys.stderr.write(
                f"{self.words}: {self.done} of {self.total} ({share} %), {now - self.began:.0f} s\n"
            )
            sys.stderr.flush()


@contextmanager
def _shown(words: str, what: str, total: int, count: int) -> Iterator[Callable[[int], None]]:
    """Show progress; of the processes of a run only one comes here. Gives what is told of it."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True)) as bar:
            task = bar.add_task(words, total=total)
            yield lambda num: bar.advance(task, num)
    else:
        by = f" by {count} processes" if count > 1 else ""
        sys.stderr.write(f"{words}: {what}{by}; the next start finds them\n")
        sys.stderr.flush()
        yield _Lines(words, total).advance
