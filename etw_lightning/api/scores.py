"""``evaluate``: a model's numbers on rows, from Python; and how numbers show themselves."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any, cast

from etw_lightning.api.arguments import check_keywords, in_own_words, said_in_words_of
from etw_lightning.api.loaded import (
    interruptible,
    make_trainer,
    quietly,
    restored,
    take_model,
    template_of,
)
from etw_lightning.benchmarks.given_rows import Rows
from etw_lightning.benchmarks.own import OwnBenchmark
from etw_lightning.callbacks.evaluation import Suite
from etw_lightning.catalogue.own import OwnMetric
from etw_lightning.data.encode import Template
from etw_lightning.metrics import Metric
from etw_lightning.schema import InputError, Record
from etw_lightning.training.datamodule import UnlearningDataModule
from etw_lightning.training.module import UnlearningModule

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["Scores", "evaluate", "metrics_frame", "metrics_html", "metrics_text"]

_ARROWS = {"up": "↑", "down": "↓", "zero": "→ 0", "retain": "→ retain", "none": ""}


class Scores(dict[str, Metric]):
    """Numbers by name; shows itself as a table in a notebook.

    Args:
        found: The numbers.
        records: What the model said, row by row, of each set.
        left_out: Metrics that could not be had, each with the reason.
    """

    def __init__(
        self,
        found: Mapping[str, Metric],
        records: Mapping[str, Sequence[Record]] | None = None,
        left_out: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(found)
        self.records = dict(records or {})
        self.left_out = dict(left_out or {})

    def frame(self) -> DataFrame:
        """Return one row a number: value, direction, n, and the interval's ends.

        ``low`` and ``high`` are the ends of a confidence interval of 95 %; NaN for a number of
        which none is computed, as of most.
        """
        return metrics_frame(self)

    def __repr__(self) -> str:
        lines = [metrics_text({"value": self})]
        if self.left_out:
            line = f"left out (.left_out says why): {', '.join(self.left_out)}"
            lines.append(textwrap.fill(line, 88, subsequent_indent="  "))
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return metrics_html({"value": self})


def metrics_frame(found: Mapping[str, Metric]) -> DataFrame:
    """Return one row a number, by name: value, direction, n, low and high of the interval."""
    from pandas import DataFrame

    rows = {
        name: (m.value, m.direction, m.n, *(m.interval or (None, None)))
        for name, m in found.items()
    }
    columns = ["value", "direction", "n", "low", "high"]
    frame = DataFrame.from_dict(rows, orient="index", columns=columns)
    return cast("DataFrame", frame.rename_axis("metric").astype({"low": float, "high": float}))


def metrics_text(models: Mapping[str, Mapping[str, Metric]]) -> str:
    """Return a plain table with a column for each model, and the intervals that there are.

    Example:
        >>> print(metrics_text({"value": {"forget_probability": Metric(0.25, "down", 4)}}))
        metric                value  n
        forget_probability ↓  0.25   4
    """
    names = list(dict.fromkeys(name for found in models.values() for name in found))
    rows = [["metric", *models, "n", "interval of 95 %"]]
    for name in names:
        there = [found[name] for found in models.values() if name in found]
        cells = [f"{found[name].value:.4g}" if name in found else "-" for found in models.values()]
        between = there[-1].interval
        shown = "" if between is None else f"{between[0]:.4g} to {between[1]:.4g}"
        label = f"{name} {_ARROWS[there[0].direction]}".rstrip()
        rows.append([label, *cells, str(there[0].n), shown])
    if not any(row[-1] for row in rows[1:]):
        rows = [row[:-1] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def metrics_html(models: Mapping[str, Mapping[str, Metric]]) -> str:
    """Return a table with a column for each model; names are text, never markup."""
    names = list(dict.fromkeys(name for found in models.values() for name in found))
    head = "".join(f"<th>{escape(label)}</th>" for label in models)
    lines = []
    for name in names:
        first = next(found[name] for found in models.values() if name in found)
        cells = "".join(
            f"<td>{found[name].value:.4g}</td>" if name in found else "<td>-</td>"
            for found in models.values()
        )
        label = escape(f"{name} {_ARROWS[first.direction]}".rstrip())
        lines.append(f"<tr><td>{label}</td>{cells}<td>{first.n}</td></tr>")
    return f"<table><tr><th>metric</th>{head}<th>n</th></tr>{''.join(lines)}</table>"


@in_own_words
def evaluate(
    model: Any,
    tokenizer: Any = None,
    forget: Rows | None = None,
    retain: Rows | None = None,
    *,
    holdout: Rows | None = None,
    metrics: str | Sequence[str | type[OwnMetric]] | None = None,
    benchmark: str | OwnBenchmark | None = None,
    batch_size: int = 32,
    max_new_tokens: int = 40,
    template: Template | None = None,
    precision: Any = "32-true",
    progress: bool = True,
    **data: Any,
) -> Scores:
    """Score a model on rows of one's own, or on a benchmark.

    Args:
        model: A loaded causal language model, which stays as it is; or a name or folder.
        tokenizer: Its tokenizer; None where ``model`` is a name.
        forget: What is to be forgotten: a list of texts or of rows (``question`` and ``answer``,
            or ``text``), a ``datasets.Dataset``, or the path of a file.
        retain: What is to stay; the same.
        holdout: Rows like the forget set's that no model was trained on, for membership; the same.
        metrics: Names of the catalogue (``etw explain NAME``), or classes of one's own; None for
            all that can be had.
        benchmark: ``tofu``, ``quickstart``, ... or one's own in place of rows; ``data`` says where
            it is.
        batch_size: Rows that are scored together.
        max_new_tokens: Greedy tokens after each question.
        template: ``chat`` or ``plain``; None takes the tokenizer's chat template if it has one.
        precision: As of ``lightning.Trainer``.
        progress: Draw bars.
        data: Further arguments of ``UnlearningDataModule``, such as ``retain_model``.

    Returns:
        The numbers by name, with the records they were computed from.

    Raises:
        InputError: Names the argument.
        TypeError: If there is no argument of a name.
    """
    check_keywords(evaluate, data, "data")
    has_rows = any(rows is not None for rows in (forget, retain, holdout))
    if has_rows == (benchmark is not None):
        raise InputError("evaluate must be given rows (forget, retain), or else a benchmark.")
    given = take_model(model, tokenizer)
    settings = {
        "eval_batch_size": batch_size,
        "max_new_tokens": max_new_tokens,
        "template": template_of(given.tokenizer, template),
        **data,
    }
    if benchmark is not None:
        rows = UnlearningDataModule(benchmark, **settings)
        rows.given_tokenizer = given.tokenizer
    else:
        settings["holdout"] = holdout
        rows = UnlearningDataModule.from_rows(forget, retain, given.tokenizer, **settings)
    module = UnlearningModule.from_model(given.lm, given.tokenizer)
    module.trains = False
    suite = Suite(cast(Any, metrics))
    with quietly(), interruptible(), restored(given.lm):
        trainer = make_trainer(given.lm, [suite], progress=progress, precision=precision)
        trainer.validate(module, datamodule=rows, verbose=False)
        left_out = {
            name: said_in_words_of(evaluate, reason) for name, reason in suite.left_out.items()
        }
        return Scores(suite.latest, module.gather_records(), left_out)
