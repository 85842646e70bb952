"""What a stored record may hold: numbers where numbers belong, and in their range."""

from __future__ import annotations

import math
from collections.abc import Sequence

from etw_lightning.schema import InputError, Record

__all__ = ["check_records"]

#: Rounding by which a log-probability may be above 0.
_SLACK = 1e-4
_TEXTS = ("dataset", "id", "answer", "question", "scored_text", "generation", "paraphrase")
#: Fields that hold one number; others of ``_RANGES`` hold one of each token or text.
_SINGLE = ("answer_loss", "paraphrase_loss", "gradient_norm", "right_choice", "min_k")
#: Fields that hold something of each labelled token.
_OF_TOKENS = (
    "token_logps",
    "token_entropies",
    "token_variances",
    "token_matches",
    "token_spans",
)
#: Field to the least and the largest number in it.
_RANGES = {
    "answer_loss": (-_SLACK, math.inf),
    "paraphrase_loss": (-_SLACK, math.inf),
    "perturbed_losses": (-_SLACK, math.inf),
    "min_k": (-_SLACK, math.inf),
    "gradient_norm": (0.0, math.inf),
    "token_logps": (-math.inf, _SLACK),
    "choice_logps": (-math.inf, _SLACK),
    "token_entropies": (-_SLACK, math.inf),
    "token_variances": (-_SLACK, math.inf),
    "token_matches": (0, 1),
    "token_spans": (0, math.inf),
    "choice_num_tokens": (0, math.inf),
    "right_choice": (0, math.inf),
}


def check_records(records: Sequence[Record], where: str, first: int = 0) -> None:
    """Refuse records that no model can have made.

    Args:
        records: As they were read.
        where: Key and file, for messages.
        first: Number of the first of them, for messages.

    Raises:
        InputError: If a text stands for a number or the other way round, a number is not finite, a
            probability is above 1, or another number out of its range; if two fields tell of other
            numbers of tokens; names row and field.
    """
    for row, record in enumerate(records, first):
        for name in _TEXTS:
            value = getattr(record, name)
            if value is not None and not isinstance(value, str):
                raise _wrong(where, row, name, "a text", value)
        for name, (least, largest) in _RANGES.items():
            value = getattr(record, name)
            if value is None or value == ():
                continue
            if not _is_numbers(value) or isinstance(value, tuple | list) == (name in _SINGLE):
                meant = "a number" if name in _SINGLE else "numbers"
                raise _wrong(where, row, name, meant, value)
            import numpy as np

            numbers = np.asarray(value, dtype=np.float64)
            fits = np.isfinite(numbers) & (numbers >= least) & (numbers <= largest)
            if not fits.all():
                meant = "0 at most, as p is at most 1" if largest == _SLACK else "in its range"
                raise _wrong(where, row, name, meant, float(numbers[~fits][0]))
        counts = {name: len(getattr(record, name)) for name in _OF_TOKENS if getattr(record, name)}
        if len(set(counts.values())) > 1:
            meant = f"one of each of the {next(iter(counts.values()))} tokens that token_logps has"
            name = next(name for name, num in counts.items() if num != next(iter(counts.values())))
            raise _wrong(where, row, name, meant, f"{counts[name]} of them")


def _is_numbers(value: object) -> bool:
    """Tell whether this is a number or holds nothing but numbers."""
    if isinstance(value, tuple | list):
        return all(map(_is_numbers, value))
    return isinstance(value, int | float) and not isinstance(value, bool)


def _wrong(where: str, row: int, name: str, meant: str, value: object) -> InputError:
    return InputError(
        f"{where} row {row}: {name} must be {meant}; got {value!r:.60}. No model gives that; make "
        "the file anew."
    )
