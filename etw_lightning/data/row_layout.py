"""Examples as whole rows of tokens and labels, before anything is cut off them."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from etw_lightning.data.rendering import Rendered, Renderer, Template
from etw_lightning.schema import IGNORE_INDEX, Conventions, Example, InputError

__all__ = ["Layout", "RowLayouts"]


class _Tokens(NamedTuple):
    """What a tokenizer makes of a text; no offsets of a prompt, where nothing reads them."""

    ids: list[int]
    offsets: list[tuple[int, int]]


class Layout(NamedTuple):
    """A text as tokens.

    Args:
        shown: The text.
        ids: Token ids.
        labels: As ``EncodedRow.labels``.
        offsets: Characters of each token; of an end token put behind the text, its end.
    """

    shown: Rendered
    ids: list[int]
    labels: list[int]
    offsets: list[tuple[int, int]]

    @property
    def num_labels(self) -> int:
        """Number of labelled tokens."""
        return len(self.labels) - self.labels.count(IGNORE_INDEX)

    @property
    def labelled(self) -> list[tuple[int, int]]:
        """Offsets of the labelled tokens."""
        pairs = zip(self.labels, self.offsets, strict=True)
        return [offsets for label, offsets in pairs if label != IGNORE_INDEX]


class RowLayouts:
    """The part of ``Encoder`` that finds a row's tokens, and which of them are labelled.

    Args:
        tokenizer: As of ``Encoder``.
        template: As of ``Encoder``.
        system_prompt: As of ``Encoder``.
        template_kwargs: As of ``Encoder``.
        conventions: As of ``Encoder``.
        thinks: As of ``Encoder``.
    """

    def __init__(
        self,
        tokenizer: Any,
        template: Template,
        system_prompt: str | None,
        template_kwargs: Mapping[str, Any] | None,
        conventions: Conventions,
        thinks: bool = False,
    ) -> None:
        self.tokenizer = tokenizer
        self.template = template
        self.conventions = conventions
        ends_twice = conventions.second_end_token
        self._renderer = Renderer(
            tokenizer, template, system_prompt, template_kwargs, ends_twice, thinks
        )
        self._last_prompt: tuple[str, bool, list[int]] = ("", False, [])
        #: What texts of the rows at hand are shown as and become, by text and whether special
        #: tokens are added; filled by ``encode_all``.
        self._shown: dict[tuple[int, str], Rendered] = {}
        self._ahead: dict[tuple[str, bool], _Tokens] = {}

    @functools.cached_property
    def end_ids(self) -> frozenset[int]:
        """Tokens that end an answer: the tokenizer's end token, and what closes a turn of a chat.

        They need not be one: a generation stops at any of them, as every answer is taught to end
        in one.
        """
        ends = self.tokenizer.convert_tokens_to_ids(list(self._renderer.turn_ends()))
        return frozenset([self.tokenizer.eos_token_id, *ends])

    def prompt(self, example: Example) -> str:
        """Return the text an answer is generated after; empty for raw text."""
        return self._renderer.prompt(example)

    def encode_prompt(self, example: Example) -> list[int]:
        """Return the token ids of ``prompt``, for generation."""
        return self._prompt_ids(self.prompt(example), self._adds_special(example))

    def _prompt_ids(self, prompt: str, adds_special: bool) -> list[int]:
        """Return a prompt's tokens; the last prompt's are kept, for all answers of its row."""
        if self._last_prompt[:2] != (prompt, adds_special):
            found = self._ahead.get((prompt, adds_special))
            if found is None:
                encoded = self.tokenizer(prompt, add_special_tokens=adds_special, verbose=False)
                found = _Tokens(list(encoded["input_ids"]), [])
            ids, end = found.ids, self.tokenizer.eos_token
            # Some tokenizers end every text; a prompt goes on.
            ends_it = ids[-1:] == [self.tokenizer.eos_token_id] and not prompt.endswith(end)
            self._last_prompt = (prompt, adds_special, ids[:-1] if ends_it else ids)
        return list(self._last_prompt[2])

    @contextmanager
    def ahead(self, pairs: Sequence[tuple[Example, str]]) -> Iterator[None]:
        """Have all that is asked of some rows meanwhile read off a few calls of the tokenizer.

        Args:
            pairs: Rows, each with an answer; some hundreds.
        """
        try:
            self._look_ahead(pairs)
            yield
        finally:
            self._shown, self._ahead = {}, {}

    def _look_ahead(self, pairs: Sequence[tuple[Example, str]]) -> None:
        """Render and tokenise some rows, and the prompts of those that have one."""
        wholes, prompts = dict[tuple[str, bool], None](), dict[tuple[str, bool], None]()
        for example, answer in pairs:
            try:
                shown = self._renderer.render(example, answer)
            except InputError:
                break  # told when it is this row's turn, if no row before it is refused
            self._shown[id(example), answer] = shown
            adds_special = self._adds_special(example)
            wholes[shown.text, adds_special] = None
            if example.question is not None:
                prompts[shown.text[: shown.start], adds_special] = None
        for texts, has_offsets in ((prompts, False), (wholes, True)):
            for adds_special in (False, True):
                some = [text for text, adds in texts if adds == adds_special]
                if not some:
                    continue
                encoded = self.tokenizer(
                    some,
                    add_special_tokens=adds_special,
                    return_offsets_mapping=has_offsets,
                    verbose=False,
                )
                offsets = encoded["offset_mapping"] if has_offsets else [[]] * len(some)
                found = map(_Tokens, encoded["input_ids"], offsets)
                self._ahead |= {
                    (text, adds_special): one for text, one in zip(some, found, strict=True)
                }

    def _adds_special(self, example: Example) -> bool:
        """Tell whether the tokenizer's own special tokens are wanted: a chat template has them."""
        return self.template == "plain" or example.verbatim or example.question is None

    def lay_out(self, example: Example, answer: str) -> Layout:
        """Return all tokens of an example with one of its answers."""
        shown = self._shown.get((id(example), answer)) or self._renderer.render(example, answer)
        ids, offsets = self._tokens(shown.text, self._adds_special(example))
        if example.question is not None:
            ids, offsets = self._as_asked(example, shown, ids, offsets)
        labels = _labels(ids, offsets, (*shown.earlier, (shown.start, shown.stop)))
        if self._lacks_end(example, shown.text[: shown.stop], ids):
            end = self.tokenizer.eos_token_id
            body = len(ids) - 1 if ids[-1] == end else len(ids)
            ids, labels = [*ids[:body], end], [*labels[:body], end]
            offsets = [*offsets[:body], (len(shown.text), len(shown.text))]
        labels[:1] = [IGNORE_INDEX] * len(labels[:1])
        self._check_ends(example, labels, 1 + len(shown.earlier))
        return Layout(shown, ids, labels, offsets)

    def _tokens(self, text: str, adds_special: bool) -> tuple[list[int], list[tuple[int, int]]]:
        """Return the tokens of a text, each with its characters."""
        found = self._ahead.get((text, adds_special))
        if found is None or len(found.offsets) < len(found.ids):
            encoded = self.tokenizer(
                text, add_special_tokens=adds_special, return_offsets_mapping=True, verbose=False
            )
            found = _Tokens(encoded["input_ids"], encoded["offset_mapping"])
        return list(found.ids), list(found.offsets)

    def _as_asked(
        self, example: Example, shown: Rendered, ids: list[int], offsets: list[tuple[int, int]]
    ) -> tuple[list[int], list[tuple[int, int]]]:
        """Return a row's tokens, those of its prompt as they are when an answer is asked for.

        Where the last of the prompt and the first of the answer would make one token, or the
        prompt alone falls into others, the answer is encoded behind the prompt by itself.

        Raises:
            InputError: If that would be another text.
        """
        border = shown.start
        asked = self._prompt_ids(shown.text[:border], self._adds_special(example))
        if ids[: len(asked)] == asked and offsets[len(asked) :] >= [(border, border)]:
            return ids, offsets
        whole = self.tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        # Some tokenizers put a space before a text, which a line end in front takes upon itself.
        for head in ("", "\n"):
            encoded = self.tokenizer(
                head + shown.text[border:],
                add_special_tokens=False,
                return_offsets_mapping=True,
                verbose=False,
            )
            shift = border - len(head)
            pairs = zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
            rest = [
                (token, (left + shift, right + shift))
                for token, (left, right) in pairs
                if left >= len(head)
            ]
            tokens = [*asked, *(token for token, _ in rest)]
            if self.tokenizer.decode(tokens, clean_up_tokenization_spaces=False) == whole:
                _, before = self._tokens(shown.text[:border], self._adds_special(example))
                return tokens, [*before[: len(asked)], *(place for _, place in rest)]
        raise InputError(
            f"Row {example.id}: {shown.text[max(border - 12, 0) : border]!r}, which ends its "
            f"prompt, and {shown.text[border : border + 12]!r}, which its answer begins with, "
            "share a token of this tokenizer and can't be parted: what is asked would not be what "
            "is taught. Move the border of the row, or remove it."
        )

    def _check_ends(self, example: Example, labels: list[int], num_turns: int) -> None:
        """Refuse a row that a generation would not stop at the end of, or would before."""
        if example.question is None or example.verbatim or self.conventions.second_end_token:
            return
        ends = [label for label in labels if label != IGNORE_INDEX][-1:]
        if not self.end_ids.issuperset(ends):
            raise InputError(
                f"Row {example.id} ends in {self.tokenizer.decode(ends)!r}, where no generation "
                "would stop: the chat template closes this row otherwise than others. Set "
                "data.template to 'plain', or remove the row."
            )
        found = [label for label in labels if label in self.end_ids]
        if len(found) > num_turns:
            raise InputError(
                f"Row {example.id} holds {self.tokenizer.decode(found[:1])!r} in its answer, which "
                "ends a generation: what stands behind it would be taught and scored, and never "
                "said. Take it out of the row."
            )

    def _lacks_end(self, example: Example, labelled: str, ids: list[int]) -> bool:
        """Tell whether an end token is still to be put behind the answer."""
        if example.question is None or example.verbatim:
            return False
        if self.conventions.second_end_token and self.template == "chat":
            return ids[-1] != self.tokenizer.eos_token_id
        return not self._renderer.ends_a_turn(labelled)


def _labels(
    ids: Sequence[int], offsets: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]
) -> list[int]:
    """Return the ids of the tokens that have characters in a span, ``IGNORE_INDEX`` elsewhere."""
    pairs = zip(ids, offsets, strict=True)
    if len(spans) == 1:  # nearly every row, and most of the time that is spent here
        ((start, stop),) = spans
        return [
            token if left < stop and right > start else IGNORE_INDEX
            for token, (left, right) in pairs
        ]
    return [
        token if any(left < stop and right > start for start, stop in spans) else IGNORE_INDEX
        for token, (left, right) in pairs
    ]
