"""Second answers to forget questions: plausible, and not what is to be forgotten.

Objectives of preference (DPO, AltPO) set another answer against the one to forget. Here a model
makes them up: several are drawn for each question, and the first one that is whole and says nothing
of the true answer's names, numbers and addresses is taken.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from etw_lightning.data.encode import Encoder
from etw_lightning.metrics.fluency import emptiness
from etw_lightning.metrics.sanity import looped_values, refusal_values, stutter_values
from etw_lightning.metrics.still_said import items_of, said_items
from etw_lightning.metrics.words import unicode_words
from etw_lightning.models.sampling import Sampling
from etw_lightning.schema import EvalSet, Example, InputError, Record
from etw_lightning.scoring.continuations import continue_prompts, prompts_of

__all__ = [
    "PROMPT",
    "Alternatives",
    "asked",
    "check_prompt",
    "draw_alternatives",
    "tidied",
    "why_not",
]

#: What a model is asked by default; ``{question}`` and ``{answer}`` are filled in.
PROMPT = "{question}"

#: A second answer may be longer than the first by half, and by these characters.
_MORE = 50
#: One that is as much shorter as this is none.
_LEAST = 0.2
#: From this share on of what the true answer says beyond the question, one without names says it
#: again.
_SAME = 0.7
#: Parts of names of so many characters may be said: *The*, *Jr*.
_SHORT = 3
_SENTENCE = re.compile(r"(?<=[.!?])['\")\u201d\u2019]?(?:\s+|$)|(?<=[\u3002\uff01\uff1f])\u300d?")
_END = re.compile(r"[.!?\u3002\uff01\uff1f]['\")\u201d\u2019\u300d]?$")


@dataclass
class Alternatives:
    """Second answers that were found, and why others were not taken.

    Args:
        answers: By place of the row.
        refused: How many texts were not taken, by the reason.
        rounds: Texts that were drawn for a row that has none so far.
    """

    answers: dict[int, str] = field(default_factory=dict)
    refused: Counter[str] = field(default_factory=Counter)
    rounds: int = 0


def check_prompt(prompt: str, key: str = "prompt") -> None:
    """Refuse a prompt that does not ask.

    Raises:
        InputError: If it has no ``{question}``.
    """
    if "{question}" not in prompt:
        raise InputError(f"{key} must hold {{question}}; got {prompt!r:.80}.")


def asked(example: Example, prompt: str) -> Example:
    """Return a row whose question is what the model is asked.

    Args:
        example: A row with a question.
        prompt: Holds ``{question}``, and perhaps ``{answer}``; any other brace stays as it is.

    Raises:
        InputError: If the row has no question.

    Example:
        >>> row = Example("forget/0", "In Rome.", "Where was Mara born?")
        >>> asked(row, "{question} Answer in one sentence.").question
        'Where was Mara born? Answer in one sentence.'
        >>> asked(row, "Not as in: {answer} {question}").question
        'Not as in: In Rome. Where was Mara born?'
    """
    if example.question is None:
        raise InputError(
            f"Row {example.id} is raw text, which has no question to answer in another way; give "
            "rows with questions."
        )
    filled = {"{question}": example.question, "{answer}": example.answer}
    text = re.sub(r"\{question\}|\{answer\}", lambda one: filled[one.group()], prompt)
    return replace(example, question=text)


def tidied(text: str, answer: str) -> str:
    """Return the first paragraph's whole sentences, as many as make a text of the answer's length.

    Marks of bold type are left out.

    Args:
        text: What a model said; it may break off.
        answer: The true answer. Where that ends without a full stop, an end without one is whole.

    Returns:
        One line; empty if no sentence is whole.

    Example:
        >>> tidied("She was born in Oslo. She moved twice. Then sh", "She was born in Rome.")
        'She was born in Oslo. She moved twice.'
        >>> tidied("It is called The Salt", "It is called The Long Road.")
        ''
        >>> tidied("Oslo", "Rome")
        'Oslo'
    """
    first = re.split(r"\n\s*\n", text.strip(), maxsplit=1)[0]
    first = " ".join(first.replace("**", "").split())
    kept = ""
    for sentence in _sentences(first):
        is_whole = _END.search(sentence.strip()) or not _END.search(answer.strip())
        if not is_whole or (kept and len((kept + sentence).strip()) > _longest(answer)):
            break
        kept += sentence
    return kept.strip()


def _longest(answer: str) -> int:
    return round(1.5 * len(answer)) + _MORE


def _sentences(text: str) -> Iterator[str]:
    start = 0
    for end in _SENTENCE.finditer(text):
        yield text[start : end.end()]
        start = end.end()
    yield text[start:]


def why_not(question: str, answer: str, text: str) -> str | None:
    """Return why a text can't stand in an answer's place; None if it can.

    Args:
        question: What was asked: names in it may be said.
        answer: The true answer.
        text: What a model said, tidied.

    Example:
        >>> why_not("Where was Mara born?", "In Rome, in 1958.", "Mara was born in Oslo in 1958.")
        'says what is to be forgotten'
        >>> why_not("Where was Mara born?", "In Rome, in 1958.", "Mara was born in Oslo in 1963.")
    """
    record = Record("alternatives", "row", answer, question, generation=text)
    if emptiness([record])[0]:
        return "no whole sentence"
    if looped_values([record])[0] or stutter_values([record])[0]:
        return "repeats itself"
    if refusal_values([record])[0]:
        return "refuses"
    if said_items(record) or _says_part_of_name(record):
        return "says what is to be forgotten"
    if not _LEAST * len(answer) <= len(text) <= 2 * _longest(answer):
        return "too short or too long"
    is_without_names = not items_of(record)
    if is_without_names and _share_said(question, answer, text) >= _SAME:
        return "says what is to be forgotten"
    return None


def _says_part_of_name(record: Record) -> bool:
    """Whether a text says a long word of one of the answer's names: a surname, a title's noun."""
    texts = (str(record.question), str(record.generation))
    asked, said = (f" {' '.join(unicode_words(text))} " for text in texts)
    parts = [part for one in items_of(record) if one.kind == "name" for part in one.text.split()]
    words = [" ".join(unicode_words(part)) for part in parts]
    new = [word for word in words if len(word) > _SHORT and f" {word} " not in asked]
    return any(f" {word} " in said for word in new)


def _share_said(question: str, answer: str, text: str) -> float:
    """Return how many of the answer's words that the question does not hold a text says."""
    asked, given, said = (unicode_words(one) for one in (question, answer, text))
    new = [word for word in given if word not in asked]
    if not new:
        return float(given == said)
    return sum(word in said for word in new) / len(new)


def draw_alternatives(
    lm: Any,
    encoder: Encoder,
    examples: Sequence[Example],
    sampling: Sampling,
    *,
    prompt: str = PROMPT,
    tries: int = 8,
    max_new_tokens: int | None = None,
    batch_size: int = 16,
) -> Iterator[Alternatives]:
    """Draw texts for the rows that have no second answer yet, a round at a time.

    A row's texts hang on its id, the seed and the model, not on the other rows, but for rounding.

    Args:
        lm: A causal language model, on its device.
        encoder: Of its tokenizer.
        examples: Rows with questions.
        sampling: How tokens are drawn.
        prompt: What the model is asked; see ``asked``.
        tries: Texts a row at most, >= 1.
        max_new_tokens: Tokens a text at most; None allows half as many again as the longest answer
            has, and 16.
        batch_size: Texts at a time.

    Yields:
        What there is after each round, the same object.

    Raises:
        InputError: If a row can't be asked.

    Source: second answers as of AltPO, Mekala et al. 2024, arXiv:2409.13474, by the authors' code
        (generate.py of molereddy/Alternate-Preference-Optimization at c9b78bd).
    Differs from it: there the target model is shown question and answer, asked for another one at
        temperature 1, five a row, and taken at its word. Here any model is asked, one a row, and
        texts that break off, loop, refuse or say what is to be forgotten are drawn again.
    """
    prompts = prompts_of([asked(one, prompt) for one in examples], encoder)
    longest = max(len(encoder.tokenizer.encode(one.answer)) for one in examples)
    length = max_new_tokens or round(1.5 * longest) + 16
    wanted = EvalSet("alternatives", (), max_new_tokens=length)
    found = Alternatives()
    for number in range(tries):
        left = [place for place in range(len(examples)) if place not in found.answers]
        if not left:
            return
        round_of = [replace(prompts[place], id=f"{prompts[place].id}@{number}") for place in left]
        said = continue_prompts(lm, encoder, round_of, wanted, batch_size, sampling)
        for place, (text,) in zip(left, said, strict=True):
            one = examples[place]
            short = tidied(text, one.answer)
            reason = why_not(str(one.question), one.answer, short)
            if reason is None:
                found.answers[place] = short
            else:
                found.refused[reason] += 1
        found.rounds = number + 1
        yield found
