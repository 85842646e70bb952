"""Examples as texts: what the model is shown, and which characters of it are the answer's."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

from jinja2 import TemplateError

from etw_lightning.schema import Example, InputError, Turn

__all__ = ["Rendered", "Renderer", "Template"]

#: ``chat``: the tokenizer's chat template. ``plain``: ``Question: ...`` and ``Answer: ...`` lines.
Template = Literal["chat", "plain"]

# Without the space before the answer: most tokenizers join it to the answer's first word, so a
# prompt that ends in it would be continued from a place never seen in training.
_PLAIN_PROMPT = "Question: {question}\nAnswer:"

#: What templates put before an answer of a model that thinks: a thought's beginning, or none.
_THOUGHT = re.compile(r"<think>\s*(?:</think>\s*)?\Z")
#: Variables by which templates are told to leave out what a model thinks before it answers.
_THINKING = ("enable_thinking", "thinking")
#: Questions and answers that tell where a template begins an answer.
_PROBES = (
    ("Who wrote it?", "Quill Umbra did."),
    ("And when was that?", "She did so in the year 1958."),
)


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


class _Lead(NamedTuple):
    """What stands between a prompt and its answer.

    Args:
        text: None if the text does not go on where the prompt ends, or not always alike.
        reason: Why, where it is the prompt that says more. All else is found row by row.
    """

    text: str | None
    reason: str = ""


class Renderer:
    """Puts questions and answers into a tokenizer's chat template, or a plain one.

    Args:
        tokenizer: The tokenizer.
        template: How questions are put to the model; verbatim examples ignore it.
        system_prompt: Text of the system turn of the chat template; None sends none.
        template_kwargs: Further variables of the chat template.
        second_end_token: Label what a chat template puts behind its end of turn too.
        thinks: Rows begin what is thought themselves; a template's own beginning is left out.

    Raises:
        InputError: If the chat template is asked for and the tokenizer has none, or the text of an
            answer does not go on where the template's prompt for one ends.
    """

    def __init__(
        self,
        tokenizer: Any,
        template: Template,
        system_prompt: str | None,
        template_kwargs: Mapping[str, Any] | None,
        second_end_token: bool,
        thinks: bool = False,
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
        self.thinks = thinks
        # Also those that no attribute of the tokenizer holds, such as Gemma 3's end of turn.
        added = tokenizer.added_tokens_decoder.values()
        names = [*tokenizer.all_special_tokens, *(str(one) for one in added if one.special)]
        self.special_tokens = tuple(dict.fromkeys(names))
        #: What was changed so that an answer goes on where its prompt ends, a phrase each.
        self.set_right: tuple[str, ...] = ()
        self._lead, self._moves_space = "", False
        if template == "chat":
            self._find_answers()

    def _find_answers(self) -> None:
        """Make the template's prompt end where the text of an answer begins, or refuse it."""
        given, source = self.template_kwargs, str(self.tokenizer.chat_template)
        further = [name for name in _THINKING if name in source and name not in given]
        found = []
        for more in ({}, *({name: False} for name in further)):
            self.template_kwargs = {**given, **more}
            lead, reason = self._leads()
            found.append((lead, reason))
            if lead is not None and not lead.strip():
                self.set_right += tuple(f"data.template_kwargs.{name} false" for name in more)
                # Line ends; a space is the answer's, as in the plain template. Widely used code
                # labels them all.
                line_ends = "" if self.second_end_token else lead.rstrip(" ")
                self._end_prompts(line_ends if self._is_parted(line_ends) else "")
                return self._move_space()
        self.template_kwargs, (lead, reason) = given, found[0]
        asked = next((name for name in _THINKING if given.get(name)), None)
        if lead is not None and asked is not None:
            reason = (
                f"puts {lead!r} before an answer, though data.template_kwargs.{asked} asks for "
                "what a model thinks, which no row has"
            )
        if reason:
            raise InputError(
                f"The chat template of {self.tokenizer.name_or_path!r} {reason}: what is asked is "
                "not what is taught and scored. Set data.template_kwargs so that the prompt ends "
                "where an answer begins, data.template to 'plain', or give a tokenizer with "
                "another template."
            )
        if lead is not None:
            self._end_prompts(lead)
            self._move_space()

    def _leads(self) -> _Lead:
        """Return what stands between a prompt and its answer, for answers of any kind."""
        leads = set()
        for question, answer in _PROBES:
            said = self._said(Example("probe", answer, question))
            asked = self._fill(said, prompts=True)
            before, found, _ = self._fill([*said, Turn("assistant", answer)]).partition(answer)
            if not found:
                return _Lead(None)
            if asked != before and asked.startswith(before):
                return _Lead(
                    None,
                    f"ends the prompt for an answer in {asked[len(before) :]!r}, which the text of "
                    "an answer has not",
                )
            leads.add(before[len(asked) :] if before.startswith(asked) else None)
        return _Lead(leads.pop() if len(leads) == 1 else None)

    def _end_prompts(self, lead: str) -> None:
        """Have prompts end in what the template puts before every answer; it may be empty."""
        self._lead = lead
        if lead:
            self.set_right += (f"{lead!r}, which the template puts before answers, ends prompts",)

    def _is_parted(self, lead: str) -> bool:
        """Tell whether the tokens of a prompt with white space behind it are those of its texts.

        White space that is in one token with the first word of an answer is the answer's.
        """
        for question, answer in _PROBES:
            said = self._said(Example("probe", answer, question))
            texts = (
                self._fill(said, prompts=True) + lead,
                self._fill([*said, Turn("assistant", answer)]),
            )
            ids, whole = (
                self.tokenizer(one, add_special_tokens=False)["input_ids"] for one in texts
            )
            if whole[: len(ids)] != ids:
                return False
        return True

    def _move_space(self) -> None:
        """Leave the space that ends a prompt to the answer, if that is whose token it is in."""
        for question, answer in _PROBES:
            said = self._said(Example("probe", answer, question))
            asked, text = self._ask(said), self._fill([*said, Turn("assistant", answer)])
            whole, ids, bare = (
                self.tokenizer(one, add_special_tokens=False)["input_ids"]
                for one in (text, asked, asked.rstrip(" "))
            )
            if asked.endswith(" ") and whole[: len(ids)] != ids and whole[: len(bare)] == bare:
                self._moves_space = True
                self.set_right += ("the space that ends prompts is the answer's",)
                return

    def _ask(self, said: Sequence[Turn]) -> str:
        """Return what a model is shown of some turns to say the next one."""
        asked = self._fill(said, prompts=True) + self._lead
        return asked.rstrip(" ") if self._moves_space else asked

    def prompt(self, example: Example) -> str:
        """Return the text an answer is generated after; empty for raw text."""
        if example.question is None:
            return ""
        if example.verbatim:
            return example.question + example.lead
        if self.template == "plain":
            if example.turns:
                raise InputError(
                    "data.template is 'plain', which has no form for the turns before the "
                    f"question of row {example.id}; set it to 'chat', or take them out."
                )
            # A lead is the first of what is said, and has the space before it.
            lead = " " * bool(example.lead) + example.lead
            return _PLAIN_PROMPT.format(question=example.question) + lead
        if example.lead:
            shown = self._stand_in(example)
            return shown.text[: shown.place] + example.lead
        return self._ask(self._said(example))

    def render(self, example: Example, answer: str) -> Rendered:
        """Return the whole text, and which of it is to be labelled."""
        prompt = self.prompt(example)
        if example.question is None or example.verbatim or self.template == "plain":
            is_joined = example.question is None or example.verbatim or bool(example.lead)
            text = prompt + " " * (not is_joined) + answer
            # The space is the answer's, also where it is a token by itself.
            return Rendered(text, len(prompt), len(text), len(text) - len(answer), answer)
        if example.lead:
            return self._led(example, answer)
        said = [*self._said(example), Turn("assistant", answer)]
        text = self._fill(said)
        # Templates may strip the answer; they never change what is inside it.
        place, shown = text.find(answer, len(prompt)), answer
        if place < len(prompt):
            shown = answer.strip()
            place = text.find(shown, len(prompt))
        if place < len(prompt) and not text.startswith(prompt):
            raise self._changes(example, len(said) - 1)
        if place < len(prompt):
            raise InputError(
                f"The chat template of {self.tokenizer.name_or_path!r} changes the answer of row "
                f"{example.id}; its labels can't be placed. Set data.template to 'plain'."
            )
        earlier = self._earlier(example, said, text) if example.labels_turns else ()
        if not text.startswith(prompt) or text[len(prompt) : place].strip():
            raise self._changes(example, len(said) - 1)
        start = len(prompt)
        if self.second_end_token:
            return Rendered(text, start, len(text), place, shown, earlier)
        stop = self._end_of_turn(text, place + len(shown))
        tail = text[place + len(shown) : stop]
        ends = [token for token in self.special_tokens if tail.endswith(token)]
        tail = tail.removesuffix(max(ends, key=len, default="")).strip()
        if tail:
            raise InputError(
                f"The chat template of {self.tokenizer.name_or_path!r} puts {tail[:40]!r} behind "
                f"the answer of row {example.id}, which is none of it and would be taught and "
                "scored with it. Set data.template to 'plain'."
            )
        # A template without an end token: ours follows the answer, not the template's tail.
        text = text if self.ends_a_turn(text[:stop]) else text[:stop]
        return Rendered(text, start, stop, place, shown, earlier)

    def _led(self, example: Example, answer: str) -> Rendered:
        """Return the whole text of a row with a lead, which no template gets to see.

        Those of models that think take out what they take for a thought.
        """
        shown = self._stand_in(example)
        head = shown.text[: shown.place] + example.lead
        text = head + answer + shown.text[shown.place + len(shown.answer) :]
        stop, place = shown.stop + len(text) - len(shown.text), len(head)
        return Rendered(text, place, stop, place, answer, shown.earlier)

    def _stand_in(self, example: Example) -> Rendered:
        """Return a row with a lead as it would be without, and with another answer."""
        return self.render(replace(example, lead=""), _PROBES[0][1])

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
            prompt = self._ask(said[:place])
            done = self._fill(said[: place + 1])
            first = done.find(turn.text.strip(), len(prompt))
            if first < len(prompt) or not done.startswith(prompt):
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

    def turn_ends(self) -> tuple[str, ...]:
        """Return the special tokens that close what the assistant says, within and at the end.

        None of a template without one, or that takes no turn behind an answer.
        """
        if self.template == "plain":
            return ()
        (question, answer), (other, _) = _PROBES
        said = [*self._said(Example("probe", answer, question)), Turn("assistant", answer)]
        found = []
        for turns in (said, [*said, Turn("user", other)]):
            try:
                text = self._fill(turns)
            except InputError:
                continue
            place = text.rfind(answer) + len(answer)
            shown = text[place : self._end_of_turn(text, place)]
            found += [token for token in self.special_tokens if shown.endswith(token)]
        return tuple(dict.fromkeys(found))

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
            text = str(
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
        if not self.thinks:
            return text
        answer = "" if prompts or turns[-1].role != "assistant" else turns[-1].text.strip()
        place = text.rfind(answer) if answer else len(text)
        return text if place < 0 else _THOUGHT.sub("", text[:place]) + text[place:]
