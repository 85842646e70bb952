"""Prefix trees: what is shared, what is looked at, and where each label is predicted."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from etw_lightning.models.loading import LabelScorer
from etw_lightning.models.packing import pack_rows, prefix_tree
from etw_lightning.schema import EncodedRow


def row(*ids, labels=None):
    """Return a row all of whose tokens but the first are labelled, or those at ``labels``."""
    places = range(1, len(ids)) if labels is None else labels
    return EncodedRow("", ids, tuple(one if t in places else -100 for t, one in enumerate(ids)))


def test_a_tree_written_down_by_hand():
    rows = [row(1, 2, 3, 4, labels=(2, 3)), row(1, 2, 5, labels=(2,)), row(1, 2, 3, 6, 7)]
    tree = prefix_tree(rows)
    # Below 1, 2: a 3 with a 4 and a 6, 7 below it, and a 5. Nothing follows 4, 5 and 7, so nothing
    # is predicted from them.
    assert tree.ids == [1, 2, 3, 6]
    assert tree.depths == [0, 1, 2, 3]
    assert tree.ends == [3, 3, 3, 3]
    predicted = list(zip((tree.ids[one] for one in tree.sources), tree.labels, strict=True))
    assert predicted == [(2, 3), (3, 4), (2, 5), (1, 2), (3, 6), (6, 7)]
    assert tree.edges == [[0, 1], [2], [3, 0, 4, 5]]


def test_what_follows_the_last_label_is_left_out():
    tree = prefix_tree([row(1, 2, 3, 4, 5, labels=(1, 2))])
    assert (tree.ids, tree.labels) == ([1, 2], [2, 3])


def test_equal_rows_and_beginnings_of_others_are_a_chain():
    assert prefix_tree([row(1, 2, 3, 4), row(1, 2, 3), row(1, 2, 3, 4)]).is_chain
    assert prefix_tree([row(1, 2), row(1, 3)]).is_chain  # nothing but labels differs
    assert not prefix_tree([row(1, 2, 3), row(1, 3, 3)]).is_chain
    assert not prefix_tree([row(1, 2), row(2, 2)]).is_chain


_ROWS = st.lists(st.lists(st.integers(1, 3), min_size=2, max_size=7), min_size=1, max_size=6)


@given(st.lists(_ROWS, min_size=1, max_size=3), st.sampled_from([None, 1, 3]))
def test_each_label_is_predicted_from_its_own_row_s_tokens_alone(groups, hidden_id):
    """What a source may look at are the tokens before the label, each at its position."""
    groups = [[row(*ids) for ids in group] for group in groups]
    trees = [prefix_tree(group) for group in groups]
    packed = pack_rows(trees, pad_id=0, hidden_id=hidden_id)
    mask = packed.attention_mask()[:, 0]
    ids, depths = packed.input_ids.flatten(), packed.depths.flatten()
    width, first = packed.input_ids.shape[1], 0
    for number, (group, tree) in enumerate(zip(groups, trees, strict=True)):
        assert len(tree.ids) == len(
            {one.input_ids[:n] for one in group for n in range(1, 8) if n < len(one.input_ids)}
        )
        for one, edges in zip(group, tree.edges, strict=True):
            assert len(edges) == one.num_labels
            for place, edge in enumerate(edges, start=1):
                source = packed.sources[first + edge].item()
                seen = mask[number, source - number * width].nonzero()[:, 0] + number * width
                visible = [
                    (token, at)
                    for at, token in enumerate(one.input_ids[:place])
                    if token != hidden_id or at == 0
                ]
                found = list(zip(ids[seen].tolist(), depths[seen].tolist(), strict=True))
                assert found == visible
                assert packed.labels[first + edge] == one.input_ids[place]
        first += len(tree.labels)
    assert mask.any(-1).all(), "a position that looks at nothing is not a number"


def test_the_first_sequence_s_edges_come_first():
    """Statistics of gold answers are cut off the front."""
    tree = prefix_tree([row(1, 9, 9, 3), row(1, 2, 3), row(1, 9, 4)])
    assert tree.edges[0] == [0, 1, 2]


SIZES = {
    "vocab_size": 40,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "initializer_range": 0.3,
}
HEADS = {"intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}


@pytest.mark.parametrize(
    ("make", "takes"),
    [
        (lambda: LlamaForCausalLM(LlamaConfig(**SIZES, **HEADS)), True),
        (lambda: MistralForCausalLM(MistralConfig(**SIZES, **HEADS, sliding_window=None)), True),
        (lambda: MistralForCausalLM(MistralConfig(**SIZES, **HEADS, sliding_window=1000)), False),
        (lambda: MambaForCausalLM(MambaConfig(**SIZES)), False),
    ],
    ids=["full", "no window", "window", "state"],
)
def test_only_models_that_can_are_given_trees(make, takes):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        scorer = LabelScorer(make()).eval()
    assert scorer.takes_trees is takes


@pytest.mark.parametrize("kept", ["mask", "position_ids"])
def test_a_model_that_heeds_only_one_of_mask_and_positions_is_found_out(monkeypatch, kept):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        lm = LlamaForCausalLM(LlamaConfig(**SIZES, **HEADS)).eval()
    original = lm.model.forward

    def forward(input_ids, attention_mask, use_cache, position_ids=None):
        if kept == "mask":
            position_ids = None
        elif attention_mask.dim() == 4:
            attention_mask = None
        return original(
            input_ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=False
        )

    monkeypatch.setattr(lm.model, "forward", forward)
    assert not LabelScorer(lm).takes_trees
