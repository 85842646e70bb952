"""The target model run once over the training rows, and what it says of their labelled tokens."""

from __future__ import annotations

import functools
import gc
import itertools
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from etw_lightning.data.stored_rows import sizes
from etw_lightning.kernels.distributions import Distributions
from etw_lightning.kernels.signals import Signal
from etw_lightning.models.loading import (
    DType,
    LabelScorer,
    check_vocabulary,
    load_config,
    load_model,
    load_tokenizer,
)
from etw_lightning.schema import IGNORE_INDEX, EncodedRow, InputError
from etw_lightning.scoring.batches import pad_rows
from etw_lightning.scoring.cache.keys import model_identity, precision_name

__all__ = ["ReferenceModel", "ReferenceValues", "Wanted", "check_tokens", "compute_values"]

#: Signals of the target model that a file can hold: numbers, and all.
_FLAT: frozenset[Signal] = frozenset({"reference_logps", "reference_entropies"})
_STORABLE: frozenset[Signal] = _FLAT | {"reference_distributions"}


@dataclass(frozen=True)
class Wanted:
    """What is to be known of some rows.

    Args:
        signals: Any of ``reference_logps``, ``reference_entropies``, ``reference_distributions``.
        temperature: Of the entropies, > 0.
        top_k: Largest log-probabilities kept of each distribution, >= 1; the label's is always
            among them.

    Raises:
        InputError: If a file can't hold one of the signals, or a number is out of range.
    """

    signals: frozenset[Signal]
    temperature: float = 1.0
    top_k: int = 128

    def __post_init__(self) -> None:
        others = sorted(self.signals - _STORABLE)
        if others:
            raise InputError(
                f"model.reference must be live or adapter for {', '.join(others)}; got 'cache'."
            )
        if not self.top_k >= 1:
            raise InputError(f"model.reference_top_k must be >= 1; got {self.top_k}.")
        if not self.temperature > 0:
            raise InputError(f"model.weighting.temperature must be > 0; got {self.temperature}.")

    def key_fields(self) -> dict[str, Any]:
        """Return what of this decides the numbers; a number that nothing reads does not."""
        return {
            "signals": sorted(self.signals),
            "temperature": self.temperature if "reference_entropies" in self.signals else None,
            "top_k": self.top_k if "reference_distributions" in self.signals else None,
        }


@dataclass
class ReferenceModel:
    """The target model: loaded when a value is missing, let go at the end of its context.

    Args:
        pretrained: Hub name, folder, GGUF file or checkpoint.
        dtype: Precision of the weights.
        precision: The trainer's precision, for the key.
        attention: As of ``load_model``.
        chunk_size: Positions at a time in the output head.
        template: The encoder's ``content_key``; only said in errors, the rows tell it anyway.
        context: Makes the autocast that belongs to the precision.
        place: Moves the model to the run's device and precision.
        load: Gives a model that is in memory already, in evaluation mode and placed; None loads
            ``pretrained``.
        identify: Gives what tells the model from others; None hashes what ``pretrained`` names.
        shows_progress: Draw a bar while it runs.
        key: Configuration key that errors name.

    Example:
        >>> from dataclasses import replace
        >>> model = ReferenceModel("owner/name", dtype="bfloat16", precision="bf16-true")
        >>> replace(model, attention="eager").computed_in
        'bfloat16 bf16-true eager'
    """

    pretrained: str
    dtype: DType = "float32"
    precision: str = "32-true"
    attention: str | None = None
    chunk_size: int = 256
    template: str = ""
    context: Callable[[], AbstractContextManager[Any]] = nullcontext
    place: Callable[[LabelScorer], LabelScorer] = lambda scorer: scorer
    load: Callable[[], LabelScorer] | None = None
    identify: Callable[[], str] | None = None
    shows_progress: bool = True
    key: str = "model.pretrained"
    _scorer: LabelScorer | None = field(default=None, init=False, repr=False)

    def __enter__(self) -> ReferenceModel:
        return self

    def __exit__(self, *_: object) -> None:
        if self._scorer is None:
            return
        self._scorer = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    @functools.cached_property
    def identity(self) -> str:
        """The model's ``model_identity``, or that of a model in memory."""
        if self.identify is not None:
            return self.identify()
        return model_identity(self.pretrained, self.key)

    @property
    def computed_in(self) -> str:
        """The ``precision_name`` of its values."""
        return precision_name(self.dtype, self.precision, self.attention)

    @property
    def scorer(self) -> LabelScorer:
        """The model itself; loaded at the first use."""
        if self._scorer is None:
            self._scorer = self._load() if self.load is None else self.load()
        return self._scorer

    def _load(self) -> LabelScorer:
        lm = load_model(self.pretrained, self.dtype, self.attention, self.key)
        scorer = LabelScorer(lm, self.chunk_size)
        scorer.check_head(self.key)
        return self.place(scorer.requires_grad_(False).eval())


@dataclass(frozen=True)
class ReferenceValues:
    """Values of a list of rows.

    Args:
        offsets: Where the labelled tokens of each row begin, and where those of the last one end,
            ``(rows + 1,)``.
        values: Of all labelled tokens, row by row: any of ``reference_logps`` and
            ``reference_entropies``, nats, ``(N,)``, and together ``top_ids``, int32, and
            ``top_logps``, nats, ``(N, K)``.

    Example:
        >>> values = {"reference_logps": torch.tensor([-1.0, -2.0, -3.0])}
        >>> ReferenceValues(torch.tensor([0, 2, 3]), values).batch([1, -1, 0])
        {'reference_logps': tensor([-3., -1., -2.])}
    """

    offsets: Tensor
    values: Mapping[str, Tensor]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def batch(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """Return the values of some rows, one after the other.

        Args:
            rows: Their indices; -1 for one without tokens.
        """
        places = _places(self.offsets, [row for row in rows if row >= 0])
        found = {name: value[places] for name, value in self.values.items()}
        if "top_ids" in found:
            # What picks from distributions must be int64; in the file and in memory half will do.
            found["top_ids"] = found["top_ids"].long()
        return found


def check_tokens(pretrained: str, tokenizer: Any, key: str = "model.entropy_model") -> None:
    """Refuse a model whose tokens are not the run's.

    Args:
        pretrained: The model.
        tokenizer: Of the run.
        key: Configuration key that errors name.

    Raises:
        InputError: If its tokenizer has another vocabulary, or it has not a row for each token.
    """
    own = load_tokenizer(pretrained, key)
    if own.get_vocab() != tokenizer.get_vocab():
        raise InputError(
            f"{key} {pretrained!r} has another vocabulary than the run's model, so that its "
            "entropies are of other tokens; name a model with the same, such as the one that the "
            "target model was made of."
        )
    check_vocabulary(own, load_config(pretrained, key), pretrained, key)


def compute_values(
    rows: Sequence[EncodedRow], wanted: Wanted, model: ReferenceModel, group: str, batch_size: int
) -> ReferenceValues:
    """Run the model over all rows, longest first."""
    from rich.progress import track

    lengths = sizes(rows).num_tokens.tolist()
    # As the model counts: nothing predicts the first token of a row.
    counts = [sum(label != IGNORE_INDEX for label in row.labels[1:]) for row in rows]
    offsets = torch.tensor([0, *itertools.accumulate(counts)])
    order = sorted(filter(counts.__getitem__, range(len(rows))), key=lambda n: -lengths[n])
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    values = {} if order else _nothing(wanted)
    words = f"Reference model, {group} answers"
    for batch in track(batches, words, disable=not model.shows_progress, transient=True):
        with torch.inference_mode(), model.context():
            found = _values_of([rows[number] for number in batch], wanted, model.scorer)
        places = _places(offsets, batch)
        for name, value in found.items():
            is_bad = ~value.isfinite().reshape(len(value), -1).all(1).cpu()
            if is_bad.any():
                place = places[is_bad][0]
                number = int(torch.searchsorted(offsets, place, right=True)) - 1
                raise InputError(
                    f"{model.key} {model.pretrained!r}: row {rows[number].id} of {group} has "
                    f"{name} that are not finite numbers: the model is broken or its precision "
                    f"({model.computed_in}) too low."
                )
            if name not in values:
                values[name] = value.new_empty(int(offsets[-1]), *value.shape[1:], device="cpu")
            values[name][places] = value.cpu()
    return ReferenceValues(offsets, values)


def _nothing(wanted: Wanted) -> dict[str, Tensor]:
    """Return the values of no tokens, for which no model is needed."""
    found: dict[str, Tensor] = {name: torch.empty(0) for name in wanted.signals & _FLAT}
    if "reference_distributions" in wanted.signals:
        found |= {"top_ids": torch.empty(0, 1).int(), "top_logps": torch.empty(0, 1)}
    return found


def _values_of(
    rows: Sequence[EncodedRow], wanted: Wanted, scorer: LabelScorer
) -> dict[str, Tensor]:
    """Return the values of one batch, flat over its labelled tokens."""
    device = next(scorer.parameters()).device
    ids, mask = pad_rows([row.input_ids for row in rows], 0)
    labels, _ = pad_rows([row.labels for row in rows], IGNORE_INDEX)
    needs = {name.removeprefix("reference_") for name in wanted.signals}
    batch = (ids.to(device), mask.to(device), labels.to(device))
    signals = scorer(*batch, needs, wanted.temperature)
    found = {}
    if "logps" in needs:
        found["reference_logps"] = signals.logps
    if "entropies" in needs:
        found["reference_entropies"] = signals.entropies
    if "distributions" in needs:
        found |= _top(signals.distributions, signals.labels, wanted.top_k, scorer.chunk_size)
    return found


def _top(
    distributions: Distributions, labels: Tensor, top_k: int, chunk_size: int
) -> dict[str, Tensor]:
    """Return the tokens of the largest log-probabilities, the label among them, and these.

    The rest is the log of what all other tokens have together; left out where there are none.
    """
    tokens, logps, rests = [], [], []
    for start in range(0, len(labels), chunk_size):
        part = slice(start, start + chunk_size)
        every, label = distributions[part].log_probs(), labels[part]
        ids = every.topk(min(top_k, every.shape[-1])).indices
        is_held = (ids == label[:, None]).any(-1)
        ids[:, -1] = torch.where(is_held, ids[:, -1], label)
        tokens.append(ids.int())
        logps.append(every.gather(-1, ids))
        if ids.shape[-1] < every.shape[-1]:
            rests.append(every.scatter(-1, ids, -torch.inf).logsumexp(-1))
    found = {"top_ids": torch.cat(tokens), "top_logps": torch.cat(logps)}
    return found | ({"top_rest": torch.cat(rests)} if rests else {})


def _places(offsets: Tensor, rows: Sequence[int]) -> Tensor:
    """Return where the tokens of some rows stand, row after row."""
    spans = [torch.arange(int(offsets[row]), int(offsets[row + 1])) for row in rows]
    return torch.cat(spans) if spans else torch.empty(0, dtype=torch.long)
