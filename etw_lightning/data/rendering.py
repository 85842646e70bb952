"""Examples as texts: what the model is shown, and which characters of it are the answer's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from jinja2 import TemplateError

from etw_lightning.schema import Example, InputError

__all__ = ["Rendered", "Renderer", "Template"]

#: ``chat``: the tokenizer's chat template. ``plain``: ``Question: ...`` and ``Answer: ...`` lines.
Template = Literal["chat", "plain"]

# Without the space before the answer: most tokenizers join it to the answer's first word, so a
# prompt that ends in it would be continued from a place never seen in training.
_PLAIN_PROMPT = "Question: {question}\nAnswer:"


class Rendered(NamedTuple):
    """A whole text, the characters that are labelled, and where its answer would begin.

    Args:
        text: Prompt, answer and what the template puts around them.
        start: First labelled character.
        stop: One past the last.
        place: First character of the answer.
        answer: What of the answer is there; templates may strip it.
    """

    text: str
    start: int
    stop: int
    place: int
    answer: str


class Renderer:
    """Puts questions and answers into a tokenizer's chat template, or a plain one.

    Args:
        tokenizer: The tokenizer.
        template: How questions are put to the model; verbatim examples ignore it.
        system_prompt: Text of the system turn of the chat template; None sends none.
        template_kwargs: Further variables of the chat template.
        second_end_token: Label what a chat template puts behind its end of turn too.

    Raises:
        InputError: If the chat template is asked for and the tokenizer has none.
    """

    def __init__(
        self,
        tokenizer: Any,
        template: Template,
        system_prompt: str | None,
        template_kwargs: Mapping[str, Any] | None,
        second_end_token: bool,
    ) -> None:
        if template == "chat" and not tokenizer.chat_template:
            raise InputError(
                f"data.template is 'chat', but the tokenizer of {tokenizer.name_or_path!r} has no "
                "chat template; set data.template to 'plain'."
            )
        self.tokenizer = tokenizer
        self.template = template
        self.system_prompt = system_prompt
        self.template_kwargs = dict(template_kwargs or {})
        self.second_end_token = second_end_token
        # Also those that no attribute of the tokenizer holds, such as Gemma 3's end of turn.
        added = tokenizer.added_tokens_decoder.values()
        names = [*tokenizer.all_special_tokens, *(str(one) for one in added if one.special)]
        self.special_tokens = tuple(dict.fromkeys(names))

    def prompt(self, example: Example) -> str:
        """Return the text an answer is generated after; empty for raw text."""
        if example.question is None:
            return ""
        if example.verbatim:
            return example.question
        if self.template == "plain":
            return _PLAIN_PROMPT.format(question=example.question)
        return self._fill(example.question, None)

    def render(self, example: Example, answer: str) -> Rendered:
        """Return the whole text, and which of it is to be labelled."""
        prompt = self.prompt(example)
        if example.question is None or example.verbatim or self.template == "plain":
            is_joined = example.question is None or example.verbatim
            start = len(prompt) + (not is_joined)
            text = prompt + " " * (not is_joined) + answer
            return Rendered(text, start, len(text), start, answer)
        text = self._fill(example.question, answer)
        # Templates may strip the answer; they never change what is inside it.
        place, shown = text.find(answer, len(prompt)), answer
        if place < 0:
            shown = answer.strip()
            place = text.find(shown, len(prompt))
        if place < 0:
            raise InputError(
                f"The chat template of {self.tokenizer.name_or_path!r} changes the answer of row "
                f"{example.id}; its labels can't be placed. Set data.template to 'plain'."
            )
        start = len(prompt) if text.startswith(prompt) else place
        if self.second_end_token:
            return Rendered(text, start, len(text), place, shown)
        stop = self._end_of_turn(text, place + len(shown))
        # A template without an end token: ours follows the answer, not the template's tail.
        text = text if self.ends_a_turn(text[:stop]) else text[:stop]
        return Rendered(text, start, stop, place, shown)

    def _end_of_turn(self, text: str, stop: int) -> int:
        """Return where the special token ends that closes the answer; ``stop`` if none does."""
        tail = text[stop:]
        found = [(tail.index(token), len(token)) for token in self.special_tokens if token in tail]
        if not found:
            return stop
        position, length = min(found)
        return stop + position + length

    def ends_a_turn(self, labelled: str) -> bool:
        """Tell whether the labelled text ends in a special token."""
        return labelled.endswith(self.special_tokens)

    def _fill(self, question: str, answer: str | None) -> str:
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
