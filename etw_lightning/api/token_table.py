"""``weights``: how a weighting sees one text, token by token, as a coloured table."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from etw_lightning.api.arguments import in_own_words
from etw_lightning.api.loaded import restored, take_model, template_of
from etw_lightning.boards.shades import LARGEST, hex_shade, shares
from etw_lightning.data.encode import Encoder, Template
from etw_lightning.data.marks import number_words
from etw_lightning.notices import visible
from etw_lightning.schema import IGNORE_INDEX, EncodedRow, Example, InputError
from etw_lightning.scoring.row_weights import token_texts, weigh
from etw_lightning.training.named_methods import weighting_named
from etw_lightning.weighting import TokenWeighting

if TYPE_CHECKING:
    from pandas import DataFrame
    from rich.table import Table

__all__ = ["TokenWeights", "weights"]


@dataclass(frozen=True, repr=False)
class TokenWeights:
    """What a weighting gives the labelled tokens of one text.

    Args:
        tokens: The tokens as they stand in the text; one that is not in it by its name.
        weights: Weight of each, >= 0.
        entropies: Entropy of the model's prediction of each at the weighting's temperature, nats.
        probabilities: Probability of each under the model.
        weighting: What made them.
        first: The text's first token where it has none of these, as nothing stands before it that
            it could be predicted from; else empty.
    """

    tokens: list[str]
    weights: list[float]
    entropies: list[float]
    probabilities: list[float]
    weighting: str = ""
    first: str = ""

    def __len__(self) -> int:
        return len(self.tokens)

    def frame(self) -> DataFrame:
        """Return one row a token that has a weight."""
        from pandas import DataFrame

        columns = {"token": self.tokens, "weight": self.weights, "entropy": self.entropies}
        return DataFrame({**columns, "probability": self.probabilities})

    def _rows(self) -> Iterator[tuple[str, list[str], float]]:
        """Give each token as it can be shown, its numbers, and its share of the largest weight."""
        numbers = (self.weights, self.entropies, self.probabilities)
        for token, share, *values in zip(self.tokens, shares(self.weights), *numbers, strict=True):
            yield visible(token), [f"{one:.4f}" for one in values], share

    def _repr_html_(self) -> str:
        lines = []
        for token, numbers, share in self._rows():
            colour = f"rgba({','.join(map(str, LARGEST))},{share:.3f})"
            cells = "".join(f"<td>{number}</td>" for number in numbers)
            shown = f'<td style="background-color:{colour}"><code>{escape(token)}</code></td>'
            lines.append(f"<tr>{shown}{cells}</tr>")
        head = "<tr><th>token</th><th>weight</th><th>entropy</th><th>probability</th></tr>"
        caption = "<br>".join(escape(line) for line in (self.weighting, self._note()) if line)
        return f"<table><caption>{caption}</caption>{head}{''.join(lines)}</table>"

    def _note(self) -> str:
        if not self.first:
            return ""
        return f"{visible(self.first)!r} stands first: nothing predicts it, so it has no weight"

    def __rich__(self) -> Table:
        from rich.box import SIMPLE_HEAD
        from rich.table import Table
        from rich.text import Text

        note = Text(self._note())
        table = Table(box=SIMPLE_HEAD, title=Text(self.weighting), caption=note if note else None)
        table.add_column("token")
        for name in ("weight", "entropy", "probability"):
            table.add_column(name, justify="right")
        for token, numbers, share in self._rows():
            table.add_row(Text(token, style=f"black on {hex_shade(share)}"), *numbers)
        return table

    def __repr__(self) -> str:
        from rich.console import Console

        page = io.StringIO()
        is_seen = sys.stdout.isatty()
        console = Console(file=page, force_terminal=is_seen, width=None if is_seen else 100)
        console.print(self)
        return page.getvalue().rstrip("\n")


@in_own_words
def weights(
    model: Any,
    tokenizer: Any = None,
    text: str | Mapping[str, str] = "",
    weighting: str | TokenWeighting = "etw",
    *,
    reference: Any = None,
    template: Template | None = None,
    max_length: int = 2048,
) -> TokenWeights:
    """Return the weight that each token of a text would have as a forget row.

    A raw text's first token has none, unless the tokenizer puts a token before it: a model
    predicts a token from those before.

    Args:
        model: A loaded causal language model, which stays as it is; or a name or folder.
        tokenizer: Its tokenizer; None where ``model`` is a name.
        text: Raw text, or a row ``{"question": ..., "answer": ...}``, of which the answer is
            weighed.
        weighting: Name of a method (``etw``, ``wga``, ``satimp``, ...), ``uniform``, or a
            ``TokenWeighting``.
        reference: Target model, for weightings that compare with it; as ``model``.
        template: ``chat`` or ``plain``; None takes the tokenizer's chat template if it has one.
        max_length: Tokens that the text may have.

    Returns:
        Tokens, weights, entropies and probabilities; a coloured table in a notebook and in a
        terminal.

    Raises:
        InputError: Names the argument.
    """
    chosen = weighting_named(weighting)
    given = take_model(model, tokenizer)
    encoder = Encoder(given.tokenizer, template_of(given.tokenizer, template), max_length)
    example = _example(text)
    row = encoder.encode(example)
    if row.is_cut:
        raise InputError(f"text has more than max_length = {max_length} tokens; give more.")
    with restored(given.lm), ExitStack() as held:
        other = None
        if reference is not None and any(need.startswith("reference_") for need in chosen.needs):
            other = take_model(reference, given.tokenizer).lm
            held.enter_context(restored(other))
        words = None
        if "words" in chosen.needs:
            words = number_words([example], [row], encoder)[0]
        found = weigh(chosen, given.lm, row, reference=other, words=words)
    return TokenWeights(
        token_texts(encoder, example, row.labels),
        found.weights,
        found.entropies,
        found.probabilities,
        str(chosen),
        _unpredicted(encoder.tokenizer, row),
    )


def _unpredicted(tokenizer: Any, row: EncodedRow) -> str:
    """Return the first token of a row that is its text; empty if it was put there."""
    first = row.input_ids[0]
    is_text = row.labels[1] != IGNORE_INDEX and first not in tokenizer.all_special_ids
    return str(tokenizer.decode([first])) if is_text else ""


def _example(text: str | Mapping[str, str]) -> Example:
    """Return a text, or a row, as an example."""
    if isinstance(text, str) and text:
        return Example("text", text)
    if isinstance(text, Mapping) and text.get("question") and text.get("answer"):
        return Example("text", text["answer"], text["question"])
    raise InputError(
        f"text must be a text, or a row {{'question': ..., 'answer': ...}}; got {str(text)!r:.60}."
    )
