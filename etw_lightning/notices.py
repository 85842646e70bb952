"""Warnings of what is allowed but probably unintended: once, from one process."""

from __future__ import annotations

import os
import re
import shutil
import sys
import textwrap
import unicodedata
import warnings
from pathlib import Path

__all__ = [
    "as_markdown_text",
    "for_screen",
    "hanging",
    "is_first",
    "printable",
    "program",
    "visible",
    "warn_first",
]

#: Where launchers say which process this is; torchrun, Lightning and SLURM.
_RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID")


def is_first() -> bool:
    """Tell whether this is the first process of its run, as far as launchers have said."""
    return next((os.environ[name] for name in _RANKS if name in os.environ), "0") == "0"


def program() -> str:
    """Return what the program is called by, as it was typed: ``etw``, or by ``python -m``."""
    return "etw" if Path(sys.argv[0]).stem == "etw" else "python -m etw_lightning"


#: What may mean something to Markdown; within a word three signs that names are full of do not.
_MARKUP = re.compile(
    r"(?<![A-Za-z0-9])[-=_]|[-=_](?![A-Za-z0-9])|[^A-Za-z0-9 .,;'\-=_\x80-\U0010ffff]"
)
#: Signs that turn the direction of what follows, so that it is not read as it is written.
_TURNING = "\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


def warn_first(message: str) -> None:
    """Warn if this is the first process; a message that was shown already is left out."""
    if is_first():
        warnings.warn(message, stacklevel=2)


def printable(text: str) -> str:
    r"""Return a text with what steers a terminal written out; line ends and tabs stay.

    Rows, names and answers come from elsewhere: they are shown, and do nothing.

    Example:
        >>> print(printable(chr(27) + "[31mred" + chr(0x202E)))
        \x1b[31mred\u202e
    """
    return "".join(
        sign.encode("unicode_escape").decode("ascii")
        if (unicodedata.category(sign) == "Cc" and sign not in "\n\t") or sign in _TURNING
        else sign
        for sign in text
    )


def for_screen(text: str, *, is_error: bool = False) -> str:
    """Return lines as standard output, or error, takes them: broken for a terminal alone."""
    if not (sys.stderr if is_error else sys.stdout).isatty():
        return text
    width = shutil.get_terminal_size().columns
    return "\n".join(hanging(line, width) for line in text.split("\n"))


def hanging(line: str, width: int, more: int = 2) -> str:
    """Return a line broken between words, its further lines set in; a path stays whole.

    Args:
        line: The line, perhaps set in itself.
        width: Columns of the terminal.
        more: Columns by which further lines are set in more than the first.

    Example:
        >>> print(hanging("  kept: utility is what it was before", 24))
          kept: utility is what
            it was before
    """
    text = line.lstrip(" ")
    indent = len(line) - len(text)
    return textwrap.fill(
        text,
        width,
        initial_indent=" " * indent,
        subsequent_indent=" " * (indent + more),
        break_long_words=False,
        break_on_hyphens=False,
    )


def visible(token: str) -> str:
    r"""Return a token with all that can't be seen, or would steer a terminal, as it is written.

    Example:
        >>> visible(" town\n\x1b[31m")
        ' town\\n\\x1b[31m'
    """
    return "".join(
        sign if sign.isprintable() else sign.encode("unicode_escape").decode("ascii")
        for sign in token
    )


def as_markdown_text(text: str) -> str:
    """Return a text that Markdown shows as it is, in one line: no tag, link, image or table of it.

    Example:
        >>> as_markdown_text("a|b <i>c</i>")
        'a&#124;b &#60;i&#62;c&#60;&#47;i&#62;'
        >>> as_markdown_text("etw-npo lambda_auto=1 -- ok")
        'etw-npo lambda_auto=1 &#45;&#45; ok'
    """
    shown = printable(text).replace("\n", " ").replace("\t", " ")
    return _MARKUP.sub(lambda found: f"&#{ord(found[0])};", shown)
