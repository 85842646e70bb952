"""``alternatives``: second answers to forget questions, drawn from a model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from etw_lightning.api.arguments import in_own_words
from etw_lightning.api.loaded import restored, take_model, template_of
from etw_lightning.benchmarks.formats import FORMATS, is_saved, read_file, suffix_of
from etw_lightning.benchmarks.given_rows import Rows, as_rows, is_path
from etw_lightning.benchmarks.tofu import Columns, read_row
from etw_lightning.data.encode import Encoder, Template
from etw_lightning.data.second_answers import SecondAnswers, pair_of
from etw_lightning.models.loading import DType
from etw_lightning.models.sampling import Sampling
from etw_lightning.schema import Example, InputError
from etw_lightning.scoring.alternatives import PROMPT, Alternatives, check_prompt, draw_alternatives
from etw_lightning.training.given import GivenModel

__all__ = ["alternatives", "draw_rows", "read_questions", "take_asked"]


@in_own_words
def alternatives(
    model: Any,
    tokenizer: Any = None,
    rows: Rows = (),
    *,
    prompt: str = PROMPT,
    tries: int = 8,
    temperature: float = 0.7,
    top_p: float = 0.9,
    seed: int = 0,
    max_new_tokens: int | None = None,
    batch_size: int = 16,
    template: Template | None = None,
    system_prompt: str | None = None,
    dtype: DType = "float32",
    columns: Columns = Columns(),
) -> list[dict[str, str]]:
    """Return rows with a second answer each, for methods that prefer one (``altpo``, ``dpo``).

    A second answer is what a model says to the question, best one that was not taught the rows, or
    the target model itself with the answer in ``prompt``: drawn up to ``tries`` times, cut to whole
    sentences of about the true answer's length, and taken if it is no loop and no refusal and holds
    none of the true answer's names, numbers and addresses. Nothing checks its facts.

    Args:
        model: A loaded causal language model, which stays as it is; or a name or folder.
        tokenizer: Its tokenizer; None where ``model`` is a name.
        rows: Forget rows with questions and answers: rows by column, a Dataset, a frame or a file.
        prompt: What the model is asked; holds ``{question}``, and perhaps ``{answer}``.
        tries: Texts that are drawn for a row at most, >= 1.
        temperature: What logits are divided by, above 0.
        top_p: Mass of the likeliest tokens that are kept, above 0.
        seed: Other texts for every seed.
        max_new_tokens: Tokens of a text at most; None allows half as many again as the longest
            answer has, and 16.
        batch_size: Texts at a time.
        template: ``chat`` or ``plain``; None takes the tokenizer's chat template if it has one.
        system_prompt: System turn of the chat template.
        dtype: Precision of the weights of a model that is loaded here.
        columns: Names of the columns of ``rows``.

    Returns:
        ``question``, ``answer`` and ``alternative_answer`` of each row that has one, in order.

    Raises:
        InputError: Names the argument.
    """
    for name, value in (("tries", tries), ("batch_size", batch_size)):
        if value < 1:
            raise InputError(f"{name} must be >= 1; got {value}.")
    if max_new_tokens is not None and max_new_tokens < 1:
        raise InputError(f"max_new_tokens must be >= 1; got {max_new_tokens}.")
    check_prompt(prompt)
    sampling = Sampling(temperature, top_p, seed)
    examples = read_questions(rows, columns)
    return draw_rows(
        take_asked(model, tokenizer, dtype),
        examples,
        {},
        sampling,
        template=template,
        system_prompt=system_prompt,
        prompt=prompt,
        tries=tries,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
    )


def take_asked(model: Any, tokenizer: Any, dtype: DType) -> GivenModel:
    """Return a model with its tokenizer as ``take_model``; one by name goes to the accelerator."""
    given = take_model(model, tokenizer, dtype)
    if is_path(model) and torch.accelerator.is_available():
        given.lm.to(torch.accelerator.current_accelerator())
    return given


def draw_rows(
    given: GivenModel,
    examples: list[Example],
    known: SecondAnswers,
    sampling: Sampling,
    *,
    template: Template | None,
    system_prompt: str | None,
    told: Callable[[Alternatives, list[dict[str, str]]], None] = lambda *_: None,
    **how: Any,
) -> list[dict[str, str]]:
    """Return rows with a second answer each; those that have one are not asked.

    Args:
        given: The model, which stays as it is, with its tokenizer.
        examples: Rows of questions and answers.
        known: Second answers that there are.
        sampling: How tokens are drawn.
        template: As of ``alternatives``.
        system_prompt: As of ``alternatives``.
        told: Called after each round with what was found so far, and the rows as they are returned.
        how: Further arguments of ``draw_alternatives``.
    """
    kind = template_of(given.tokenizer, template)
    encoder = Encoder(given.tokenizer, kind, max_length=1 << 30, system_prompt=system_prompt)
    held = {**known}
    left = [one for one in examples if _pair(one) not in held]
    if left:
        with restored(given.lm):
            for found in draw_alternatives(given.lm, encoder, left, sampling, **how):
                held |= {_pair(left[place]): text for place, text in found.answers.items()}
                told(found, _rows(examples, held))
    return _rows(examples, held)


def read_questions(
    rows: Rows,
    columns: Columns = Columns(),
    key: str = "rows",
) -> list[Example]:
    """Return rows of questions and answers, each pair once.

    Args:
        rows: Rows by column, a Dataset, a frame or a file.
        columns: Names of their columns.
        key: What errors name.

    Raises:
        InputError: If they can't be read.
    """
    if is_path(rows):
        file = Path(str(rows)).expanduser()
        if not (suffix_of(file.name) and file.is_file()) and not is_saved(file):
            lack = "is not one" if file.exists() else "does not exist"
            raise InputError(f"{key} must be a file of rows ({FORMATS}); {str(rows)!r} {lack}.")
        held, name = read_file(file), file.name.removesuffix(suffix_of(file.name))
    else:
        held, name = as_rows(rows, key), key
    examples = [read_row(row, f"{name}/{at}", columns=columns) for at, row in enumerate(held)]
    return list({_pair(one): one for one in reversed(examples)}.values())[::-1]


def _pair(example: Example) -> tuple[str, str]:
    return pair_of(example.question, example.answer)


def _rows(examples: list[Example], held: SecondAnswers) -> list[dict[str, str]]:
    return [
        {
            "question": str(one.question),
            "answer": one.answer,
            "alternative_answer": held[_pair(one)],
        }
        for one in examples
        if _pair(one) in held
    ]
