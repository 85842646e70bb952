"""The answers of an example as rows, those together that share what they begin with."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

from etw_lightning.data.answer_rows import AnswerRow, Numbered, keep_answers
from etw_lightning.data.encode import Encoder
from etw_lightning.models.packing import PrefixTree, prefix_tree
from etw_lightning.schema import IGNORE_INDEX, EncodedRow, EvalSet, Example, InputError
from etw_lightning.scoring.scores import Slot

__all__ = ["Answer", "answers_of", "hidden_id", "kept_answers", "last_label", "lay_out"]

#: Tokens of a row above which the answers of an example go into rows of their own: attention in
#: a row costs its length squared.
_MAX_WIDTH = 2048
#: Modules that decide, beside those that encode, how the answers of a set are laid out.
_CODE = ("data.answer_rows", "models.packing", "scoring.answers.rows")


class Answer(NamedTuple):
    """A labelled row and where its value belongs."""

    slot: Slot
    row: EncodedRow


def kept_answers(eval_set: EvalSet, encoder: Encoder) -> Sequence[AnswerRow] | None:
    """Return the answers of a large set, from the cache; None of a small one.

    Args:
        eval_set: The set.
        encoder: How text becomes tokens.

    Raises:
        InputError: As ``answer_batches``.
    """
    words = f"encoding what is scored of {eval_set.name}"
    return keep_answers(eval_set.examples, encoder, partial(lay_out, encoder), words, _CODE)


def lay_out(encoder: Encoder, pairs: Sequence[Numbered]) -> list[AnswerRow]:
    """Return the answers of some examples, those together that share a row."""
    texts = [(example, text) for _, example in pairs for _, _, text in answers_of(example)]
    found: list[AnswerRow] = []
    with encoder.ahead(texts):
        for number, example in pairs:
            answers = _answers(number, example, encoder)
            tree = prefix_tree([answer.row for answer in answers])
            if len(tree.ids) <= _MAX_WIDTH or tree.is_chain:
                groups = [(tree, answers)]
            else:
                groups = [(prefix_tree([answer.row]), [answer]) for answer in answers]
            found += [
                _laid_out(answer, example, encoder, tree, begins=not place)
                for tree, group in groups
                for place, answer in enumerate(group)
            ]
    return found


def _laid_out(
    answer: Answer, example: Example, encoder: Encoder, tree: PrefixTree, *, begins: bool
) -> AnswerRow:
    """Return an answer with what is known of it without a model."""
    is_gold = answer.slot.field == "answer_loss"
    return AnswerRow(
        *answer.slot,
        row=answer.row,
        spans=tuple(encoder.answer_spans(example)) if is_gold else None,
        text=encoder.scored_text(example) if is_gold else None,
        begins=int(begins),
        width=len(tree.ids),
        is_chain=int(tree.is_chain),
        last=last_label(answer.row),
    )


def answers_of(example: Example) -> list[tuple[str, int, str]]:
    """Return field, place and text of each answer of an example, the gold one first."""
    texts = [("answer_loss", 0, example.answer)]
    if example.paraphrased_answer is not None:
        texts.append(("paraphrase_loss", 0, example.paraphrased_answer))
    texts += [
        ("perturbed_losses", place, text) for place, text in enumerate(example.perturbed_answers)
    ]
    return texts + [("choice_logps", place, text) for place, text in enumerate(example.choices)]


def _answers(number: int, example: Example, encoder: Encoder) -> list[Answer]:
    """Return the rows of an example, the gold answer's first."""
    answers = [
        Answer(Slot(number, name, place), encoder.encode(example, text))
        for name, place, text in answers_of(example)
    ]
    for slot, row in answers:
        if slot.field == "choice_logps" and row.is_cut:
            raise InputError(
                f"Row {example.id}: option {slot.place + 1} of {len(example.choices)} is cut by "
                f"{encoder.length_key} = {encoder.max_length}; options of which a part is "
                f"scored can't be compared. Raise {encoder.length_key}."
            )
    return answers


def last_label(row: EncodedRow) -> int:
    """Return where the last label of a row stands."""
    return max(place for place, label in enumerate(row.labels) if label != IGNORE_INDEX)


def hidden_id(encoder: Encoder) -> int | None:
    """Return the token that no position may look at, by the conventions; None for none."""
    return encoder.pad_id if encoder.conventions.attention_mask == "token_id" else None
