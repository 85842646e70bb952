"""What a model says after prompts of any kind: greedily, or several samples of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from etw_lightning.data.encode import Encoder
from etw_lightning.models.generation import continue_greedily, continue_sampled
from etw_lightning.models.loading import LabelScorer
from etw_lightning.models.positions import Extent, check_extents
from etw_lightning.models.sampling import Sampling
from etw_lightning.schema import EvalSet, Example, InputError, Record
from etw_lightning.scoring.answers import hidden_id
from etw_lightning.scoring.batches import prompt_rows

__all__ = ["Prompt", "continue_prompts", "prompts_of", "said_records"]


@dataclass(frozen=True)
class Prompt:
    """What a model is to continue.

    Args:
        id: Id of the row, which also decides what is drawn for it.
        ids: Its tokens.
    """

    id: str
    ids: tuple[int, ...]


def prompts_of(examples: Sequence[Example], encoder: Encoder) -> list[Prompt]:
    """Return the questions of rows as prompts.

    Raises:
        InputError: If a row has nothing to continue; names it.
    """
    found = []
    for example in examples:
        ids = encoder.encode_prompt(example)
        if not ids:
            raise InputError(
                f"Row {example.id} can't be continued: it has no question and the tokenizer puts "
                "no begin token before it."
            )
        found.append(Prompt(example.id, tuple(ids)))
    return found


@torch.no_grad()
def continue_prompts(
    lm: torch.nn.Module,
    encoder: Encoder,
    prompts: Sequence[Prompt],
    eval_set: EvalSet,
    batch_size: int,
    sampling: Sampling | None = None,
    num_samples: int = 1,
) -> list[list[str]]:
    """Return what a model says after each prompt.

    What is said after a prompt does not hang on the others, but for rounding: a sample is drawn
    from numbers of its own, made of the row's id, the sample's number and the seed.

    Args:
        lm: The ``transformers`` model, on its device.
        encoder: As the prompts were made with.
        prompts: The prompts.
        eval_set: Its ``max_new_tokens`` and ``stop_strings`` are heeded.
        batch_size: Texts at a time.
        sampling: How tokens are drawn; None takes the likeliest ones.
        num_samples: Texts of each prompt; more than one only with ``sampling``.

    Returns:
        ``num_samples`` texts for each prompt, in order.

    Raises:
        InputError: If a prompt and its continuation are longer than the model takes.
    """
    assert sampling is not None or num_samples == 1
    scorer = LabelScorer(lm)
    device = next(lm.parameters()).device
    extents = [Extent(one.id, len(one.ids), eval_set.max_new_tokens) for one in prompts]
    check_extents(scorer.limits, type(lm).__name__, extents)
    # Longest first, and the samples of a row together: they share their prompt.
    order = sorted(range(len(prompts)), key=lambda place: -len(prompts[place].ids))
    todo = [(place, sample) for place in order for sample in range(num_samples)]
    said: list[list[str]] = [[""] * num_samples for _ in prompts]
    was_training = lm.training
    lm.eval()
    for start in range(0, len(todo), batch_size):
        part = todo[start : start + batch_size]
        ids, mask = prompt_rows(
            [prompts[place].ids for place, _ in part], encoder.pad_id, hidden_id(encoder)
        )
        given = (
            lm,
            ids.to(device),
            mask.to(device),
            encoder.tokenizer,
            eval_set.max_new_tokens,
            eval_set.stop_strings,
            encoder.end_ids,
        )
        if sampling is None:
            texts = continue_greedily(*given)
        else:
            keys = [f"{prompts[place].id}#{sample}" for place, sample in part]
            texts = continue_sampled(*given, keys=keys, sampling=sampling)
        for (place, sample), text in zip(part, texts, strict=True):
            said[place][sample] = text
    lm.train(was_training)
    return said


def said_records(
    eval_set: EvalSet, said: Sequence[Sequence[str]], answers: Sequence[str] | None = None
) -> list[Record]:
    """Return one record a text, those of a row one after the other, all with its id.

    Args:
        eval_set: The rows.
        said: Texts of each row.
        answers: What the texts are compared with; None for the rows' answers.
    """
    gold = [one.answer for one in eval_set.examples] if answers is None else answers
    plain = [
        Record(eval_set.name, example.id, answer, example.question)
        for example, answer in zip(eval_set.examples, gold, strict=True)
    ]
    return [
        replace(record, generation=text)
        for record, texts in zip(plain, said, strict=True)
        for text in texts
    ]
