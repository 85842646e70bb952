"""YAML in which no key stands twice: the last one would count in silence."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import yaml

from etw_lightning.schema import InputError

__all__ = ["check_once", "composed", "keyed", "scalars"]


def check_once(node: yaml.Node | None, what: str) -> None:
    """Refuse a document in which a key stands twice, or that holds itself.

    It may stand as ``a.b`` and as ``b`` below ``a``; ``b+`` is ``b`` too.

    Args:
        node: The document, as ``yaml.compose`` returns it.
        what: What the error names the document.

    Raises:
        InputError: Names the key, from the outermost on, and both lines.
    """
    _check_ends(node, what, [], set())
    for key, (first, again) in _repeated(node, "", {}, set()):
        raise InputError(
            f"{key} must stand once in a mapping of {what}; got it in line {first} and again in "
            f"line {again}."
        )


def _check_ends(node: yaml.Node | None, what: str, above: list[yaml.Node], done: set[int]) -> None:
    """Refuse a node that is an alias of one around it; look at each once."""
    if node is None or isinstance(node, yaml.ScalarNode) or id(node) in done:
        return
    if any(node is one for one in above):
        line = node.start_mark.line + 1
        raise InputError(f"{what} holds itself: an alias of what begins in line {line} is in it.")
    above.append(node)
    for one in node.value:
        for part in one if isinstance(node, yaml.MappingNode) else (one,):
            _check_ends(part, what, above, done)
    above.pop()
    done.add(id(node))


def _repeated(
    node: yaml.Node | None, place: str, seen: dict[str, int], done: set[int]
) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yield keys that stand twice, with both lines.

    Args:
        node: Of the document.
        place: Key of the node.
        seen: Lines of keys that hold no mapping, by their whole names.
        done: Nodes that were looked at, as what aliases stand for.
    """
    if node is None or isinstance(node, yaml.ScalarNode) or id(node) in done:
        return
    done.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for one in node.value:
            yield from _repeated(one, place, {}, done)
        return
    here: dict[str, int] = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            continue
        line = key.start_mark.line + 1
        name = f"{place}.{key.value}".lstrip(".").replace(".init_args", "").rstrip("+")
        is_leaf = not isinstance(value, yaml.MappingNode)
        known = here.get(key.value) or (seen.get(name) if is_leaf else None)
        if known is not None:
            yield name, (known, line)
        here[key.value] = line
        if is_leaf:
            seen[name] = line
        yield from _repeated(value, name, seen, done)


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
    """Return a YAML file's nodes; None for a file that is none, which the parser tells.

    Raises:
        InputError: If it holds itself.
    """
    try:
        node = _composed(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, OSError):
        return None
    _check_ends(node, f"config {str(path)!r}", [], set())
    return node


@lru_cache(maxsize=64)
def _composed(text: str) -> yaml.Node | None:
    """Return a text's nodes, which nobody changes; a command looks at each of its files thrice."""
    node: yaml.Node | None = yaml.compose(text)
    return node


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
