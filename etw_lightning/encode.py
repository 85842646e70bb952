"""Examples to token ids and labels: template, masking, truncation, chunking."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from jinja2 import TemplateError

from etw_lightning.schema import IGNORE_INDEX, EncodedRow, Example, InputError

__all__ = ["Encoder", "Template"]

#: ``chat``: the tokenizer's chat template. ``plain``: ``Question: ...`` and ``Answer: ...`` lines.
Template = Literal["chat", "plain"]

# Without the space before the answer: most tokenizers join it to the answer's first word, so a
# prompt that ends in it would be continued from a place never seen in training.
_PLAIN_PROMPT = "Question: {question}\nAnswer:"


class Encoder:
    """Turns examples into token ids and labels for one tokenizer and template.

    Labels cover the answer and the token that ends it, nothing else. The answer is found in the
    rendered text by character offsets, so that a token which straddles the border of prompt and
    answer is counted once, whatever the tokenizer does with spaces.

    Args:
        tokenizer: A fast Hugging Face tokenizer (one that gives offsets).
        template: How questions are put to the model; verbatim examples ignore it.
        max_length: Tokens kept of a row, from the left; >= 2.
        system_prompt: Text of the system turn of the chat template; None sends none.
        template_kwargs: Further variables of the chat template, such as Llama 3's
            ``date_string``, which would otherwise change with the calendar.

    Raises:
        InputError: If the chat template is asked for and the tokenizer has none, or the
            tokenizer gives no offsets.
    """

    def __init__(
        self,
        tokenizer: Any,
        template: Template = "chat",
        max_length: int = 512,
        system_prompt: str | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        if template == "chat" and not tokenizer.chat_template:
            raise InputError(
                f"data.template is 'chat', but the tokenizer of {tokenizer.name_or_path!r} has no "
                "chat template; set data.template to 'plain'."
            )
        if not tokenizer.is_fast:
            raise InputError(
                f"The tokenizer of {tokenizer.name_or_path!r} gives no character offsets; "
                "labels can't be placed. Use a model with a tokenizer.json."
            )
        if tokenizer.eos_token_id is None:
            raise InputError(
                f"The tokenizer of {tokenizer.name_or_path!r} has no end token; an answer could "
                "never be taught to stop. Set eos_token in its tokenizer_config.json."
            )
        self.tokenizer = tokenizer
        self.template = template
        self.max_length = max_length
        self.system_prompt = system_prompt
        self.template_kwargs = dict(template_kwargs or {})

    @property
    def pad_id(self) -> int:
        """Id that fills padded positions; the attention mask, not this id, says what is padding."""
        pad = self.tokenizer.pad_token_id
        return int(self.tokenizer.eos_token_id if pad is None else pad)

    @property
    def content_key(self) -> str:
        """Hash of all that decides how text becomes ids; 12 hexadecimal digits."""
        state = {
            "tokenizer": self.tokenizer.backend_tokenizer.to_str(),
            "chat_template": self.tokenizer.chat_template if self.template == "chat" else None,
            "template": self.template,
            "max_length": self.max_length,
            "system_prompt": self.system_prompt,
            "template_kwargs": self.template_kwargs,
        }
        return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()[:12]

    def prompt(self, example: Example) -> str:
        """Return the text an answer is generated after; empty for raw text."""
        if example.question is None:
            return ""
        if example.verbatim:
            return example.question
        if self.template == "plain":
            return _PLAIN_PROMPT.format(question=example.question)
        return self._render(example.question, None)

    def encode_prompt(self, example: Example) -> list[int]:
        """Return the token ids of ``prompt``, for generation."""
        ids = self.tokenizer(self.prompt(example), add_special_tokens=self._adds_special(example))
        return list(ids["input_ids"])

    def encode(self, example: Example, answer: str | None = None) -> EncodedRow:
        """Return ids and labels of an example, or of its question with another answer.

        Args:
            example: The example.
            answer: Takes the place of ``example.answer``.

        Returns:
            At most ``max_length`` tokens.

        Raises:
            InputError: If no labelled token is left after truncation; names the row.
        """
        answer = example.answer if answer is None else answer
        text, start, stop = self._rendered(example, answer)
        encoded = self.tokenizer(
            text, add_special_tokens=self._adds_special(example), return_offsets_mapping=True
        )
        ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
        labels = [
            token if left < stop and right > start else IGNORE_INDEX
            for token, (left, right) in zip(ids, offsets, strict=True)
        ]
        if example.question is not None and not self._has_end_turn(text, stop):
            end = self.tokenizer.eos_token_id
            body = len(ids) - 1 if ids[-1] == end else len(ids)
            ids, labels = [*ids[:body], end], [*labels[:body], end]
        ids, labels = ids[: self.max_length], labels[: self.max_length]
        labels[0] = IGNORE_INDEX
        row = EncodedRow(example.id, tuple(ids), tuple(labels))
        if row.num_labels == 0:
            raise InputError(
                f"Row {example.id} has no answer token left within data.max_length = "
                f"{self.max_length}: its prompt alone has {len(self.encode_prompt(example))} "
                "tokens. Raise data.max_length or remove the row."
            )
        return row

    def chunk(self, examples: Sequence[Example], name: str) -> list[EncodedRow]:
        """Cut raw texts, joined by blank lines, into rows of ``max_length`` tokens.

        Every token but the first of a row is labelled. The last row may be shorter; one that
        is too short to have a label is left out.

        Args:
            examples: Raw texts in file order.
            name: Prefix of the row ids, ``raw/forget`` gives ``raw/forget/chunk0``.
        """
        text = "\n\n".join(example.answer for example in examples)
        ids = list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        head = self._text_head()
        width = self.max_length - len(head)
        if width < 1 or self.max_length < 2:
            raise InputError(
                f"data.max_length is {self.max_length}, which leaves no label in a row of raw "
                f"text; give at least {max(len(head) + 1, 2)}."
            )
        rows = []
        for number, start in enumerate(range(0, len(ids), width)):
            piece = (*head, *ids[start : start + width])
            labels = (IGNORE_INDEX, *piece[1:])
            if len(piece) > 1:
                rows.append(EncodedRow(f"{name}/chunk{number}", piece, labels))
        return rows

    def _text_head(self) -> list[int]:
        """Return what the tokenizer puts before a text: the begin token, or nothing."""
        ids = list(self.tokenizer("a", add_special_tokens=True)["input_ids"])
        return ids[:1] if ids[:1] == [self.tokenizer.bos_token_id] else []

    def _adds_special(self, example: Example) -> bool:
        """Tell whether the tokenizer's own special tokens are wanted: a chat template has them."""
        return self.template == "plain" or example.verbatim or example.question is None

    def _rendered(self, example: Example, answer: str) -> tuple[str, int, int]:
        """Return the whole text and the character span that is to be labelled."""
        prompt = self.prompt(example)
        if example.question is None or example.verbatim or self.template == "plain":
            is_joined = example.question is None or example.verbatim
            start = len(prompt) + (not is_joined)
            return prompt + " " * (not is_joined) + answer, start, start + len(answer)
        text = self._render(example.question, answer)
        # Templates may strip the answer; they never change what is inside it.
        start = text.find(answer, len(prompt))
        shown = answer
        if start < 0:
            shown = answer.strip()
            start = text.find(shown, len(prompt))
        if start < 0:
            raise InputError(
                f"The chat template of {self.tokenizer.name_or_path!r} changes the answer of row "
                f"{example.id}; its labels can't be placed. Set data.template to 'plain'."
            )
        stop = self._end_of_turn(text, start + len(shown))
        # A template without an end token: ours follows the answer, not the template's tail.
        return (text if self._has_end_turn(text, stop) else text[:stop]), start, stop

    def _end_of_turn(self, text: str, stop: int) -> int:
        """Return where the special token ends that closes the answer; ``stop`` if none does."""
        tail = text[stop:]
        found = [
            (tail.index(token), len(token))
            for token in self.tokenizer.all_special_tokens
            if token in tail
        ]
        if not found:
            return stop
        position, length = min(found)
        return stop + position + length

    def _has_end_turn(self, text: str, stop: int) -> bool:
        """Tell whether the labelled span already ends in a special token."""
        return any(text[:stop].endswith(token) for token in self.tokenizer.all_special_tokens)

    def _render(self, question: str, answer: str | None) -> str:
        """Fill the chat template; without an answer, up to where the answer begins."""
        messages = [{"role": "user", "content": question}]
        if self.system_prompt is not None:
            messages.insert(0, {"role": "system", "content": self.system_prompt})
        if answer is not None:
            messages.append({"role": "assistant", "content": answer})
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    messages,
                    tokenize=False,
                    add_generation_prompt=answer is None,
                    **self.template_kwargs,
                )
            )
        except TemplateError as error:
            raise InputError(
                f"The chat template of {self.tokenizer.name_or_path!r} fails ({error}); "
                f"data.system_prompt is {self.system_prompt!r}, data.template_kwargs is "
                f"{self.template_kwargs}: set what it does not take to null, or data.template to "
                "'plain'."
            ) from error
