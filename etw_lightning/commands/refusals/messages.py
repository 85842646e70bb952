"""The parser's nested messages as one line: the key as typed, what it was, what is allowed."""

from __future__ import annotations

import difflib
import inspect
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

from etw_lightning.commands.refusals.refused_values import (
    Choices,
    choices_at,
    either,
    focused,
    refused_value,
)
from etw_lightning.files.setting_names import SAME, renamed
from etw_lightning.notices import program

__all__ = ["LAMBDA", "lacking", "one_line", "with_lambda"]

#: The two names of the weight of the forget term.
(LAMBDA,) = SAME.items()


def with_lambda(line: str, typed: Sequence[str]) -> str:
    """Return a message with the name of the forget term's weight as the user types it.

    Args:
        line: The message.
        typed: Words of the command line.
    """
    short, plain = LAMBDA
    if any(word.startswith("--model.la") for word in typed):  # mistyped too
        return renamed(line, {plain: short})
    name = line.partition(" ")[0]
    if any(word.partition("=")[0] == f"--{name}" for word in typed):
        return line
    # A file takes the plain name only.
    return line.replace(f"mean {short!r}", f"mean {plain!r}")


def one_line(
    message: str,
    known: Sequence[str] = (),
    choices: Choices | None = None,
    typed: Sequence[str] = (),
) -> str:
    r"""Return the parser's nested message as one line.

    Args:
        message: What the parser says.
        known: Keys there are, to suggest one for a mistyped one.
        choices: Classes that a key takes, by name.
        typed: Words of the command line, to name the configuration file that is broken.

    Example:
        >>> one_line('Parser key "model.lr":\n  Not of type PositiveFloat: 0 does not conform ...')
        'model.lr must be a number > 0; got 0.'
        >>> one_line("unrecognized arguments: --model.ls 3", ["model.lr", "data.root"])
        "model.ls is not known. Did you mean 'model.lr'?"
        >>> one_line('Parser key "data.anchor":\n  Expected a typing.Literal[\'a\', \'b\']. '
        ...          'Got value: x')
        "data.anchor must be a or b; got 'x'."
    """
    raw, message, choices = message, focused(message), choices or {}
    key = ""
    for part in re.findall(r'Parser key "([^"]+)"', message):
        key = part if not key or f"{part}.".startswith(f"{key}.") else f"{key}.{part}"
    return (
        _unknown_key(message, key, known, choices)
        or _refused_command(message, key)
        or _refused_file(message, key, typed)
        or refused_value(raw, key, choices, typed)
        or _plain(message, key)
    )


def _unknown_key(message: str, key: str, known: Sequence[str], choices: Choices) -> str | None:
    """Name an option that does not exist, and one that does."""
    loose = re.match(r"unrecognized arguments: (?:--)?([^\s=]+)", message)
    option = re.search(r"(?:Option|does not accept option) '([^']+)'", message)
    if loose is None and option is None:
        return None
    chosen = re.findall(r"Problem with given class_path '([^']+)'", message)
    if option and chosen:
        return _not_an_argument(key, option[1], chosen[-1], choices)
    name = loose[1] if loose else ".".join(filter(None, (key, option[1] if option else "")))
    # What stands around a key is never meant by it.
    others = [other for other in known if not name.startswith(f"{other}.")]
    near = difflib.get_close_matches(name, others, n=1, cutoff=0.5)
    return f"{name} is not known." + (
        f" Did you mean {near[0]!r}?" if near else " --help lists what is."
    )


def _not_an_argument(key: str, name: str, path: str, choices: Choices) -> str:
    """Say what the class that was chosen takes, and which ones take what was typed."""
    module, _, chosen = path.rpartition(".")
    classes = choices_at(key, choices)
    kind = classes[chosen] if chosen in classes else vars(sys.modules[module])[chosen]
    takes = _arguments(kind)
    others = [other for other, one in classes.items() if name in _arguments(one)]
    near = difflib.get_close_matches(name, [*takes, "class_path", "init_args"], n=1)
    if near and not others:
        return f"{key}.{name} is not known. Did you mean '{key}.{near[0]}'?"
    taken = either(takes, "and") or "none"
    line = f"{key}.{name} is not an argument of {chosen}, which takes {taken}."
    verb = "takes" if len(others) == 1 else "take"
    return f"{line} {either(others, 'and')} {verb} it." if others else line


def _arguments(kind: type) -> list[str]:
    return list(inspect.signature(kind).parameters)


def _refused_command(message: str, key: str) -> str | None:
    """Say what is missing from the command itself, or what it must be."""
    inner = re.search(r"class_path .*\s+the following arguments are required: ([\w, ]+)", message)
    if inner and key:
        arguments = ", ".join(f"{key}.{name.strip()}" for name in inner[1].split(","))
        return f"{arguments} must be given."
    if "arguments are required" in message:
        missing = re.sub(r"\b(?:fit|evaluate|check|weights)\.", "", message.split(": ")[-1]).strip()
        return lacking(missing)
    command = re.search(r"subcommand: invalid choice: '(.*?)' \(choose from (.*)\)", message)
    if command:
        names = re.findall(r"\w+", command[2])
        return f"the command must be {either(names)}; got {command[1]!r}."
    if 'expected "subcommand"' in message:
        return f"a command must be given: {program()} fit --config NAME"
    return None


def lacking(names: str) -> str:
    """Say that settings are missing that every complete file has."""
    return (
        f"{names} must be given; begin with a complete file: --config NAME, one of those "
        "that the command 'configs' lists"
    )


def _refused_file(message: str, key: str, typed: Sequence[str]) -> str | None:
    """Name the configuration file that is missing or broken, and where."""
    missing = re.search(r"(?:File does not exist|Path is not a file): '([^']+)'", message)
    if missing:
        return f"{key} must be a YAML file; {missing[1]!r} is not one."
    if not message.startswith(("Problems parsing config", "Unexpected config")):
        return None
    for path in filter(Path.is_file, _config_files(typed)):
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            return f"config {str(path)!r} is not YAML: {' '.join(str(error).split())}."
        if not isinstance(content, dict):
            return f"config {str(path)!r} must hold lines `key: value`; got {content!r:.60}."
    return None


def _config_files(typed: Sequence[str]) -> Iterator[Path]:
    for word, following in zip(typed, (*typed[1:], ""), strict=False):
        option, _, value = word.partition("=")
        if option in ("--config", "-c"):
            yield Path(value or following)


def _plain(message: str, key: str) -> str:
    lines = [line.strip(" -") for line in message.strip().splitlines() if line.strip(" -")]
    reason = re.sub(r'^.*Parser key "[^"]+":\s*', "", " ".join(lines))
    return f"{key}: {reason}" if key else reason
