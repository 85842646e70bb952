"""Batches of what is generated and of gradients: masks, order, and what is left out."""

from types import SimpleNamespace

import pytest
import torch

from etw_lightning.data.encode import Encoder
from etw_lightning.kernels.signals import TokenSignals
from etw_lightning.schema import IGNORE_INDEX, Conventions, EncodedRow, EvalSet, Example
from etw_lightning.scoring import batches as scoring_batches
from etw_lightning.scoring import row_weights
from etw_lightning.scoring.answers import (
    answer_batches,
    gradient_batches,
    losses,
    score_answers,
    score_gradients,
)
from etw_lightning.scoring.answers import rows as answer_rows
from etw_lightning.scoring.answers.batches import _Part
from etw_lightning.scoring.answers.losses import _plain, _score_packed
from etw_lightning.scoring.batches import GenerationBatch, build_batches, join_generations


def rows(*questions, answer="a town"):
    return tuple(
        Example(f"s/{n}", answer, question, verbatim=True) for n, question in enumerate(questions)
    )


def test_prompts_are_padded_on_the_left_longest_first(tiny_tokenizer):
    encoder = Encoder(tiny_tokenizer)
    asked = EvalSet("s", rows("the", "the town by the river", "a mill"), losses=False)
    asked = EvalSet("s", asked.examples, False, False, 5, ("END",))
    prompts = [encoder.encode_prompt(one) for one in asked.examples]
    order = sorted(range(3), key=lambda n: -len(prompts[n]))
    first, last = build_batches(asked, encoder, 2)
    assert [slot.row for slot in (*first.slots, *last.slots)] == order
    assert {(slot.field, slot.place) for slot in (*first.slots, *last.slots)} == {("generation", 0)}
    for batch, numbers in ((first, order[:2]), (last, order[2:])):
        width = max(len(prompts[n]) for n in numbers)
        assert batch.ids == [f"s/{n}" for n in numbers]
        assert (batch.max_new_tokens, batch.stop_strings) == (5, ("END",))
        assert batch.end_ids == encoder.end_ids
        for place, n in enumerate(numbers):
            fill = width - len(prompts[n])
            assert batch.input_ids[place].tolist() == [encoder.pad_id] * fill + prompts[n]
            assert batch.attention_mask[place].tolist() == [0] * fill + [1] * len(prompts[n])
        assert batch.extents() == [(f"s/{n}", len(prompts[n]), 5) for n in numbers]


def test_questions_of_a_set_that_follow_one_another_are_joined(tiny_tokenizer, monkeypatch):
    encoder = Encoder(tiny_tokenizer)
    texts = [" ".join(["the town"] * n) for n in range(1, 8)]
    asked = EvalSet("s", rows(*texts), max_new_tokens=5, stop_strings=("END",))
    batches = build_batches(asked, encoder, 2)
    others = build_batches(EvalSet("t", rows(*texts[:1]), False, False, 5), encoder, 2)
    alone = [one for one in batches if isinstance(one, GenerationBatch)]
    assert len(alone) == 4
    assert join_generations(batches) == batches, "so few are left alone"
    one_more = [*batches, alone[0]]
    assert len(join_generations(one_more)) == len(batches) - 3
    eighteen = [alone[n % 4] for n in range(18)]
    assert [len(one.slots) for one in join_generations(eighteen)] == [14, 14, 4]
    monkeypatch.setattr(scoring_batches, "_FEW", 1)
    monkeypatch.setattr(scoring_batches, "_TOGETHER", 3)
    *scored, first, second, other = join_generations([*batches, *others])
    assert scored == [one for one in batches if not isinstance(one, GenerationBatch)]
    assert [len(one.slots) for one in (first, second, other)] == [6, 1, 1]
    assert (other.dataset, other.ids) == ("t", ["s/0"])
    assert first.slots == [slot for one in alone[:3] for slot in one.slots]
    assert first.ids == [name for one in alone[:3] for name in one.ids]
    assert (first.at_once, first.max_new_tokens, first.stop_strings) == (2, 5, ("END",))
    assert first.extents() == [extent for one in alone[:3] for extent in one.extents()]
    for number, place in enumerate((0, 0, 1, 1, 2, 2)):
        own, at = alone[place], number % 2
        told = first.input_ids[number][first.attention_mask[number].bool()]
        assert told.equal(own.input_ids[at][own.attention_mask[at].bool()])


def test_hidden_tokens_of_a_prompt_leave_the_last_where_there_is_no_other(tiny_tokenizer):
    encoder = Encoder(tiny_tokenizer, conventions=Conventions(attention_mask="token_id"))
    pad = tiny_tokenizer.pad_token
    asked = EvalSet("s", rows(pad * 3, f"the{pad}mill"), False, False, 2)
    (batch,) = build_batches(asked, encoder, 4)
    said = dict(zip(batch.ids, batch.attention_mask.tolist(), strict=True))
    ids = dict(zip(batch.ids, batch.input_ids.tolist(), strict=True))
    assert said["s/1"] == [int(token != encoder.pad_id) for token in ids["s/1"]]
    assert 0 in said["s/1"]
    assert said["s/0"] == [*[0] * (len(ids["s/0"]) - 1), 1]


@pytest.mark.parametrize("last_label", ["kept", "left_out"])
def test_gradients_of_the_longest_answers_come_first(tiny_tokenizer, last_label):
    """The last label is left out where asked for, unless it is the only one."""
    conventions = Conventions(last_label=last_label, gradient_norm="tensor_mean")
    encoder = Encoder(tiny_tokenizer, conventions=conventions)
    examples = (*rows("the", "a mill by the river"), *rows("what", answer="x"))
    asked = EvalSet("s", examples, losses=False, gradient_norm=True)
    batches = build_batches(asked, encoder, 2)
    assert batches == gradient_batches(asked, encoder, 2)
    assert [len(batch.answers) for batch in batches] == [2, 1]
    every = [one for batch in batches for one in batch.answers]
    sizes = [len(one.row.input_ids) for one in every]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > sizes[-1]
    for slot, row in every:
        whole = encoder.encode(examples[slot.row])
        assert (slot.field, slot.place) == ("gradient_norm", 0)
        assert row.input_ids == whole.input_ids
        left = whole.num_labels - (last_label == "left_out" and whole.num_labels > 1)
        places = [n for n, label in enumerate(whole.labels) if label != IGNORE_INDEX][:left]
        kept = [n for n, label in enumerate(row.labels) if label != IGNORE_INDEX]
        assert kept == places
        assert [row.labels[n] for n in kept] == [whole.labels[n] for n in places]
    assert any(encoder.encode(one).num_labels == 1 for one in examples)
    assert all(batch.of_each and batch.hidden_id is None for batch in batches)
    plain = gradient_batches(asked, Encoder(tiny_tokenizer), 2)
    assert not any(batch.of_each for batch in plain)
    hiding = Encoder(tiny_tokenizer, conventions=Conventions(attention_mask="token_id"))
    for batch in (*gradient_batches(asked, hiding, 2), *answer_batches(asked, hiding, 2)):
        assert batch.hidden_id == hiding.pad_id


def test_answers_share_a_row_of_2048_tokens_at_most(tiny_tokenizer, monkeypatch):
    assert answer_rows._MAX_WIDTH == 2048
    encoder = Encoder(tiny_tokenizer)
    one = Example("s/0", "a b", "q", perturbed_answers=("c", "d"))
    (batch,) = answer_batches(EvalSet("s", (one,)), encoder, 8)
    (tree,) = batch.trees(shared=True)
    for most, groups in ((len(tree.ids), 1), (len(tree.ids) - 1, 3)):
        monkeypatch.setattr(answer_rows, "_MAX_WIDTH", most)
        (batch,) = answer_batches(EvalSet("s", (one,)), encoder, 8)
        assert len(batch.groups) == groups
    assert [len(tree.edges) for tree in batch.trees(shared=True)] == [1, 1, 1]


def test_a_batch_takes_answers_or_tokens_of_rows_of_its_own_kind():
    part = _Part(5, 3, 10, is_chain=False)
    assert [part.takes(count, is_chain=False) for count in (1, 3, 4, 9)] == [True] * 4
    assert not part.takes(1, is_chain=True)
    part.add(7, 4)
    assert part.takes(9, is_chain=False), "five tokens are left"
    part.add(2, 1)
    assert not part.takes(1, is_chain=False)
    assert part.groups == [7, 2]
    part = _Part(4, 3, 100, is_chain=True)
    assert [part.takes(count, is_chain=True) for count in (2, 3, 4)] == [True, True, False]
    assert not part.takes(1, is_chain=False)
    part.add(0, 2)
    assert [part.takes(count, is_chain=True) for count in (1, 2)] == [True, False]


def test_a_batch_feeds_as_many_tokens_as_the_longest_answers_alone(tiny_tokenizer):
    """Three of 20 tokens are sixty: so many rows that branch go together, padded to the first."""
    encoder = Encoder(tiny_tokenizer)
    examples = tuple(
        Example(f"s/{n}", "the mill " * (1 + n), "q", perturbed_answers=("a", "b", "c"))
        for n in range(9)
    )
    found = answer_batches(EvalSet("s", examples), encoder, 3)
    longest = max(extent.num_tokens for batch in found for extent in batch.extents())
    sizes = [[len(tree.ids) for tree in batch.trees(shared=True)] for batch in found]
    flat = [width for some in sizes for width in some]
    assert flat == sorted(flat, reverse=True)
    expected, place = [], 0
    while place < len(flat):
        count = 3 * longest // flat[place]
        expected.append(flat[place : place + count])
        place += count
    assert sizes == expected
    assert len(sizes) > 1


def test_numbers_are_written_as_short_as_they_can_be():
    third = torch.tensor([1 / 3])
    assert _plain(third) == (0.333333343,)
    assert torch.tensor(_plain(third)).equal(third)
    assert _plain(third.double()) == (0.3333333432674408,)
    assert _plain(torch.tensor([1 / 3], dtype=torch.float64)) == (1 / 3,)
    assert _plain(torch.tensor([True, False])) == (1, 0)


class Scorer:
    """Stands for a model: notes what it is asked."""

    def __init__(self, takes_trees=True):
        self.takes_trees, self.asked = takes_trees, []
        self.takes_packed = self.in_shards = False

    def gradient_norm(self, ids, mask, labels, *, of_each):
        self.asked.append((ids.tolist(), mask.tolist(), labels.tolist(), of_each))
        return float(len(self.asked))

    def score_edges(self, rows, is_detailed):
        num = len(is_detailed)
        detailed = torch.arange(float(is_detailed.sum()))
        return -torch.arange(float(num)), (detailed,) * 4


def test_what_is_laid_out_is_brought_to_the_device_of_the_model(tiny_tokenizer):
    asked = []

    def score_packed(packed, labels, is_detailed):
        found = [one for one in packed if isinstance(one, torch.Tensor)]
        asked.extend(one.device.type for one in (*found, labels, is_detailed))
        return torch.zeros(len(labels)), ()

    (batch,) = answer_batches(EvalSet("s", rows("the", "a mill")), Encoder(tiny_tokenizer), 4)
    scorer = SimpleNamespace(score_packed=score_packed)
    _score_packed(scorer, batch, torch.device("meta"))
    assert set(asked) == {"meta"}
    assert len(asked) > 3


def test_a_row_that_is_weighed_is_brought_to_the_device_of_the_model(monkeypatch):
    asked = []

    class Scorer:
        def __init__(self, lm):
            self.eval = lambda: self
            self.check_head = lambda key: None

        def __call__(self, ids, mask, labels, needs, temperature):
            asked.extend(one.device.type for one in (ids, mask, labels))
            asked.append(temperature)
            flat = labels.new_zeros(2)
            return TokenSignals(flat, flat, 1, flat.float())

    class SeenError(Exception):
        pass

    def weighting(signals):
        asked.extend(one.device.type for one in (signals.marked, signals.words))
        raise SeenError

    weighting.needs, weighting.entropy_temperature = ("marked", "words"), None
    monkeypatch.setattr(row_weights, "LabelScorer", Scorer)
    lm = torch.nn.Linear(1, 1, device="meta")
    row = EncodedRow("s/0", (1, 2, 3), (IGNORE_INDEX, 2, 3))
    with pytest.raises(SeenError):
        row_weights.weigh(weighting, lm, row, marks=[False, True, False], words=[-1, 0, 1])
    assert asked == ["meta", "meta", "meta", 1.0, "meta", "meta"]


@pytest.mark.parametrize("hides", [False, True])
def test_gradients_are_asked_row_by_row_without_hidden_tokens(tiny_tokenizer, hides):
    """The first token is looked at even where it is a hidden one."""
    conventions = Conventions(attention_mask="token_id" if hides else "length")
    encoder, pad = Encoder(tiny_tokenizer, conventions=conventions), tiny_tokenizer.pad_token
    examples = rows(f"{pad}the{pad}mill", "a")
    asked = EvalSet("s", examples, losses=False, gradient_norm=True)
    scorer, encoded = Scorer(), [encoder.encode(one) for one in examples]
    (batch,) = build_batches(asked, encoder, 4)
    found = score_gradients(scorer, batch, torch.device("cpu"))
    order = [slot.row for slot in batch.slots]
    assert [tuple(score) for score in found] == [
        (number, "gradient_norm", 0, place + 1.0) for place, number in enumerate(order)
    ]
    for number, (ids, mask, labels, of_each) in zip(order, scorer.asked, strict=True):
        row = encoded[number]
        seen = [int(not hides or token != encoder.pad_id) for token in row.input_ids]
        assert (ids, labels, of_each) == ([list(row.input_ids)], [list(row.labels)], False)
        assert mask == [[1, *seen[1:]]]
        assert not hides or number or 0 in seen[1:]


@pytest.mark.parametrize("takes_trees", [True, False])
def test_answers_share_a_row_where_the_model_takes_it(tiny_tokenizer, monkeypatch, takes_trees):
    encoder = Encoder(tiny_tokenizer)
    one = Example("s/0", "a b", "q", perturbed_answers=("c", "d"))
    (batch,) = answer_batches(EvalSet("s", (one,)), encoder, 8)
    packed, original = [], losses.pack_rows
    monkeypatch.setattr(
        losses, "pack_rows", lambda trees, *more: packed.extend(trees) or original(trees, *more)
    )
    score_answers(Scorer(takes_trees), batch, torch.device("cpu"))
    assert [len(tree.edges) for tree in packed] == ([3] if takes_trees else [1, 1, 1])
