"""What a key takes, and what it was given, out of the parser's message about a refused value."""

from __future__ import annotations

import ast
import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from etw_lightning.value_checks import RANGES

__all__ = [
    "KINDS",
    "Choices",
    "choices_at",
    "either",
    "focused",
    "no_choice",
    "no_class",
    "refused_value",
]

#: Classes that stand for a key, by name.
Choices = Mapping[str, Mapping[str, type]]

#: What a plain type must be.
KINDS = {
    "NoneType": "null",
    "bool": "true or false",
    "dict": "pairs {name: value}",
    "float": "a number",
    "int": "a whole number",
    "list": "a list",
    "str": "a text",
    "tuple": "a list",
}
#: What to do about a key that is given in the way of another one.
_WAYS_OUT = {
    "model.optimizer": " It takes a class path alone, such as torch.optim.AdamW; its arguments go "
    "into model.optimizer_args: {name: value}."
}
_NULL = "Expected a <class 'NoneType'>"


def focused(message: str) -> str:
    """Keep of all that a value was tried as the class that was chosen for it, if there is one.

    Example:
        >>> print(focused('''Parser key "a":
        ...   Errors:
        ...     - Problem with given class_path 'b.C':
        ...         Parser key "d":
        ...           Not of type PositiveInt: 0 does not conform to restriction v>0
        ...     - Expected a <class 'NoneType'>
        ...   Given value: 0'''))
        Parser key "a":
        Problem with given class_path 'b.C':
                Parser key "d":
                  Not of type PositiveInt: 0 does not conform to restriction v>0
    """
    message = re.sub(r"^ *- Expected a path but .* or invalid$", "", message, flags=re.MULTILINE)
    message = re.sub(r"\n\s*\n", "\n", message)
    # The first one: for a callback, what follows it is that the class of all callbacks did not fit.
    chosen = re.compile(r"^( *)- (Problem with given class_path .*(?:\n\1  .*)*)", re.MULTILINE)
    while found := chosen.search(message):
        outer = re.findall(r'^ *Parser key "[^"]+":$', message[: found.start()], re.MULTILINE)
        message = "\n".join([*outer, found[2]])
    return message


def refused_value(raw: str, key: str, choices: Choices, typed: Sequence[str] = ()) -> str | None:
    """Say what a key takes, if the message is about a value that it does not take.

    Args:
        raw: What the parser says, whole.
        key: What it is about, as typed.
        choices: Classes that a key takes.
        typed: Words of the command line.
    """
    message = focused(raw)
    # What an inner key takes, not what the key around it takes instead.
    inner = _innermost(message)
    given = re.findall(r"(?:Got|Given) value: (.*)", inner)
    nested = re.search(r"NestedArg\(key='([^']+)', val=(.*)\)$", given[-1]) if given else None
    if "not 'NestedArg'" in inner or (nested and not re.search(r"dict\[|'dict'|class_path", inner)):
        word = next((word for word in typed if word.startswith(f"--{key}.")), f"--{key}.")
        return f"{word[2:].partition('=')[0]} is not known: {key} takes one value."
    number = re.search(
        r"Not of type (\w+):(?: (\S+) does not conform|.*: '(.*)'$|.*, not '(\w+)'$|)",
        inner,
        re.MULTILINE,
    )
    if number and number[1] in RANGES:
        return _refused_number(number, inner, key, given)
    literals = re.findall(r"Literal\[(.*?)\]", inner, re.DOTALL)
    if literals and given:
        names = list(dict.fromkeys(re.findall(r"[\w-]+", " ".join(literals))))
        names += ["true", "false"] * ("Expected a <class 'bool'>" in inner)
        names += ["null"] * (_NULL in inner and "None" not in names)
        return no_choice(key, names, given[0])
    line = _refused_class(message, key, choices, given, nullable=_NULL in _innermost(raw))
    if line:
        return line
    length = re.search(r"Expected a tuple with (\d+) elements\. Got value: (.*)", inner)
    if length:
        return f"{key} must be a list of {length[1]} values; got {length[2]}."
    expected = re.findall(r"Expected (?:an? )?<class '(\w+)'>", inner)
    if expected and given:
        kinds = either([KINDS.get(name, name) for name in dict.fromkeys(expected)])
        way_out = _WAYS_OUT.get(key, "")
        return f"{key} must be {kinds}; got {given[0].strip()!r}.{way_out}"
    return None


def _innermost(message: str) -> str:
    return message[max(message.rfind('Parser key "'), 0) :]


def _refused_number(number: re.Match[str], inner: str, key: str, given: Sequence[str]) -> str:
    """Say which numbers a key takes, and null where it takes that too."""
    value = number[2] or number[3] or KINDS.get(number[4] or "") or (given[-1] if given else "")
    entry = _entry(inner, value)
    allowed = RANGES[number[1]] + (" or null" if _NULL in inner and not entry else "")
    got = repr(value) if number[3] or not re.fullmatch(r"[\w.+-]+|a .*", value) else value
    return f"{key}{entry} must be {allowed}; got {got}."


def _refused_class(
    message: str, key: str, choices: Choices, given: Sequence[str], *, nullable: bool
) -> str | None:
    """Say which classes a key takes."""
    path = re.search(
        r"Expected a dot import path string: (.+)"
        r"|Problem with given class_path '([^']+)':\s+(?:module |No module|Import)"
        r"|Import path(?: (\S+))? does not correspond to a subclass"
        r"|Not a valid subclass of \w+",
        message,
    )
    if path is None:
        return None
    asked = re.match(r"--([\w.]+)\.help: ", message)
    key = asked[1] if asked else key
    got = path[1] or path[2] or path[3] or (given[-1] if given else "")
    names = list(choices_at(key, choices))
    return no_class(key, names, got, nullable=nullable)


def no_class(key: str, names: Sequence[str], got: str, *, nullable: bool) -> str:
    """Return what is said of a value that is no class of those that a key takes.

    Args:
        key: As typed.
        names: Our classes that it takes; where none can be chosen, it takes arguments alone.
        got: The value.
        nullable: Whether it takes null too.
    """
    several = [*names, "another class by its import path", *(["null"] if nullable else ())]
    allowed = either(several) if names else "pairs {name: value}"
    shown = "null" if got in ("None", "null") else repr(got)
    return f"{key} must be {allowed}; got {shown}.{_near(got.split('.')[-1], names)}"


def no_choice(key: str, names: Sequence[str], got: str) -> str:
    """Return what is said of a value that is none of a closed list.

    Example:
        >>> no_choice("data.anchor", ["forget", "retain"], "retian")
        "data.anchor must be forget or retain; got 'retian'. Did you mean 'retain'?"
    """
    return f"{key} must be {either(names)}; got {got!r}.{_near(got, names)}"


def choices_at(key: str, choices: Choices) -> Mapping[str, type]:
    """Return the classes that stand for a key; those within a class are of its own kind.

    Example:
        >>> sorted(choices_at("model.weighting.of", {"model.weighting": {"A": int, "B": str}}))
        ['A', 'B']
    """
    return next((found for name, found in choices.items() if f"{key}.".startswith(f"{name}.")), {})


def _entry(message: str, value: str) -> str:
    """Return ``.name`` of the refused value, if it is one of several given as pairs."""
    nested = re.search(r"NestedArg\(key='([^']+)'", message)
    if nested:
        return f".{nested[1]}"
    pairs = re.search(r"Given value: (\{.*\})", message)
    entries: Any = {}
    if pairs:
        # nan and inf are no Python.
        plain = re.sub(r"(?<=: )(-?(?:nan|inf))(?=[,}])", r"'\1'", pairs[1])
        try:
            entries = ast.literal_eval(plain)
        except (ValueError, SyntaxError):
            entries = {}
    return next((f".{name}" for name, entry in entries.items() if str(entry) == value), "")


def either(names: Sequence[str], word: str = "or") -> str:
    """Return names in one phrase.

    Example:
        >>> either(["a", "b", "c"])
        'a, b or c'
    """
    if not names:
        return ""
    *most, last = names
    return f"{', '.join(most)} {word} {last}" if most else last


def _near(value: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(value, names, n=1)
    return f" Did you mean {near[0]!r}?" if near else ""
