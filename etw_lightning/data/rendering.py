"""Examples as texts: what the model is shown, and which characters of it are the answer's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from jinja2 import TemplateError

from etw_lightning.schema import Example, InputError, Turn

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
        earlier: Characters of the labelled turns before it, first and one past the last of each.
    """

    text: str
    start: int
    stop: int
    place: int
    answer: str
    earlier: tuple[tuple[int, int], ...] = ()


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
            if example.turns:
                raise InputError(
                    "data.template is 'plain', which has no form for the turns before the "
                    f"question of row {example.id}; set it to 'chat', or take them out."
                )
            return _PLAIN_PROMPT.format(question=example.question)
        return self._fill(self._said(example), prompts=True)

    def render(self, example: Example, answer: str) -> Rendered:
        """Return the whole text, and which of it is to be labelled."""
        prompt = self.prompt(example)
        if example.question is None or example.verbatim or self.template == "plain":
            is_joined = example.question is None or example.verbatim
            start = len(prompt) + (not is_joined)
            text = prompt + " " * (not is_joined) + answer
            return Rendered(text, start, len(text), start, answer)
        said = [*self._said(example), Turn("assistant", answer)]
        text = self._fill(said)
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
        earlier = self._earlier(example, said, text) if example.labels_turns else ()
        if example.turns and not text.startswith(prompt):
            raise self._changes(example, len(said) - 1)
        start = len(prompt) if text.startswith(prompt) else place
        if self.second_end_token:
            return Rendered(text, start, len(text), place, shown, earlier)
        stop = self._end_of_turn(text, place + len(shown))
        # A template without an end token: ours follows the answer, not the template's tail.
        text = text if self.ends_a_turn(text[:stop]) else text[:stop]
        return Rendered(text, start, stop, place, shown, earlier)

    def _earlier(
        self, example: Example, said: Sequence[Turn], text: str
    ) -> tuple[tuple[int, int], ...]:
        """Return the characters of the assistant's turns before the last, each with its end.

        Each is what a model would have to say there: it begins where the prompt of the turns before
        it ends, and the text goes on as the one that ends with it.
        """
        spans = []
        for place, turn in enumerate(said[:-1]):
            if turn.role != "assistant":
                continue
            prompt = self._fill(said[:place], prompts=True)
            done = self._fill(said[: place + 1])
            first = done.find(turn.text.strip(), len(prompt))
            if first < 0 or not done.startswith(prompt):
                raise self._changes(example, place)
            stop = self._end_of_turn(done, first + len(turn.text.strip()))
            if not self.ends_a_turn(done[:stop]):
                raise InputError(
                    f"The chat template of {self.tokenizer.name_or_path!r} puts no special token "
                    "behind an assistant's turn, so that earlier ones can't be taught to end; set "
                    "data.which_turns to 'last'."
                )
            if not text.startswith(done[:stop]):
                raise self._changes(example, place)
            spans.append((len(prompt), stop))
        return tuple(spans)

    def _changes(self, example: Example, place: int) -> InputError:
        """Say that a template shows a turn otherwise once more is said.

        Args:
            example: The row.
            place: Of the assistant's turn among all that are shown.
        """
        own = place - (len(self._said(example)) - len(example.turns) - 1)
        way = ", or data.which_turns to 'last'" if example.labels_turns else ""
        return InputError(
            f"The chat template of {self.tokenizer.name_or_path!r} shows message {own} of row "
            f"{example.id}, or what comes before it, in another way once more is said: what would "
            "be learnt is not what is asked. Set data.template_kwargs so that it does not"
            f"{way}."
        )

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

    def _said(self, example: Example) -> list[Turn]:
        """Return the turns up to the question; a row's own system turn takes the place of ours."""
        turns = [*example.turns, Turn("user", example.question or "")]
        if self.system_prompt is not None and turns[0].role != "system":
            turns.insert(0, Turn("system", self.system_prompt))
        return turns

    def _fill(self, turns: Sequence[Turn], *, prompts: bool = False) -> str:
        """Fill the chat template; ``prompts`` goes on to where an answer begins."""
        messages = [{"role": turn.role, "content": turn.text} for turn in turns]
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    messages,
                    tokenize=False,
                    add_generation_prompt=prompts,
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
