"""The layout of a step: which tokens are fed, and that nothing but that changes."""

import itertools
import random

import pytest
import torch
from torch import nn

from etw_lightning.data.encode import IGNORE_INDEX
from etw_lightning.models import label_scorer
from etw_lightning.models.label_scorer import LabelScorer
from etw_lightning.models.loading import load_model
from etw_lightning.models.step_layout import plan_layout, shared_beginning
from etw_lightning.schema import EncodedRow
from etw_lightning.training.training_batches import collate

#: Llama's norms are float32 in any model: what is summed before or behind one differs by as much.
ROUNDING = 1e-6
BEGINNING = (3, 1, 4, 1, 5, 9)


def make_row(number, prompt, answer, behind=0):
    """Return a row of a beginning that all share, a prompt, an answer and what has no label."""
    draw = random.Random(number)
    own = tuple(draw.randrange(300) for _ in range(prompt + answer + behind))
    labels = (IGNORE_INDEX,) * (len(BEGINNING) + prompt) + own[prompt : prompt + answer]
    return EncodedRow(str(number), BEGINNING + own, labels + (IGNORE_INDEX,) * behind)


ROWS = [
    make_row(n, prompt, answer, behind)
    for n, (prompt, answer, behind) in enumerate(
        [(9, 12, 0), (2, 3, 1), (5, 1, 0), (20, 9, 3), (1, 7, 0), (3, 18, 0), (8, 8, 0)]
    )
]


@pytest.fixture(scope="module")
def lm(tiny_model_dir):
    return load_model(str(tiny_model_dir)).double()


def run(lm, rows, shared, *, is_laid_out, needs=("entropies",)):
    """Return signals and the gradient of a loss that weighs every label otherwise."""
    batch = collate({"all": rows}, {}, 1.0, 0, shared)
    lm.zero_grad()
    scorer = LabelScorer(lm, chunk_size=5).train()
    layout = batch["layout"] if is_laid_out else None
    tensors = (batch["input_ids"], batch["attention_mask"], batch["labels"])
    signals = scorer(*tensors, set(needs), 1.0, (), layout)
    weights = torch.linspace(-1, 2, len(signals.logps), dtype=signals.logps.dtype)
    (weights * signals.logps).sum().backward()
    return signals, {name: weight.grad.clone() for name, weight in lm.named_parameters()}


@pytest.mark.parametrize("rows", [ROWS, ROWS[:1], ROWS[:2], [*ROWS, ROWS[0]]])
@pytest.mark.parametrize("shared", [0, 4, 6])
def test_values_and_gradients_are_those_of_the_padded_rows(lm, rows, shared):
    plain, gradient = run(lm, rows, shared, is_laid_out=False)
    laid_out, found = run(lm, rows, shared, is_laid_out=True)
    assert torch.equal(laid_out.labels, plain.labels)
    assert torch.equal(laid_out.rows, plain.rows)
    torch.testing.assert_close(laid_out.logps, plain.logps, rtol=0, atol=1e-12)
    torch.testing.assert_close(laid_out.entropies, plain.entropies, rtol=0, atol=1e-12)
    for name, right in gradient.items():
        torch.testing.assert_close(found[name], right, rtol=0, atol=ROUNDING * right.abs().max())


def test_a_row_without_labels_is_no_matter(lm):
    filler = EncodedRow("filler", ROWS[0].input_ids[:8], (IGNORE_INDEX,) * 8)
    _, gradient = run(lm, ROWS, 6, is_laid_out=True)
    _, found = run(lm, [*ROWS, filler], 6, is_laid_out=True)
    for name, right in gradient.items():
        torch.testing.assert_close(found[name], right, rtol=0, atol=ROUNDING * right.abs().max())


def fed(lm, rows, shared):
    """Return the shapes that are fed to a model's layers."""
    shapes = []
    handle = lm.model.layers[0].register_forward_hook(
        lambda _module, args, _out: shapes.append(tuple(args[0].shape[:2]))
    )
    run(lm, rows, shared, is_laid_out=True)
    handle.remove()
    return shapes


def test_the_beginning_is_fed_once_and_nothing_behind_the_last_label(lm):
    scorer_probes = 3
    shapes = fed(lm, ROWS, 6)[scorer_probes:]
    layout = plan_layout(ROWS, 6)
    assert shapes[0] == (1, 6)
    assert shapes[1:] == [(len(part.rows), part.width - 6) for part in layout.parts]
    assert sum(rows * width for rows, width in shapes) == layout.num_positions
    last_labels = [max(n for n, label in enumerate(row.labels) if label >= 0) for row in ROWS]
    assert max(part.width for part in layout.parts) == max(last_labels)


@pytest.mark.parametrize("sizes", [(1,), (4, 4), (9, 3, 5, 5, 2), (7, 1, 1, 30, 31, 8, 9, 10, 2)])
def test_the_cuts_cost_least(sizes):
    rows = [make_row(n, 2, size) for n, size in enumerate(sizes)]
    layout = plan_layout(rows, 6)
    widths = sorted(size + 1 for size in sizes)
    count = len(layout.parts)
    costs = [
        sum((b - a) * widths[b - 1] for a, b in itertools.pairwise((0, *inner, len(sizes))))
        for inner in itertools.combinations(range(1, len(sizes)), count - 1)
    ]
    assert layout.num_positions == 6 + min(costs)
    assert sorted(place for part in layout.parts for place in part.rows) == list(range(len(sizes)))


def test_the_number_of_parts_follows_from_that_of_the_rows():
    short = [make_row(n, 1, 1) for n in range(6)]
    long = [make_row(n, 1, 5 * n + 1) for n in range(6)]
    assert len(plan_layout(short, 6).parts) == len(plan_layout(long, 0).parts)


@pytest.mark.parametrize(
    ("rows", "shared"),
    [
        (ROWS, 6),
        (ROWS[:1], 14),
        ([*ROWS, EncodedRow("", (3, 1, 4, 1, 8, 9, 9), (-100,) * 6 + (9,))], 4),
        ([*ROWS, EncodedRow("", (3, 1, 4, 8, 5, 9, 9), (-100,) * 6 + (9,))], 0),
        ([*ROWS, EncodedRow("", BEGINNING, (-100,) * 5 + (9,))], 4),
        ([*ROWS, EncodedRow("", BEGINNING, BEGINNING)], 0),
        ([], 0),
    ],
)
def test_what_all_rows_begin_with(rows, shared):
    assert shared_beginning(rows) == shared


def test_a_model_that_drops_or_forgets_keys_shares_nothing(lm, monkeypatch):
    assert LabelScorer(lm).shares_beginnings
    lm.gradient_checkpointing_enable()
    assert not LabelScorer(lm).shares_beginnings
    lm.gradient_checkpointing_disable()
    monkeypatch.setattr(lm.config, "attention_dropout", 0.1)
    assert not LabelScorer(lm).shares_beginnings
    quiet = LabelScorer(lm)
    quiet.is_quiet = True
    assert quiet.shares_beginnings
    monkeypatch.undo()
    scorer = LabelScorer(lm)
    scorer.lm.add_module("dropped", nn.Dropout(0.1))
    assert not scorer.shares_beginnings
    del scorer.lm.dropped


def test_a_model_that_continues_otherwise_shares_nothing(lm, monkeypatch):
    def shifted(beginning, num_rows):
        past = behind(beginning, num_rows)
        past["past_key_values"].layers[0].keys = past["past_key_values"].layers[0].keys.flip(-2)
        return past

    behind = label_scorer._behind
    monkeypatch.setattr(label_scorer, "_behind", shifted)
    assert not LabelScorer(lm).shares_beginnings


@pytest.mark.parametrize("enable", [True, False])
def test_gradient_checkpointing_changes_nothing(lm, enable):
    _, gradient = run(lm, ROWS, 6, is_laid_out=False)
    if enable:
        lm.gradient_checkpointing_enable()
    lm.train()
    _, found = run(lm, ROWS, 6, is_laid_out=True)
    lm.gradient_checkpointing_disable()
    for name, right in gradient.items():
        torch.testing.assert_close(found[name], right, rtol=0, atol=ROUNDING * right.abs().max())
