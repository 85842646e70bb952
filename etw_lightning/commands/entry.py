"""``etw`` and ``python -m etw_lightning``: what was asked for, before heavy imports."""

from __future__ import annotations

import contextlib
import difflib
import gc
import os
import shutil
import signal
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from types import FrameType
from typing import Any

from etw_lightning import __version__
from etw_lightning.commands.refusals.early import check_early
from etw_lightning.commands.refusals.options import Options
from etw_lightning.commands.stored_help import laid_out, load
from etw_lightning.files.class_paths import look_here
from etw_lightning.files.config_files import resolve_words
from etw_lightning.files.setting_names import why_unread
from etw_lightning.notices import for_screen, hanging, is_first, printable, program
from etw_lightning.schema import InputError

__all__ = ["COMMANDS", "main"]

#: Each command and what it does.
COMMANDS: Mapping[str, str] = {
    "fit": "Train, and evaluate epoch by epoch; given again, the command goes on where it was.",
    "evaluate": "Score a model without training; write its records and results.json.",
    "check": "Verify what fit would verify, and predict memory; train, load and write nothing.",
    "weights": "Show the weight that each token of a forget row would have: weights --row 3.",
    "alternatives": "Have a model write second answers, for methods that prefer one.",
    "sweep": "Train with several settings, pick one: sweep plan|run|search|report --config FILE.",
    "sequence": "Forget request after request, and watch the earlier: sequence run --config FILE.",
    "report": "Make one HTML file of finished runs, or a table: report RUN... -o report.html.",
    "compare": "Rank finished runs over seeds by a named rule: compare RUN... --rank RULE.",
    "attack": "Attack a finished run and its retain model alike: attack NAME --model RUN.",
    "export": "Make a model's folder of a checkpoint: export --checkpoint PATH.",
    "explain": "Say what a metric, or a number of results.json, is: explain NAME.",
    "configs": "List the shipped configurations; print one: configs NAME; copy all: --copy DIR.",
}
_DESCRIPTION = (
    "Machine unlearning of language models: train one to forget some rows and keep others, by "
    "entropy-guided token weighting and other methods, and measure how well that went."
)


def main(args: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        args: Words of the command; those of the process by default.

    Returns:
        0 if all went well; with one line on the standard error 2 if the input was refused, 1 if
        training could not go on.
    """
    # A thread that waits for work must not spin: next to another job on the same cores, spinning
    # makes a step of a small model a hundred times slower. Read when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    typed = list(sys.argv[1:] if args is None else args)
    command = typed[0] if typed else ""
    try:
        if command in _LIGHT:
            return _LIGHT[command](typed[1:])
        if command.startswith("-"):
            return _of_program(typed)
        if command not in COMMANDS:
            raise InputError(_unknown(command))
        if _is_answered(command, typed[1:]):
            return 0
        return _run(command, args)
    except InputError as error:
        sys.stderr.write(for_screen(f"error: {printable(str(error))}", is_error=True) + "\n")
        return 2
    except KeyboardInterrupt:
        goes_on = command in ("sweep", "sequence")
        kept = "; the same command goes on with what is not done" if goes_on else ""
        sys.stderr.write(f"interrupted{kept}\n")
        return 128 + signal.SIGINT


def _is_answered(command: str, words: Sequence[str]) -> bool:
    """Show a command's help, or refuse what is plainly wrong, in less than its imports take.

    Returns:
        Whether the help was shown.

    Raises:
        InputError: If a configuration is absent, there is no option of a name, a value is one
            that its key can't take, or the command would not read it.
    """
    commands = load()
    if commands is not None and {"-h", "--help"} & set(words):
        sys.stdout.write(laid_out(commands[command]))
        return True
    _, files = resolve_words(words)
    if commands is not None:
        check_early(commands, command, words, files)
    is_shown = any("print_config" in word or word.endswith(".help") for word in words)
    line = None if is_shown else why_unread(command, words)
    if line is not None:
        raise InputError(line)
    return False


def _run(command: str, args: list[str] | None) -> int:
    """Run ``fit``, ``evaluate``, ``check`` or ``weights``."""
    before = {} if "etw_lightning.commands.cli" in sys.modules else _end_at_once(command)
    look_here()
    with _nothing_collected():
        from etw_lightning.commands.cli import main as run

    for number, handler in before.items():
        if command != "fit":  # which handles signals itself
            signal.signal(number, handler)
    return run(args)


@contextlib.contextmanager
def _nothing_collected() -> Iterator[None]:
    """Look for no garbage while libraries are imported, nor among what they have made.

    It stays: the search, again and again, took a sixth of the seconds of the imports.
    """
    was_on, is_first = gc.isenabled(), "lightning" not in sys.modules
    gc.disable()
    try:
        yield
    finally:
        if is_first:
            gc.freeze()
        if was_on:
            gc.enable()


def _end_at_once(command: str) -> dict[int, Any]:
    """Have a signal that comes while the libraries are imported end the process with one line.

    What an exception meets in the middle of an import may swallow it. Nothing is written yet.

    Returns:
        The handlers there were before, by signal.
    """

    def end(number: int, _frame: FrameType | None) -> None:
        if is_first():
            name = signal.Signals(number).name
            again = "the same command starts again" if command == "fit" else "nothing was written"
            os.write(2, f"stopped by {name} before the first step; {again}\n".encode())
        # Slurm's request to end is one like any other; the job scripts requeue on its status.
        os._exit(128 + (signal.SIGINT if number == signal.SIGINT else signal.SIGTERM))

    is_job = command in ("fit", "evaluate")
    numbers = [signal.SIGINT, signal.SIGTERM, *[signal.SIGUSR1] * is_job]
    usual = (signal.SIG_DFL, signal.default_int_handler)
    before: dict[int, Any] = {number: signal.getsignal(number) for number in numbers}
    for number, handler in before.items():
        if handler in usual:
            signal.signal(number, end)
    return before


def _of_program(typed: Sequence[str]) -> int:
    """Answer what is asked of the program as a whole."""
    columns = shutil.get_terminal_size().columns - 2
    parser = Options("", textwrap.fill(_DESCRIPTION, columns))
    parser.usage = f"{parser.prog} COMMAND [options]"
    parser.add_argument("--version", action="store_true", help="print versions and the device")
    parser.add_argument(
        "--print_completion",
        choices=("bash", "tcsh", "zsh"),
        help="print what completes commands and options in a shell; needs pip install "
        "'etw-lightning[completion]'",
    )
    width = max(map(len, COMMANDS))
    lines = [
        hanging(f"  {name:{width}}  {line}", columns, width + 2) for name, line in COMMANDS.items()
    ]
    parser.add_argument_group(
        "commands", "COMMAND --help lists the options of one.\n\n" + "\n".join(lines)
    )
    given = parser.parse_args(list(typed))
    if given.version:
        sys.stdout.write(_versions())
        return 0
    if given.print_completion:
        from etw_lightning.commands.completion import completion_script

        sys.stdout.write(completion_script(given.print_completion, COMMANDS))
        return 0
    raise InputError(_unknown(""))


def _versions() -> str:
    """Return our version, those of the main libraries and the device, a line each."""
    torch_version = version("torch")
    names = ("lightning", "transformers")
    lines = [
        f"etw-lightning {__version__}",
        f"torch {torch_version}",
        *(f"{name} {version(name)}" for name in names),
        f"device {_device(torch_version)}",
    ]
    return "".join(f"{line}\n" for line in lines)


def _device(torch_version: str) -> str:
    """Return what a run would be on by default."""
    if torch_version.endswith("+cpu"):
        return "cpu"
    import torch

    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if found is None:
        return "cpu"
    count = torch.accelerator.device_count()
    name = torch.cuda.get_device_name(0) if found.type == "cuda" else ""
    return " ".join(filter(None, (found.type, f"x {count}", f"({name})" if name else "")))


def _unknown(command: str) -> str:
    if not command:
        return f"a command must be given: {program()} fit --config NAME"
    near = difflib.get_close_matches(command, COMMANDS, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    *most, last = COMMANDS
    return f"the command must be {', '.join(most)} or {last}; got {command!r}.{hint}"


def _configs(words: list[str]) -> int:
    from etw_lightning.commands.configs import configs

    return configs(words)


def _explain(words: list[str]) -> int:
    from etw_lightning.commands.explain import explain_names

    return explain_names(words)


def _compare(words: list[str]) -> int:
    from etw_lightning.commands.compare import compare

    return compare(words)


def _alternatives(words: list[str]) -> int:
    from etw_lightning.commands.alternatives import alternatives

    return alternatives(words)


def _attack(words: list[str]) -> int:
    from etw_lightning.commands.attack import attack

    return attack(words)


def _report(words: list[str]) -> int:
    from etw_lightning.commands.report import report

    return report(words)


def _export(words: list[str]) -> int:
    from etw_lightning.commands.export import export

    return export(words)


def _sweep(words: list[str]) -> int:
    from etw_lightning.commands.sweep import sweep

    return sweep(words, _reader)


def _sequence(words: list[str]) -> int:
    from etw_lightning.commands.sequence import sequence

    return sequence(words, _reader)


def _reader() -> Any:
    """Return what gives the configuration that the words of a command mean."""
    look_here()
    with _nothing_collected():
        from etw_lightning.commands.run_reader import RunReader

    return RunReader().read


#: Commands that begin without what ``fit`` needs.
_LIGHT: Mapping[str, Callable[[list[str]], int]] = {
    "alternatives": _alternatives,
    "attack": _attack,
    "compare": _compare,
    "configs": _configs,
    "explain": _explain,
    "export": _export,
    "report": _report,
    "sequence": _sequence,
    "sweep": _sweep,
}
