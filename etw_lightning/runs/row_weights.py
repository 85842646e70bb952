"""``weights``: how weightings see one forget row of a run, token by token and side by side."""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Trainer

from etw_lightning.boards.shades import hex_shade, shares
from etw_lightning.data.encode import JOINT, is_raw
from etw_lightning.data.marks import mark_rows, number_words
from etw_lightning.metrics.tokens import Marks, token_auc
from etw_lightning.models.loading import LabelScorer, load_model
from etw_lightning.notices import visible
from etw_lightning.schema import IGNORE_INDEX, EncodedRow, Example, InputError
from etw_lightning.scoring.row_weights import token_names, token_texts, weigh
from etw_lightning.training import quickstart_models
from etw_lightning.training.datamodule import UnlearningDataModule
from etw_lightning.training.module import UnlearningModule
from etw_lightning.training.named_methods import weighting_named
from etw_lightning.training.other_models import OtherModels
from etw_lightning.training.references.model import check_tokens
from etw_lightning.weighting import TokenWeighting, Uniform

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

__all__ = ["RowWeights", "print_weights", "row_weights"]

#: Columns of a table that is not printed to a terminal.
_LOG_WIDTH = 120


@dataclass(frozen=True)
class RowWeights:
    """What weightings give the labelled tokens of one row.

    Args:
        row_id: The row.
        question: What the answer is said to; None for raw text.
        tokens: The tokens as they stand in the answer; one that is not in it by its name.
        entropies: Entropy of the model's prediction of each at temperature 1, nats.
        probabilities: Probability of each under the model.
        weights: Weight of each, by weighting.
        marks: Whether each lies in a marked stretch, None outside the answer; None where there
            are no annotations.
        shown: What each weighting is, with its numbers.
    """

    row_id: str
    question: str | None
    tokens: list[str]
    entropies: list[float]
    probabilities: list[float]
    weights: dict[str, list[float]]
    marks: Marks | None = None
    shown: dict[str, str] = field(default_factory=dict)

    def auc(self, values: Sequence[float]) -> float | None:
        """Return how well values find this row's marked tokens, as ``metrics.token_auc``.

        Returns:
            0 to 1; None where nothing is marked, or all is.
        """
        flags = {mark for mark in self.marks or () if mark is not None}
        if self.marks is None or len(flags) < 2:
            return None
        return token_auc([list(values)], [self.marks]).pooled

    def table(self) -> Table:
        """Return a line a token, and a last one of ROC-AUCs; weights are coloured."""
        from rich.box import SIMPLE_HEAD
        from rich.table import Table
        from rich.text import Text

        table = Table(box=SIMPLE_HEAD, show_footer=self.marks is not None)
        table.add_column("token", footer="AUC", overflow="fold")
        if self.marks is not None:
            table.add_column("marked", justify="center")
        columns = {"entropy": self.entropies, "probability": self.probabilities, **self.weights}
        for name, values in columns.items():
            footer = _auc(None if name == "probability" else self.auc(values))
            table.add_column(Text(name), justify="right", no_wrap=True, footer=footer)
        parts = {name: shares(values) for name, values in self.weights.items()}
        for place, token in enumerate(self.tokens):
            cells = [Text(visible(token))]
            if self.marks is not None:
                cells.append(Text("*" if self.marks[place] else ""))
            for name, values in columns.items():
                number = f"{values[place]:.4f}"
                style = f"black on {hex_shade(parts[name][place])}" if name in parts else ""
                cells.append(Text(number, style=style))
            table.add_row(*cells)
        return table

    def line(self, name: str) -> Text:
        """Return the answer with each token coloured by a weighting; marked ones underlined."""
        from rich.text import Text

        line = Text()
        for place, share in enumerate(shares(self.weights[name])):
            underline = " underline" if self.marks is not None and self.marks[place] else ""
            line.append(visible(self.tokens[place]), f"black on {hex_shade(share)}{underline}")
        return line


def _auc(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def row_weights(
    module: UnlearningModule,
    data: UnlearningDataModule,
    trainer: Trainer,
    row: int,
    names: Sequence[str] = (),
) -> RowWeights:
    """Return how weightings see one forget row, as the first step of a run would.

    Args:
        module: Names the model, which is loaded here.
        data: Loaded, with its forget stream.
        trainer: Whose device and precision the model is asked in.
        row: Number of the forget row, from 0.
        names: Weightings by the name of a method, or ``uniform``; none takes the method's own.

    Raises:
        InputError: If there is no such row or weighting, or a weighting reads what is not there.
    """
    chosen = _chosen(module, names)
    rows = data.streams["forget"]
    if not 0 <= row < len(rows):
        raise InputError(
            f"row must be from 0 to {len(rows) - 1}: data.forget_split has {len(rows)} rows; "
            f"got {row}."
        )
    examples = data.forget_examples()
    tokens, spans, question = _texts(data, examples, row)
    marks = _marks(data, examples, row, spans)
    given = {name: _given_marks(data, examples, rows, row, one) for name, one in chosen.items()}
    reads_words = any("words" in one.needs for one in chosen.values())
    words = number_words(examples, rows, data.train_encoder)[row] if reads_words else None
    module.configure_model()
    assert module.scorer is not None
    others = OtherModels(data, trainer, module.dtype_name, module.attention, data.seed or 0)
    scorer = others.place(module.scorer)
    reference = _reference(others, scorer, chosen.values())
    entropies_of = _entropies_of(module, data, others, chosen.values())
    found = {
        name: weigh(
            one,
            scorer.lm,
            rows[row],
            reference=reference,
            entropies_of=entropies_of,
            marks=given[name],
            words=words if "words" in one.needs else None,
            context=trainer.precision_plugin.forward_context(),
        )
        for name, one in chosen.items()
    }
    plain = weigh(
        Uniform(), scorer.lm, rows[row], context=trainer.precision_plugin.forward_context()
    )
    return RowWeights(
        rows[row].id,
        question,
        tokens,
        plain.entropies,
        plain.probabilities,
        {name: one.weights for name, one in found.items()},
        marks,
        {name: str(one) for name, one in chosen.items()},
    )


def _chosen(module: UnlearningModule, names: Sequence[str]) -> dict[str, TokenWeighting]:
    """Return the weightings asked for, by name."""
    if not names:
        own = module.method.weighting
        return {type(own).__name__: own}
    chosen = {}
    for name in names:
        try:
            chosen[name] = weighting_named(name)
        except InputError as error:
            raise InputError(str(error).replace("weighting", "weightings", 1)) from error
    return chosen


def _texts(
    data: UnlearningDataModule, examples: Sequence[Example], row: int
) -> tuple[list[str], list[tuple[int, int]], str | None]:
    """Return the labelled tokens of a row as text, where they lie, and what is asked."""
    labels, encoder = data.streams["forget"][row].labels, data.train_encoder
    if not is_raw(examples):
        example = examples[row]
        texts = token_texts(encoder, example, labels)
        return texts, encoder.answer_spans(example), example.question
    text = JOINT.join(example.answer for example in examples)
    spans = encoder.chunk_spans(examples)[row]
    pairs = zip(spans, token_names(encoder.tokenizer, labels), strict=True)
    return [text[left:right] or name for (left, right), name in pairs], spans, None


def _marks(
    data: UnlearningDataModule,
    examples: Sequence[Example],
    row: int,
    spans: Sequence[tuple[int, int]],
) -> Marks | None:
    """Return which labelled tokens are marked in the annotations; None without any."""
    if data.annotations is None:
        return None
    found = mark_rows(
        examples, data.streams["forget"], data.train_encoder, annotations=data.annotations
    )[row]
    labels = data.streams["forget"][row].labels
    flags = [mark for label, mark in zip(labels, found, strict=True) if label != IGNORE_INDEX]
    pairs = zip(flags, spans, strict=True)
    return tuple(flag if left < right else None for flag, (left, right) in pairs)


def _given_marks(
    data: UnlearningDataModule,
    examples: Sequence[Example],
    rows: Sequence[EncodedRow],
    row: int,
    weighting: TokenWeighting,
) -> Sequence[bool] | None:
    """Return the marks that a weighting reads of a row; None if it reads none."""
    if "marked" not in weighting.needs:
        return None
    marker = weighting.marker
    return mark_rows(examples, rows, data.train_encoder, marker, data.annotations)[row]


def _reference(others: OtherModels, scorer: LabelScorer, chosen: Collection[TokenWeighting]) -> Any:
    """Return the target model that weightings compare with: the one named, or the model itself."""
    compares = any(need.startswith("reference_") for one in chosen for need in one.needs)
    if compares and others.pretrained("target") is not None:
        return others.load("target").lm
    return scorer.lm


def _entropies_of(
    module: UnlearningModule,
    data: UnlearningDataModule,
    others: OtherModels,
    chosen: Collection[TokenWeighting],
) -> Any:
    """Return the model that ``model.entropy_model`` names; None without, or where none is read."""
    key = "model.entropy_model"
    if module.entropy_model is None or not any(
        "reference_entropies" in one.needs for one in chosen
    ):
        return None
    found = quickstart_models.resolve(module.entropy_model, others.seed, key)
    check_tokens(found, data.train_encoder.tokenizer)
    scorer = LabelScorer(load_model(found, module.dtype_name, module.attention, key)).eval()
    return others.place(scorer).lm


def print_weights(found: RowWeights, console: Console | None = None) -> None:
    """Print a row: in a terminal its coloured text for each weighting, then a table.

    Args:
        found: The row.
        console: Where to print; standard output by default, in colour on a terminal only.
    """
    from rich.console import Console
    from rich.text import Text

    console = console or Console(file=sys.stdout)
    if not console.is_terminal:
        console.width = max(console.width, _LOG_WIDTH)
    asked = "" if found.question is None else f": {visible(found.question)}"
    console.print(Text(f"{found.row_id}{asked}"))
    for name, shown in found.shown.items():
        console.print(Text(f"\n{name}: {shown}"))
        if console.is_terminal:
            console.print(found.line(name))
    console.print(found.table())
    console.print(Text(_legend(found)))


def _legend(found: RowWeights) -> str:
    entropy = "entropy in nats at temperature 1"
    if found.marks is None:
        return f"{entropy}; nothing is marked: data.annotations names the words that matter"
    if not any(found.marks):
        return f"{entropy}; no token of this row is marked"
    return f"{entropy}; * in a marked stretch; AUC: how well the column finds those (.5 by chance)"
