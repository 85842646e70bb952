"""``weights``: how a weighting sees one text, token by token, as a coloured table."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from html import escape
from typing import TYPE_CHECKING, Any

import torch

from etw_lightning.api.loaded import restored, take_model, template_of
from etw_lightning.training.named_methods import weighting_named
from etw_lightning.data.encode import Encoder, Template
from etw_lightning.models.loading import LabelScorer
from etw_lightning.schema import IGNORE_INDEX, Example, InputError
from etw_lightning.weighting import TokenWeighting

if TYPE_CHECKING:
    from pandas import DataFrame
    from rich.table import Table

__all__ = ["TokenWeights", "weights"]

#: Signals of the target model that are numbers a token.
_OF_REFERENCE = ("reference_logps", "reference_entropies")
#: The colour of the largest weight; white is none.
_RED, _GREEN, _BLUE = 230, 90, 60


@dataclass(frozen=True, repr=False)
class TokenWeights:
    """What a weighting gives the labelled tokens of one text.

    Args:
        tokens: The tokens as they stand in the text; one that is not in it by its name.
        weights: Weight of each, >= 0.
        entropies: Entropy of the model's prediction of each at the weighting's temperature, nats.
        probabilities: Probability of each under the model.
        weighting: What made them.
    """

    tokens: list[str]
    weights: list[float]
    entropies: list[float]
    probabilities: list[float]
    weighting: str = ""

    def __len__(self) -> int:
        return len(self.tokens)

    def frame(self) -> DataFrame:
        """Return one row a token."""
        from pandas import DataFrame

        columns = {"token": self.tokens, "weight": self.weights, "entropy": self.entropies}
        return DataFrame({**columns, "probability": self.probabilities})

    def _rows(self) -> Iterator[tuple[str, list[str], float]]:
        """Give each token as it can be shown, its numbers, and its share of the largest weight."""
        largest = max(self.weights, default=0.0) or 1.0
        for place, token in enumerate(self.tokens):
            numbers = (self.weights[place], self.entropies[place], self.probabilities[place])
            yield _visible(token), [f"{one:.4f}" for one in numbers], numbers[0] / largest

    def _repr_html_(self) -> str:
        lines = []
        for token, numbers, share in self._rows():
            colour = f"rgba({_RED},{_GREEN},{_BLUE},{share:.3f})"
            cells = "".join(f"<td>{number}</td>" for number in numbers)
            shown = f'<td style="background-color:{colour}"><code>{escape(token)}</code></td>'
            lines.append(f"<tr>{shown}{cells}</tr>")
        head = "<tr><th>token</th><th>weight</th><th>entropy</th><th>probability</th></tr>"
        return f"<table><caption>{escape(self.weighting)}</caption>{head}{''.join(lines)}</table>"

    def __rich__(self) -> Table:
        from rich.box import SIMPLE_HEAD
        from rich.table import Table
        from rich.text import Text

        table = Table(box=SIMPLE_HEAD, title=Text(self.weighting))
        table.add_column("token")
        for name in ("weight", "entropy", "probability"):
            table.add_column(name, justify="right")
        for token, numbers, share in self._rows():
            parts = (255 - share * (255 - part) for part in (_RED, _GREEN, _BLUE))
            colour = "#" + "".join(f"{round(part):02x}" for part in parts)
            table.add_row(Text(token, style=f"black on {colour}"), *numbers)
        return table

    def __repr__(self) -> str:
        from rich.console import Console

        page = io.StringIO()
        is_seen = sys.stdout.isatty()
        console = Console(file=page, force_terminal=is_seen, width=None if is_seen else 100)
        console.print(self)
        return page.getvalue().rstrip("\n")


def _visible(token: str) -> str:
    r"""Return a token with what can't be seen, or would steer a terminal, as it is written.

    Example:
        >>> _visible(" town\n\x1b[31m")
        ' town\\n\\x1b[31m'
    """
    return "".join(
        sign if sign.isprintable() else sign.encode("unicode_escape").decode("ascii")
        for sign in token
    )


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
    needs = chosen.needs | {"entropies"}
    compared = {name.removeprefix("reference_") for name in _OF_REFERENCE if name in needs}
    lacking = sorted(needs - {"entropies", "distributions", *(_OF_REFERENCE if reference else ())})
    if lacking:
        way = "give reference" if set(lacking) <= set(_OF_REFERENCE) else "choose another weighting"
        raise InputError(
            f"weighting {type(chosen).__name__} reads {', '.join(lacking)}, which the model alone "
            f"does not say of a text; {way}."
        )
    ids = torch.tensor([row.input_ids])
    batch = (ids, torch.ones_like(ids), torch.tensor([row.labels]))
    temperature = chosen.entropy_temperature or 1.0
    with restored(given.lm), torch.no_grad():
        signals = _said(given.lm, batch, needs, temperature)
        if compared:
            other = take_model(reference, given.tokenizer)
            with restored(other.lm):
                target = _said(other.lm, batch, compared, temperature)
            place = signals.logps.device
            held = {f"reference_{name}": getattr(target, name).to(place) for name in compared}
            signals = replace(signals, **held)
        found = chosen(signals)
    assert signals.entropies is not None
    return TokenWeights(
        _tokens(encoder, example, row.labels),
        found.tolist(),
        signals.entropies.tolist(),
        signals.logps.exp().tolist(),
        str(chosen),
    )


def _said(lm: Any, batch: tuple[Any, ...], needs: Any, temperature: float) -> Any:
    device = next(lm.parameters()).device
    scorer = LabelScorer(lm).eval()
    scorer.check_head("model")
    names = [need for need in needs if not need.startswith("reference_")]
    return scorer(*(part.to(device) for part in batch), names, temperature)


def _example(text: str | Mapping[str, str]) -> Example:
    """Return a text, or a row, as an example."""
    if isinstance(text, str) and text:
        return Example("text", text)
    if isinstance(text, Mapping) and text.get("question") and text.get("answer"):
        return Example("text", text["answer"], text["question"])
    raise InputError(
        f"text must be a text, or a row {{'question': ..., 'answer': ...}}; got {str(text)!r:.60}."
    )


def _tokens(encoder: Encoder, example: Example, labels: tuple[int, ...]) -> list[str]:
    """Return the labelled tokens as they stand in the answer; others by their names."""
    tokenizer = encoder.tokenizer
    ids = [label for label in labels if label != IGNORE_INDEX]
    names = tokenizer.convert_ids_to_tokens(ids)
    spans = encoder.answer_spans(example)
    pairs = zip(spans, names, strict=True)
    return [example.answer[left:right] or str(name) for (left, right), name in pairs]
