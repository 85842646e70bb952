"""YAML in which no key stands twice: the last one would count in silence."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import yaml

from etw_lightning.schema import InputError

__all__ = ["check_once", "composed", "keyed", "scalars"]


def check_once(node: yaml.Node | None, what: str) -> None:
    """Refuse a document in which a mapping holds a key twice.

    Args:
        node: The document, as ``yaml.compose`` returns it.
        what: What the error names the document.

    Raises:
        InputError: Names the key, from the outermost on, and both lines.
    """
    for key, (first, again) in _repeated(node, ""):
        raise InputError(
            f"{key} must stand once in a mapping of {what}; got it in line {first} and again in "
            f"line {again}."
        )


def _repeated(node: yaml.Node | None, place: str) -> Iterator[tuple[str, tuple[int, int]]]:
    if isinstance(node, yaml.SequenceNode):
        for one in node.value:
            yield from _repeated(one, place)
    if not isinstance(node, yaml.MappingNode):
        return
    seen: dict[str, int] = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            continue
        line = key.start_mark.line + 1
        name = f"{place}.{key.value}" if place else key.value
        if key.value in seen:
            yield name, (seen[key.value], line)
        seen[key.value] = line
        yield from _repeated(value, name.replace(".init_args", ""))


def scalars(path: Path) -> Iterator[tuple[str, int]]:
    """Return each text of a YAML file with its line; nothing of a file that is none.

    Raises:
        InputError: If a key stands twice.
    """
    nodes = [composed(path)]
    check_once(nodes[0], f"config {str(path)!r}")
    while nodes:
        node = nodes.pop()
        if isinstance(node, yaml.ScalarNode):
            yield node.value, node.start_mark.line + 1
        elif isinstance(node, yaml.SequenceNode):
            nodes += node.value
        elif isinstance(node, yaml.MappingNode):
            nodes += [one for pair in node.value for one in pair]


def composed(path: Path) -> yaml.Node | None:
    """Return a YAML file's nodes; None for a file that is none, which the parser tells."""
    try:
        return yaml.compose(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, OSError):
        return None


def keyed(node: yaml.Node | None, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield each text with its key, from the outermost on, as it is typed in a command.

    Args:
        node: A document, or what stands for a key.
        key: The key that it stands for.

    Example:
        >>> list(keyed(yaml.compose("a: {class_path: B, init_args: {c: 1}}")))
        [('a.class_path', 'B'), ('a.c', '1')]
    """
    if isinstance(node, yaml.ScalarNode):
        yield key, node.value
    elif isinstance(node, yaml.SequenceNode):
        for one in node.value:
            yield from keyed(one, key)
    elif isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            inner = key if name.value == "init_args" else f"{key}.{name.value}".lstrip(".")
            yield from keyed(value, inner)
