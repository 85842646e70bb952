"""The weights that a weighting gives to the tokens of one encoded row."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch

from etw_lightning.data.encode import Encoder
from etw_lightning.kernels.signals import Signal, TokenSignals
from etw_lightning.models.loading import LabelScorer
from etw_lightning.schema import IGNORE_INDEX, EncodedRow, Example, InputError
from etw_lightning.weighting import TokenWeighting

__all__ = ["Weighed", "token_names", "token_texts", "weigh"]

#: Signals of the target model that are numbers a token.
_OF_REFERENCE = ("reference_logps", "reference_entropies")


@dataclass(frozen=True)
class Weighed:
    """What a weighting gives the labelled tokens of one row, and what it was made of.

    Args:
        weights: Weight of each, >= 0.
        entropies: Entropy of the model's prediction of each at the weighting's temperature, nats.
        probabilities: Probability of each under the model.
    """

    weights: list[float]
    entropies: list[float]
    probabilities: list[float]


def weigh(
    weighting: TokenWeighting,
    lm: Any,
    row: EncodedRow,
    *,
    reference: Any = None,
    entropies_of: Any = None,
    marks: Sequence[bool] | None = None,
    words: Sequence[int] | None = None,
    context: AbstractContextManager[Any] | None = None,
) -> Weighed:
    """Return the weight that each labelled token of a row would have as a forget row.

    Args:
        weighting: The weighting.
        lm: The model.
        row: The row.
        reference: Target model, for weightings that compare with it; None where there is none.
        entropies_of: The model that has the entropies of ``source: reference``; None takes the
            target model.
        marks: Which of the row's positions hold a label in marked text; None where it is not known.
        words: Which word the label at each of the row's positions belongs to; None as of ``marks``.
        context: Autocast that the models are asked in.

    Raises:
        InputError: If the weighting reads what is not given.
    """
    needs: set[Signal] = {*weighting.needs, "entropies"}
    of_labels = {"marked": marks, "words": words}
    given = {*(_OF_REFERENCE if reference is not None else ())}
    given |= {name for name, values in of_labels.items() if values is not None}
    lacking = sorted(needs - {"entropies", "distributions", *given})
    if lacking:
        way = "give reference" if set(lacking) <= set(_OF_REFERENCE) else "choose another weighting"
        raise InputError(
            f"weighting {type(weighting).__name__} reads {', '.join(lacking)}, which the model "
            f"alone does not say of a text; {way}."
        )
    temperature = weighting.entropy_temperature or 1.0
    own = [need for need in needs if need not in of_labels and not need.startswith("reference_")]
    compared = [name.removeprefix("reference_") for name in _OF_REFERENCE if name in needs]
    with torch.no_grad(), context or nullcontext():
        signals = _said(lm, row, own, temperature)
        place = signals.logps.device
        held: dict[str, Any] = {}
        if compared:
            target = _said(reference, row, compared, temperature)
            held |= {f"reference_{name}": getattr(target, name).to(place) for name in compared}
        if "entropies" in compared and entropies_of is not None:
            other = _said(entropies_of, row, ["entropies"], temperature).entropies
            assert other is not None
            held["reference_entropies"] = other.to(place)
        for name, values in of_labels.items():
            if values is not None:
                pairs = zip(row.labels, values, strict=True)
                kept = [value for label, value in pairs if label != IGNORE_INDEX]
                held[name] = torch.tensor(kept, device=place)
        signals = replace(signals, **held)
        found = weighting(signals)
    assert signals.entropies is not None
    return Weighed(found.tolist(), signals.entropies.tolist(), signals.logps.exp().tolist())


def _said(lm: Any, row: EncodedRow, needs: Collection[str], temperature: float) -> TokenSignals:
    device = next(lm.parameters()).device
    scorer = LabelScorer(lm).eval()
    scorer.check_head("model")
    ids = torch.tensor([row.input_ids], device=device)
    labels = torch.tensor([row.labels], device=device)
    signals: TokenSignals = scorer(ids, torch.ones_like(ids), labels, needs, temperature)
    return signals


def token_texts(encoder: Encoder, example: Example, labels: Sequence[int]) -> list[str]:
    """Return the labelled tokens as they stand in the answer; others by their names.

    Args:
        encoder: What encoded the row.
        example: What the row was made of.
        labels: Of the row.
    """
    names = token_names(encoder.tokenizer, labels)
    pairs = zip(encoder.answer_spans(example), names, strict=True)
    return [example.answer[left:right] or name for (left, right), name in pairs]


def token_names(tokenizer: Any, labels: Sequence[int]) -> list[str]:
    """Return the names that a tokenizer has for the labelled tokens."""
    ids = [label for label in labels if label != IGNORE_INDEX]
    return [str(name) for name in tokenizer.convert_ids_to_tokens(ids)]
