"""Where a continuation ends: end tokens and stop strings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

__all__ = ["Stops", "cut", "end_ids"]


def cut(text: str, stops: Iterable[str]) -> str:
    """Return the text before the first stop string, without outer spaces.

    Example:
        >>> cut(" 1472. Question: next", ["Question:"])
        '1472.'
    """
    ends = [text.find(stop) for stop in stops if stop in text]
    return text[: min(ends)].strip() if ends else text.strip()


class Stops:
    """Tells whether a row's text has come to a stop string.

    Only the text of rows whose newest token may complete one is looked at; a stop that is missed
    costs time and changes nothing, as the whole text is cut in the end.
    """

    def __init__(self, tokenizer: Any, strings: Sequence[str]) -> None:
        self.tokenizer = tokenizer
        self.strings = tuple(strings)
        self.last_characters = {string[-1] for string in strings}
        self.may_complete: dict[int, bool] = {}

    def __call__(self, tokens: Sequence[int]) -> bool:
        """Tell whether the text of a row's new tokens has come to a stop string."""
        if not self.strings:
            return False
        newest = tokens[-1]
        if newest not in self.may_complete:
            # Part of a character decodes to the replacement character.
            found = {*self._decode([newest])}
            self.may_complete[newest] = bool(
                found & {*self.last_characters, "\N{REPLACEMENT CHARACTER}"}
            )
        if not self.may_complete[newest]:
            return False
        text = self._decode(tokens)
        return any(string in text for string in self.strings)

    def _decode(self, tokens: Sequence[int]) -> str:
        return str(
            self.tokenizer.decode(
                tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        )


def end_ids(lm: Any, tokenizer: Any) -> set[int]:
    """Return the end tokens of a model and its tokenizer."""
    own = lm.generation_config.eos_token_id
    return {tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])} - {None}
