"""Settings that have a second name, and messages that say each as it was typed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

__all__ = ["SAME", "as_typed", "renamed"]

#: The paper calls the weight of the forget term lambda, which is no name in Python; options, and
#: files of several runs, take it.
SAME: Mapping[str, str] = {"model.lambda": "model.forget_weight"}
#: What a value of such a setting stands for, where it is more than a value.
_STANDS_FOR: Mapping[tuple[str, str], str] = {
    ("model.lambda", "auto"): "model.forget_unit gradient"
}
_BETWEEN = ".init_args."


def renamed(message: str, names: Mapping[str, str]) -> str:
    """Return a message with settings, and what stands within them, under other names.

    Args:
        message: Of an error.
        names: A setting's name in it to the one that is to stand there.

    Example:
        >>> renamed("data.rows.a of data.rows_of.", {"data.rows": "rows"})
        'rows.a of data.rows_of.'
    """
    if not names:
        return message
    either = "|".join(map(re.escape, names))
    return re.sub(rf"(?<![\w.])({either})(?!\w)", lambda one: names[one[1]], message)


def as_typed(message: str, words: Iterable[str]) -> str:
    """Return a message with settings under the names that the user gave them.

    Args:
        message: Of an error, under the names that a run has for them.
        words: What was typed: options with or without their values, or keys of a file. A setting
            that stands under both of its names keeps the plain one.

    Example:
        >>> as_typed("model.forget_weight must be > 0.", ["--model.lambda", "0"])
        'model.lambda must be > 0.'
        >>> as_typed("model.forget_unit gradient is refused.", ["--model.lambda=auto"])
        'model.lambda auto is refused.'
    """
    pairs, last = [], ""
    for word in words:
        name, _, value = word.removeprefix("--").partition("=")
        # A value may follow its option.
        pairs += [(name, value), (last, word)]
        last = name
    typed = {name for name, _ in pairs}
    # Arguments of a class may be typed with or without what stands between.
    same = {**SAME, **{name: name.replace(_BETWEEN, ".") for name in typed if _BETWEEN in name}}
    names = {plain: short for short, plain in same.items() if short in typed and plain not in typed}
    for (short, value), plain in _STANDS_FOR.items():
        if (short, value) in pairs and plain.partition(" ")[0] not in typed:
            names[plain] = f"{short} {value}"
    return renamed(message, names)
