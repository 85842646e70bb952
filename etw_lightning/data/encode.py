"""Examples to token ids and labels: truncation, chunking, and what tells encoders apart."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from itertools import islice
from typing import Any, Literal, TypeVar

from etw_lightning.data.rendering import Template
from etw_lightning.data.row_layout import Layout, RowLayouts
from etw_lightning.schema import IGNORE_INDEX, Conventions, EncodedRow, Example, InputError

__all__ = ["JOINT", "Encoder", "Template", "Truncation", "is_raw", "shared_pair"]

#: What becomes of a row of a question that is longer than ``max_length``.
Truncation = Literal["warn", "error"]

#: What stands between raw texts that are cut into rows together.
JOINT = "\n\n"

#: What is cut into rows with a text: its tokens, or their characters.
_Of = TypeVar("_Of")

# One row of each form a text can have; what they become tells one template from another.
_PROBES = (
    Example(
        "probe/question", "She wrote 12 books.\nNone — not one — sold.", "Who wrote it in 1958?"
    ),
    Example("probe/verbatim", " She did.", "Question: Who wrote it?\nAnswer:", verbatim=True),
    Example("probe/text", "The town has an old mill."),
)


def is_raw(examples: Sequence[Example]) -> bool:
    """Tell whether these are raw texts, which are joined and cut into rows."""
    return all(example.question is None for example in examples)


class Encoder(RowLayouts):
    """Turns examples into token ids and labels for one tokenizer and template.

    Labels cover what the model is to say after the prompt, and nothing else: the answer, spaces
    that the template puts before it (line ends there end the prompt) and the token that ends it; of
    a chat whose turns are all labelled, the same of each turn of the assistant. They are found in
    the rendered text by character offsets. Raw texts, and what continues a verbatim prompt, have no
    token that ends them.

    What is taught, scored, asked and where a generation stops are one text: a row begins with the
    very tokens of its prompt (an answer that would share one with it is encoded behind it by
    itself), its labels are all that follows up to the end, and the last of them is one of
    ``end_ids``.

    Args:
        tokenizer: A fast Hugging Face tokenizer (one that gives offsets).
        template: How questions are put to the model; verbatim examples ignore it.
        max_length: Tokens kept of a row, from the left; >= 2.
        system_prompt: Text of the system turn of the chat template; None sends none.
        template_kwargs: Further variables of the chat template, such as Llama 3's
            ``date_string``, which would otherwise change with the calendar.
        conventions: ``second_end_token`` is heeded here; ``attention_mask`` where rows are scored.
        truncation: Take rows of questions that lose labels to ``max_length``, or refuse them.
        length_key: Configuration key of ``max_length``, for messages.
        thinks: Rows say what is thought before the answer, and begin it themselves: a sign that
            thinking begins, which a chat template's prompt ends in, is left out.

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
        conventions: Conventions = Conventions(),  # noqa: B008 (frozen)
        truncation: Truncation = "warn",
        length_key: str = "data.max_length",
        thinks: bool = False,
    ) -> None:
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
        super().__init__(tokenizer, template, system_prompt, template_kwargs, conventions, thinks)
        self.max_length = max_length
        self.system_prompt = system_prompt
        self.template_kwargs = dict(template_kwargs or {})
        self.truncation = truncation
        self.length_key = length_key

    @property
    def pad_id(self) -> int:
        """Id that fills padded positions; the attention mask, not this id, says what is padding."""
        pad = self.tokenizer.pad_token_id
        return int(self.tokenizer.eos_token_id if pad is None else pad)

    @property
    def set_right(self) -> tuple[str, ...]:
        """What of the template was changed so that answers go on where prompts end."""
        return self._renderer.set_right

    @property
    def content_key(self) -> str:
        """Hash of all that decides ids and where a generation stops; 12 hexadecimal digits.

        A chat template that reads the calendar changes it from one day to the next.
        """
        tokenizer = self.tokenizer
        state = {
            "rows": self.template_key,
            "special": [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id],
            "special_tokens": sorted(self._renderer.special_tokens),
            "tokenizer": tokenizer.backend_tokenizer.to_str(),
            "chat_template": tokenizer.chat_template if self.template == "chat" else None,
            "template": self.template,
            "max_length": self.max_length,
            "system_prompt": self.system_prompt,
            "template_kwargs": self.template_kwargs,
            "conventions": self._scoring_conventions(),
            "ends": sorted(self.end_ids),
            **({"thinks": True} if self._renderer.thinks else {}),
        }
        return _short_hash(state)

    @property
    def template_key(self) -> str:
        """Hash of what a few fixed texts become; 12 hexadecimal digits.

        Equal for tokenizers whose files differ in what does not matter, such as the order of
        their entries or a template's white space; records of models with equal keys were made of
        the same tokens.
        """
        rows = [self.lay_out(probe, probe.answer) for probe in _PROBES]
        state: dict[str, Any] = {
            "rows": [(row.ids, row.labels) for row in rows],
            "prompts": [self.encode_prompt(probe) for probe in _PROBES],
            "max_length": self.max_length,
            "conventions": self._scoring_conventions(),
        }
        if self.conventions.attention_mask == "token_id":
            state["pad"] = self.pad_id
        return _short_hash(state)

    def _scoring_conventions(self) -> dict[str, Any]:
        """Return the conventions that change records; the others are of metrics alone."""
        state = asdict(self.conventions)
        return {key: state[key] for key in state if key not in ("floor", "gold_text")}

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
        whole = self.lay_out(example, example.answer if answer is None else answer)
        layout = self._cut(whole)
        num_lost = whole.num_labels - layout.num_labels
        is_cut = num_lost > 0
        if is_cut and self.truncation == "error" and example.question is not None:
            raise InputError(
                f"Row {example.id} loses {num_lost} of {whole.num_labels} labels to "
                f"{self.length_key} = {self.max_length}, and data.truncation is 'error'; raise the "
                "length, shorten the row, or set data.truncation to 'warn'."
            )
        row = EncodedRow(example.id, _shared(layout.ids), _shared(layout.labels), num_lost)
        if row.num_labels == 0 and not is_cut:
            raise InputError(
                f"Row {example.id} is too short to be scored: a label needs a token before it, "
                f"and the whole row has {len(row.input_ids)} of the 2 tokens that takes. Remove "
                "the row, or use a tokenizer that puts a begin token before a text."
            )
        if row.num_labels == 0:
            raise InputError(
                f"Row {example.id} has no answer token left within {self.length_key} = "
                f"{self.max_length}: its prompt alone has {len(self.encode_prompt(example))} "
                f"tokens. Raise {self.length_key} or remove the row."
            )
        return row

    def encode_all(
        self, examples: Sequence[Example], answers: Sequence[str] | None = None
    ) -> list[EncodedRow]:
        """Return what ``encode`` makes of each row, with a few calls of the tokenizer for all.

        All texts of the rows are in memory at once: give some hundreds at a time.

        Args:
            examples: The rows.
            answers: Take the places of theirs.

        Raises:
            InputError: As ``encode``, of the first row that it refuses.
        """
        given = [one.answer for one in examples] if answers is None else answers
        pairs = list(zip(examples, given, strict=True))
        with self.ahead(pairs):
            return [self.encode(example, answer) for example, answer in pairs]

    def num_tokens(self, example: Example, answer: str) -> int:
        """Return how many tokens a row would have if none were cut."""
        return len(self.lay_out(example, answer).ids)

    def answer_spans(self, example: Example) -> list[tuple[int, int]]:
        """Return where each labelled token lies in ``example.answer``, in characters.

        Returns:
            One pair a label of ``encode(example)``: ``(0, 0)`` for what stands before the answer,
            twice its length for what stands behind it.
        """
        layout = self._cut(self.lay_out(example, example.answer))
        first, answer = layout.shown.place, layout.shown.answer
        stop, stripped = first + len(answer), max(example.answer.find(answer), 0)

        def span(left: int, right: int) -> tuple[int, int]:
            if right <= first:
                return shared_pair(0, 0)
            if left >= stop:
                return shared_pair(len(example.answer), len(example.answer))
            return shared_pair(max(left - first, 0) + stripped, min(right, stop) - first + stripped)

        return [span(*offsets) for offsets in layout.labelled]

    def scored_text(self, example: Example) -> str | None:
        """Return the labelled text without special tokens; None where it is just the answer.

        It is another where ``max_length`` cuts the answer, where a template changes its beginning
        or end, and for raw text of a tokenizer that puts no begin token before it.
        """
        layout = self._cut(self.lay_out(example, example.answer))
        spans = layout.labelled
        # The first token may begin in the prompt, or hold the space that ends a plain one.
        shown = layout.shown
        # The space of the plain template is labelled, and no part of what is said.
        start = shown.place if self.template == "plain" else shown.start
        text = shown.text[max(spans[0][0], start) : spans[-1][1]] if spans else ""
        for token in self._renderer.special_tokens:
            text = text.replace(token, "")
        return None if text == example.answer else text

    def chunk(self, examples: Sequence[Example], name: str) -> list[EncodedRow]:
        """Cut raw texts, joined by blank lines, into rows of ``max_length`` tokens.

        Every token but the first of a row is labelled. The last row may be shorter; one that
        is too short to have a label is left out.

        Args:
            examples: Raw texts in file order.
            name: Prefix of the row ids, ``raw/forget`` gives ``raw/forget/chunk0``.
        """
        text = JOINT.join(example.answer for example in examples)
        tokens = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return list(self.cut_tokens(tokens, name))

    def cut_tokens(self, tokens: Iterable[int], name: str) -> Iterator[EncodedRow]:
        """Cut the tokens of the joined texts into rows, as ``chunk`` does.

        Args:
            tokens: Of the joined texts, without special ones.
            name: As of ``chunk``.
        """
        for number, piece in enumerate(self._pieces(tokens, self._text_head())):
            if len(piece) > 1:
                ids = _shared(piece)
                yield EncodedRow(f"{name}/chunk{number}", ids, (IGNORE_INDEX, *ids[1:]))

    def chunk_spans(self, examples: Sequence[Example]) -> list[list[tuple[int, int]]]:
        """Return where the labels of each row of ``chunk`` lie in the joined text, in characters.

        Args:
            examples: As given to ``chunk``.
        """
        text = JOINT.join(example.answer for example in examples)
        encoded = self.tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        head = [(0, 0)] * len(self._text_head())
        pieces = self._pieces(encoded["offset_mapping"], head)
        return [list(piece[1:]) for piece in pieces if len(piece) > 1]

    def _pieces(self, tokens: Iterable[_Of], head: Sequence[_Of]) -> Iterator[list[_Of]]:
        """Cut what is known of each token of the joined text into rows, each behind a head."""
        width = self.max_length - len(head)
        if width < 1 or self.max_length < 2:
            raise InputError(
                f"data.max_length is {self.max_length}, which leaves no label in a row of raw "
                f"text; give at least {max(len(head) + 1, 2)}."
            )
        given = iter(tokens)
        while piece := list(islice(given, width)):
            yield [*head, *piece]

    def _text_head(self) -> list[int]:
        """Return what the tokenizer puts before a text: the begin token, or nothing."""
        ids = list(self.tokenizer("a")["input_ids"])
        return ids[:1] if ids[:1] == [self.tokenizer.bos_token_id] else []

    def _cut(self, layout: Layout) -> Layout:
        """Return the first ``max_length`` tokens."""
        kept = slice(self.max_length)
        return layout._replace(
            ids=layout.ids[kept], labels=layout.labels[kept], offsets=layout.offsets[kept]
        )


#: One object for each token: of rows that are held, places of tokens take eight bytes each.
_TOKENS: dict[int, int] = {}


def _shared(ids: Sequence[int]) -> tuple[int, ...]:
    """Return tokens that are the same objects in all rows."""
    return tuple(map(_TOKENS.setdefault, ids, ids))


@lru_cache(maxsize=1 << 16)
def shared_pair(left: int, right: int) -> tuple[int, int]:
    """Return a pair that is the same object wherever it is needed.

    Args:
        left: Its first number.
        right: Its second.
    """
    return left, right


def _short_hash(state: Any) -> str:
    """Return 12 hexadecimal digits that tell one content from another."""
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()[:12]
