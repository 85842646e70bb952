"""The layout of a step: which tokens are fed, and that nothing but that changes."""

import itertools
import random

import pytest
import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from etw_lightning.data.encode import IGNORE_INDEX
from etw_lightning.models import packed_attention
from etw_lightning.models.label_scorer import LabelScorer
from etw_lightning.models.loading import load_model
from etw_lightning.models.step_layout import PART_COST, num_distinct, pack, plan_layout
from etw_lightning.schema import EncodedRow
from etw_lightning.training.training_batches import collate
from etw_lightning.tuning.trainable import recompute_activations

#: Llama's norms are float32 in any model: what is summed before or behind one differs by as much.
ROUNDING = 1e-6
BEGINNING = (3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8, 4)


def make_row(number, prompt, answer, behind=0, question=()):
    """Return a row of a beginning that all share, a prompt, an answer and what has no label."""
    draw = random.Random(number)
    own = tuple(draw.randrange(300) for _ in range(prompt + answer + behind))
    labels = (IGNORE_INDEX,) * (len(BEGINNING) + len(question) + prompt)
    labels += own[prompt : prompt + answer] + (IGNORE_INDEX,) * behind
    return EncodedRow(str(number), BEGINNING + question + own, labels)


QUESTION = tuple(range(100, 130))
ROWS = [
    make_row(n, prompt, answer, behind)
    for n, (prompt, answer, behind) in enumerate(
        [(9, 12, 0), (2, 3, 1), (5, 1, 0), (20, 9, 3), (1, 7, 0), (3, 18, 0), (8, 8, 0)]
    )
]
#: Three answers to one question, the first one twice, and a question without an answer.
ANSWERS = [make_row(n, 0, size, 0, QUESTION) for n, size in ((11, 5), (12, 9), (11, 5), (13, 0))]
TEXTS = [
    EncodedRow("a", (5, 6, 7, 8), (5, 6, 7, 8)),
    EncodedRow("b", (5, 6, 7), (IGNORE_INDEX, 6, 7)),
    EncodedRow("c", (9,), (9,)),
]


@pytest.fixture(scope="module")
def lm(tiny_model_dir):
    return load_model(str(tiny_model_dir)).double()


def run(lm, rows, *, how="packed", needs=("entropies",), part_cost=None):
    """Return signals and the gradient of a loss that weighs every label otherwise."""
    batch = collate({"all": rows}, {}, 1.0, 0)
    lm.zero_grad()
    scorer = LabelScorer(lm, chunk_size=5).train()
    layout = plan_layout(rows, batch["labels"], part_cost)
    layout = {
        "plain": None,
        "whole": layout._replace(packed=None, widths=()),
        "by length": layout._replace(packed=None),
        "packed": layout,
    }[how]
    tensors = (batch["input_ids"], batch["attention_mask"], batch["labels"])
    signals = scorer(*tensors, set(needs), 1.0, (), layout)
    weights = torch.linspace(-1, 2, len(signals.logps), dtype=signals.logps.dtype)
    (weights * signals.logps).sum().backward()
    return signals, {name: weight.grad.clone() for name, weight in lm.named_parameters()}


def assert_same_gradient(found, gradient):
    for name, right in gradient.items():
        torch.testing.assert_close(found[name], right, rtol=0, atol=ROUNDING * right.abs().max())


@pytest.mark.parametrize(
    "rows",
    [ROWS, ROWS[:1], [*ROWS, ROWS[0]], [*ROWS, *ANSWERS], ANSWERS, TEXTS, [*TEXTS, *ROWS]],
    ids=["rows", "one", "twice", "answers too", "answers", "texts", "texts too"],
)
@pytest.mark.parametrize("how", ["whole", "by length", "packed", "all shared"])
def test_values_and_gradients_are_those_of_the_padded_rows(lm, rows, how):
    plain, gradient = run(lm, rows, how="plain")
    cost = 0 if how == "all shared" else None
    laid_out, found = run(lm, rows, how="packed" if cost == 0 else how, part_cost=cost)
    assert torch.equal(laid_out.labels, plain.labels)
    assert torch.equal(laid_out.rows, plain.rows)
    torch.testing.assert_close(laid_out.logps, plain.logps, rtol=0, atol=1e-6)
    torch.testing.assert_close(laid_out.entropies, plain.entropies, rtol=0, atol=1e-6)
    assert_same_gradient(found, gradient)
    for start, stop in itertools.combinations_with_replacement(range(len(rows) + 1), 2):
        ours, theirs = (one.slice_rows(start, stop) for one in (laid_out, plain))
        assert torch.equal(ours.labels, theirs.labels)
        assert torch.equal(ours.rows, theirs.rows)
        assert len(ours.offsets) == stop - start + 1
        counts = torch.tensor(ours.offsets).diff()
        assert torch.equal(counts, theirs.row_counts().long())


def test_values_and_gradients_hold_in_float32(tiny_model_dir):
    single = load_model(str(tiny_model_dir))
    plain, gradient = run(single, [*ROWS, *ANSWERS], how="plain")
    laid_out, found = run(single, [*ROWS, *ANSWERS])
    torch.testing.assert_close(laid_out.logps, plain.logps, rtol=0, atol=1e-5)
    for name, right in gradient.items():
        assert (found[name] - right).norm() < 1e-6 * right.norm() + 1e-9, name


def test_a_row_without_labels_is_no_matter(lm):
    filler = EncodedRow("filler", ROWS[0].input_ids[:2], (IGNORE_INDEX,) * 2)
    _, gradient = run(lm, ROWS)
    _, found = run(lm, [*ROWS, filler])
    assert_same_gradient(found, gradient)
    signals, found = run(lm, [filler, filler])
    assert len(signals.logps) == 0
    assert all(not one.any() for one in found.values())


def fed(lm, rows, **how):
    """Return the shapes that are fed to a model's layers."""
    shapes = []
    handle = lm.model.layers[0].register_forward_hook(
        lambda _module, args, _out: shapes.append(tuple(args[0].shape[:2]))
    )
    run(lm, rows, **how)
    handle.remove()
    return shapes


def test_each_distinct_position_is_fed_once(lm):
    rows = [*ROWS, *ANSWERS]
    sequences = [row.input_ids[: last_label(row)] for row in rows]
    distinct = len({s[: n + 1] for s in sequences for n in range(len(s))})
    assert num_distinct(rows) == distinct < sum(map(len, sequences)) / 2
    assert fed(lm, rows, part_cost=0) == [(1, distinct)]
    ((_, usual),) = fed(lm, rows)
    assert distinct <= usual <= distinct + 2 * PART_COST * len(rows)
    by_length = fed(lm, rows, how="by length")
    assert sum(one for one, _ in by_length) == len(rows)
    assert max(width for _, width in by_length) == max(map(len, sequences))


def test_the_last_layer_works_on_what_is_read(lm):
    """Its feed-forward part on positions that predict labels, its attention from the first on."""
    rows, seen, asked = [*ROWS, *ANSWERS], [], []
    handles = [
        layer.mlp.gate_proj.register_forward_hook(
            lambda _module, args, _out: seen.append(args[0].shape[1])
        )
        for layer in lm.model.layers
    ]
    attention = torch.nn.functional.scaled_dot_product_attention

    def attend(query, *args, **settings):
        asked.append(query.shape[0] * query.shape[2])
        return attention(query, *args, **settings)

    scorer = LabelScorer(lm).train()
    batch = collate({"all": rows}, {}, 1.0, 0)
    layout = batch["layout"]
    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(torch.nn.functional, "scaled_dot_product_attention", attend)
        scorer(batch["input_ids"], batch["attention_mask"], batch["labels"], layout=layout)
    for handle in handles:
        handle.remove()
    predicting = {
        row.input_ids[:n]
        for row in rows
        for n, label in enumerate(row.labels)
        if label != IGNORE_INDEX
    }
    positions = layout.packed.input_ids.numel()
    sources = set(layout.packed.sources.tolist())
    assert seen == [*[positions] * (len(lm.model.layers) - 1), len(sources)]
    # Beginnings too short to be shared predict the same label more than once.
    assert len(predicting) <= len(sources) < len(predicting) + 2 * PART_COST
    layers, parts = len(lm.model.layers), layout.packed.parts
    assert sum(asked[: len(parts)]) == positions
    last = sum(asked[len(parts) * (layers - 1) :])
    assert last == sum(part.num * (part.width - part.unread) for part in parts)
    assert len(sources) <= last < positions - len(BEGINNING)


def last_label(row):
    return max((n for n, label in enumerate(row.labels) if label != IGNORE_INDEX), default=0)


def test_each_token_stands_behind_those_of_its_row():
    rows = [row.input_ids for row in (*ROWS, *ANSWERS)]
    packed, places = pack(rows, PART_COST)
    starts = list(itertools.accumulate((p.num * p.width for p in packed.parts), initial=0))
    assert starts[-1] == packed.input_ids.numel()
    for row, place in zip(rows, places, strict=True):
        here = place[: len(row)]
        assert packed.input_ids[0, here].tolist() == list(row)
        assert packed.position_ids[0, here].tolist() == list(range(len(row)))
        assert (place[len(row) :] == -1).all()
    depths = [sum(size for *_, size in part.path) for part in packed.parts]
    assert sorted(depths)[0] == 0
    assert max(len(part.path) for part in packed.parts) == 2, "beginning, question, answers"
    for part, start, depth in zip(packed.parts, starts, depths, strict=False):
        assert packed.position_ids[0, start] == depth
        # What follows nothing needs no mask.
        assert (part.mask is None) == (depth == 0)
        if part.mask is not None:
            assert part.mask.sum(1).tolist() == [depth + n + 1 for n in range(part.width)]


def test_of_a_part_that_predicts_nothing_no_position_is_read():
    """``1 2`` begins all rows and predicts no label; ``7`` and ``4`` predict the last tokens."""
    ids = ((1, 2, 3, 4, 5), (1, 2, 3, 4, 6), (1, 2, 7, 8))
    rows = [EncodedRow("", one, (IGNORE_INDEX,) * (len(one) - 1) + (one[-1],)) for one in ids]
    labels = torch.full((3, 5), IGNORE_INDEX)
    labels[0, 4], labels[1, 4], labels[2, 3] = 5, 6, 8
    packed = plan_layout(rows, labels, 0).packed
    assert packed.input_ids.tolist() == [[1, 2, 7, 3, 4]]
    assert packed.read.tolist() == [2, 4]
    assert [(part.width, part.unread) for part in packed.parts] == [(2, 2), (1, 0), (2, 1)]


@pytest.mark.parametrize("sizes", [(1,), (4, 4), (9, 3, 5, 5, 2), (7, 1, 1, 30, 31, 8, 9, 10, 2)])
@pytest.mark.parametrize("cost", [0, 3, 100])
def test_the_cuts_cost_least(sizes, cost):
    rows = [tuple(100 * n + k for k in range(size)) for n, size in enumerate(sizes)]
    packed, _ = pack(rows, cost)
    widths = sorted(sizes)
    costs = [
        sum((b - a) * widths[b - 1] + cost for a, b in itertools.pairwise((0, *inner, len(sizes))))
        for count in range(len(sizes))
        for inner in itertools.combinations(range(1, len(sizes)), count)
    ]
    assert packed.input_ids.numel() + cost * len(packed.parts) == min(costs)


def test_a_beginning_too_short_to_be_worth_a_part_is_fed_with_each_row():
    rows = [(1, 2, 3, *range(n, n + 5)) for n in (10, 20)]
    assert len(pack(rows, 1)[0].parts) == 2
    assert len(pack(rows, 2)[0].parts) == 1


def test_a_model_that_drops_is_fed_no_packed_rows(lm, monkeypatch):
    assert LabelScorer(lm).takes_packed
    monkeypatch.setattr(lm.config, "attention_dropout", 0.1)
    assert not LabelScorer(lm).takes_packed
    quiet = LabelScorer(lm)
    quiet.is_quiet = True
    assert quiet.takes_packed
    monkeypatch.undo()
    scorer = LabelScorer(lm)
    scorer.lm.add_module("dropped", nn.Dropout(0.1))
    assert not scorer.takes_packed
    del scorer.lm.dropped


@pytest.mark.parametrize(
    ("name", "value"), [("_attn_implementation", "eager"), ("sliding_window", 4)]
)
def test_a_model_of_other_attention_is_fed_no_packed_rows(lm, monkeypatch, name, value):
    monkeypatch.setattr(lm.config, name, value, raising=False)
    assert not LabelScorer(lm).takes_packed


def test_a_model_that_says_something_else_is_fed_no_packed_rows(lm, monkeypatch):
    def halved(parts, path):
        return along(parts, path) * 0.5

    along = packed_attention._along
    monkeypatch.setattr(packed_attention, "_along", halved)
    assert not LabelScorer(lm).takes_packed


def test_a_model_that_asks_its_attention_for_more_is_fed_no_packed_rows(lm, monkeypatch):
    attend = packed_attention._attend

    def capped(*args, laid_out=None, **settings):
        more = {} if laid_out is None else {"softcap": 20.0}
        return attend(*args, laid_out=laid_out, **settings, **more)

    monkeypatch.setattr(packed_attention, "_attend", capped)
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "sdpa", capped)
    assert not LabelScorer(lm).takes_packed


def test_heads_that_share_keys_read_the_right_ones():
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    config = AutoConfig.for_model("qwen3", vocab_size=300, head_dim=8, **sizes, **heads)
    grouped = AutoModelForCausalLM.from_config(config).double()
    assert LabelScorer(grouped).takes_packed
    plain, gradient = run(grouped, [*ROWS, *ANSWERS], how="plain")
    laid_out, found = run(grouped, [*ROWS, *ANSWERS])
    torch.testing.assert_close(laid_out.logps, plain.logps, rtol=0, atol=1e-6)
    assert_same_gradient(found, gradient)


def test_gradient_checkpointing_changes_nothing(tiny_model_dir):
    lm = load_model(str(tiny_model_dir)).double()
    _, gradient = run(lm, [*ROWS, *ANSWERS], how="plain")
    recompute_activations(lm)
    calls = []
    handle = lm.model.layers[0].self_attn.register_forward_hook(lambda *_: calls.append(1))
    _, found = run(lm, [*ROWS, *ANSWERS])
    handle.remove()
    assert len(calls) == 2, "activations were not computed again"
    assert_same_gradient(found, gradient)


@pytest.mark.parametrize("autocast", [False, True])
def test_on_processors_16_bits_are_attended_to_in_32(autocast):
    """Values and gradients are those of float32, rounded once."""
    packed, _ = pack([row.input_ids for row in [*ROWS, *ANSWERS]], 0)
    laid_out = packed_attention.LaidOut(packed.parts, None)
    assert len(packed.parts) > 1
    generator = torch.Generator().manual_seed(0)
    shape = (1, 2, packed.input_ids.shape[1], 8)
    made = [torch.randn(shape, generator=generator).bfloat16() for _ in range(4)]
    outs, gradients = {}, {}
    for dtype in (torch.bfloat16, torch.float32):
        query, key, value = (one.detach().clone().to(dtype).requires_grad_() for one in made[:3])
        with torch.autocast(
            "cpu", dtype=torch.bfloat16, enabled=autocast and dtype != torch.float32
        ):
            out, _ = packed_attention._attend(
                nn.Identity(), query, key, value, None, laid_out=laid_out
            )
        assert out.dtype == dtype
        out.backward(made[3].to(dtype).transpose(1, 2))
        outs[dtype] = out.to(torch.bfloat16)
        gradients[dtype] = [one.grad.to(torch.bfloat16) for one in (query, key, value)]
    assert torch.equal(*outs.values())
    assert all(torch.equal(*pair) for pair in zip(*gradients.values(), strict=True))
