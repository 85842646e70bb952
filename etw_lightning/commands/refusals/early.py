"""What of a command can be refused by what ``--help`` shows, before the parser is made.

The parser needs everything that a run needs, which takes seconds. Only what it would certainly
refuse is refused here, in the words that it would use; all else is left to it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from etw_lightning.benchmarks.readers import find_reader
from etw_lightning.commands.refusals.messages import LAMBDA, lacking, one_line, with_lambda
from etw_lightning.commands.refusals.refused_values import KINDS, either, no_choice, no_class
from etw_lightning.files.class_paths import is_class_path
from etw_lightning.files.config_files import Found
from etw_lightning.files.setting_names import options_of
from etw_lightning.files.yaml_checks import composed, keyed
from etw_lightning.schema import InputError
from etw_lightning.value_checks import RANGES

__all__ = ["check_early", "choices_of", "refused", "unknown_option"]

#: A word that is text to YAML and Python, and no number.
_WORD = re.compile(r"[A-Za-z][\w-]*")
_VALUES = {
    "null",
    "none",
    "nan",
    "inf",
    "infinity",
    "true",
    "false",
    "yes",
    "no",
    "on",
    "off",
    "y",
    "n",
}
_NUMBER = re.compile(r"-?\d+(\.\d+)?")
#: Modules that bring no class of the user's.
_LIBRARIES = ("etw_lightning.", "lightning.", "torch.")
#: Types that stand for pairs, which no word is.
_PAIRS = ("Conventions",)
_LEAST = {
    "PositiveFloat": lambda value: value > 0,
    "NonNegativeFloat": lambda value: value >= 0,
    "PositiveInt": lambda value: value > 0,
    "NonNegativeInt": lambda value: value >= 0,
}


def check_early(
    commands: Mapping[str, Any], command: str, words: Sequence[str], files: Iterable[Found]
) -> None:
    """Refuse an option that does not exist, a value that its key can't take, and no settings.

    Args:
        commands: What ``stored_help.load`` gave.
        command: ``fit``, ``evaluate``, ``check`` or ``weights``.
        words: What is typed behind it.
        files: Its configurations.

    Raises:
        InputError: Names the key, what it was and what is allowed.
    """
    held = commands[command]
    name = unknown_option(held, words)
    if name is not None:
        raise InputError(_unknown(commands, command, name, words))
    options = {
        flag.lstrip("-"): one
        for group in held["groups"]
        for one in group["options"]
        for flag in one["flags"]
    }
    options[LAMBDA[0]] = options[LAMBDA[1]]
    found = list(files)
    typed = [
        (key, value) for key, value in options_of(words) if not (key in LAMBDA and value == "auto")
    ]
    given = [*_of_files(found), *typed]
    # The parser knows by their short names all classes that a module of the user's brings.
    classes = {} if any(map(_is_own, given)) else held["choices"]
    for key, value in given:
        line = (
            refused(key, _type(options[key]), value, classes.get(key)) if key in options else None
        )
        if line is not None:
            raise InputError(line)
        if key == "data.benchmark" and _WORD.fullmatch(value):
            find_reader(value)
    is_asked = any("print_config" in word or word.endswith(".help") for word in words)
    # A configuration may be given as text, of which nothing is known here.
    num_named = sum(word.partition("=")[0] in ("--config", "-c") for word in words)
    if not is_asked and num_named == len(found):
        _check_required(options, {key for key, _ in given})


def _is_own(setting: tuple[str, str]) -> bool:
    """Tell whether a setting brings a module of the user's."""
    key, value = setting
    is_class = key.endswith(".class_path") or key.startswith(("model.", "trainer."))
    return is_class and is_class_path(value) and not value.startswith(_LIBRARIES)


def _check_required(options: Mapping[str, Any], given: Iterable[str]) -> None:
    """Refuse settings that lack what every run must be told; ``data`` may name a file of them."""
    missing = [
        name
        for name, one in options.items()
        if one["required"] and not any(_are_nested(name, key) for key in given)
    ]
    if missing:
        raise InputError(lacking(", ".join(missing)))


def _are_nested(one: str, other: str) -> bool:
    return f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}.")


def unknown_option(held: Mapping[str, Any], words: Sequence[str]) -> str | None:
    """Return the first word that is an option of no kind; None if there is none.

    A name below a known one may be an argument of a class, which only the parser knows.

    Args:
        held: What ``describe_parser`` gave.
        words: Words after the command.
    """
    options = [one for group in held["groups"] for one in group["options"]]
    known = {flag.rstrip("+") for one in options for flag in one["flags"]} | {"--model.lambda"}
    for word in words:
        name = word.partition("=")[0].rstrip("+")
        if not name.startswith("--") or name == "--" or name in known:
            continue
        parts = name.split(".")
        if not any(".".join(parts[:count]) in known - _GROUPS for count in _counts(parts)):
            return name
    return None


#: Options that take a whole group of settings; what stands below them is known by name.
_GROUPS = {"--trainer", "--model", "--data", "--checkpoints", "--collapse"}


def _counts(parts: Sequence[str]) -> range:
    return range(1, len(parts) + 1)


def _unknown(commands: Mapping[str, Any], command: str, name: str, words: Sequence[str]) -> str:
    """Say that there is no option of a name, and which one is near or where it belongs."""
    held = commands[command]
    own = _flags(held)
    takers = [other for other, one in commands.items() if name in _flags(one)]
    if takers:
        verb = "takes" if len(takers) == 1 else "take"
        return (
            f"{name.lstrip('-')} is not an option of {command}; {either(takers, 'and')} {verb} it."
        )
    others = {flag for one in commands.values() for flag in _flags(one)} - own
    keys = [key for key in held["keys"] if f"--{key}" not in others]
    return with_lambda(one_line(f"unrecognized arguments: {name}", [LAMBDA[0], *keys]), words)


def _flags(held: Mapping[str, Any]) -> set[str]:
    return {
        flag.rstrip("+")
        for group in held["groups"]
        for one in group["options"]
        for flag in one["flags"]
    }


def _of_files(files: Iterable[Found]) -> Iterator[tuple[str, str]]:
    for one in files:
        yield from keyed(composed(one.path))


def _type(option: Mapping[str, Any]) -> str:
    """Return the type of an option, as ``--help`` shows it behind what it says."""
    found = re.findall(r"\(type: (.*?)(?:, default: [^()]*(?:\([^()]*\))?)?\)$", option["help"])
    return found[-1] if found else ""


def _kinds(text: str) -> list[str]:
    """Return what a type is made of.

    Example:
        >>> _kinds("Optional[Literal['a', 'b']]"), _kinds("Union[int, list[str], null]")
        (["Literal['a', 'b']", 'null'], ['int', 'list[str]', 'null'])
    """
    outer = re.fullmatch(r"(Optional|Union)\[(.*)\]", text, re.DOTALL)
    inner = outer[2] if outer else text
    parts = re.split(r"(?:, | \| )(?![^\[]*\])", inner)
    return parts + ["null"] * bool(outer and outer[1] == "Optional")


def choices_of(option: Mapping[str, Any]) -> list[str]:
    """Return the words that an option takes, if it takes these alone; else none.

    Args:
        option: As ``stored_help.load`` holds it.

    Example:
        >>> choices_of({"help": "What. (type: Optional[Literal['a', 'b']], default: a)"})
        ['a', 'b', 'null']
    """
    kinds = _kinds(_type(option))
    words = {"bool": ["true", "false"], "null": ["null"]}
    known = [words.get(one) or _names_in([one]) for one in kinds]
    return [word for part in known for word in part] if all(known) else []


def _names_in(kinds: Iterable[str]) -> list[str]:
    """Return what stands in ``Literal`` types, each once."""
    literals = " ".join(one[7:] for one in kinds if one.startswith("Literal["))
    return list(dict.fromkeys(re.findall(r"[\w-]+", literals)))


def refused(key: str, kind: str, value: str, classes: Sequence[str] | None = None) -> str | None:
    """Return what is said of a value that a key does not take; None for what may be taken.

    Args:
        key: As typed.
        kind: Its type, as ``--help`` shows it.
        value: As typed.
        classes: Ours that it takes, where these are all that can be named by a word.

    Example:
        >>> refused("data.seed", "NonNegativeInt | null", "-1")
        'data.seed must be a whole number >= 0 or null; got -1.'
    """
    kinds = [one for one in _kinds(kind) if one not in _PAIRS]
    nullable = "null" in kinds
    is_text = bool(_WORD.fullmatch(value)) and value.lower() not in _VALUES
    if classes is not None:
        is_none = is_text and value not in classes
        return no_class(key, classes, value, nullable=nullable) if is_none else None
    ranges = [one for one in kinds if one in RANGES]
    choices = [one for one in kinds if one.startswith("Literal[")]
    plain = [one for one in kinds if one in ("bool", "int", "float")]
    if len(ranges) + len(choices) + len(plain) + nullable < len(kinds):
        return None  # takes texts, or more than can be told here
    if len(kinds) - nullable == len(ranges) == 1:
        return _out_of_range(key, ranges[0], value, nullable=nullable, is_text=is_text)
    names = _names_in(choices)
    if not is_text or ranges or value in names:
        return None
    last = ["null"] * nullable
    if names:
        return no_choice(key, [*names, *["true", "false"] * ("bool" in plain), *last], value)
    return f"{key} must be {either([*(KINDS[one] for one in plain), *last])}; got {value!r}."


def _out_of_range(key: str, kind: str, value: str, *, nullable: bool, is_text: bool) -> str | None:
    allowed = RANGES[kind] + " or null" * nullable
    if is_text:
        return f"{key} must be {allowed}; got {value!r}."
    number = re.compile(r"-?\d+") if kind.endswith("Int") else _NUMBER
    if kind not in _LEAST or not number.fullmatch(value) or _LEAST[kind](float(value)):
        return None
    return f"{key} must be {allowed}; got {value}."
