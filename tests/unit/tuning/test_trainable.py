"""Which weights train: by pattern, without embeddings, and what contradicts itself."""

import copy

import pytest
import torch

from etw_lightning.schema import InputError
from etw_lightning.tuning.trainable import choose_trained, freeze_embeddings, train_only


@pytest.fixture
def tied(loaded):
    config = copy.deepcopy(loaded.config)
    config.tie_word_embeddings = True
    return type(loaded)(config)


def trained(lm):
    return {name for name, weight in lm.named_parameters() if weight.requires_grad}


def test_whole_names_that_match_train(lm):
    pattern = r"model\.layers\.[1-3]\.mlp\.(up|down)_proj\.weight"
    names = train_only(lm, [pattern, r".*layers\.0\.input_layernorm.*"])
    assert names == [
        "model.layers.0.input_layernorm.weight",
        "model.layers.1.mlp.up_proj.weight",
        "model.layers.1.mlp.down_proj.weight",
    ]
    assert trained(lm) == set(names)


def test_a_step_moves_what_trains_alone(lm):
    names = choose_trained(lm, [r".*\.down_proj\.weight"])
    before = {name: weight.clone() for name, weight in lm.state_dict().items()}
    weights = [weight for weight in lm.parameters() if weight.requires_grad]
    ids = torch.arange(9)[None]
    lm(input_ids=ids, labels=ids).loss.backward()
    torch.optim.SGD(weights, lr=1.0).step()
    after = lm.state_dict()
    assert {name for name in before if not torch.equal(before[name], after[name])} == set(names)


def test_a_later_choice_forgets_the_earlier(lm):
    train_only(lm, ["lm_head.weight"])
    assert train_only(lm, [r"model\.norm\.weight"]) == ["model.norm.weight"]


def test_a_text_is_one_pattern(lm):
    assert train_only(lm, "lm_head.weight") == ["lm_head.weight"]


def test_a_tied_head_has_two_names_and_is_one_weight(tied):
    for pattern in (r"lm_head\.weight", r"model\.embed_tokens\.weight"):
        assert train_only(tied, [pattern]) == ["model.embed_tokens.weight"]
    assert tied.lm_head.weight.requires_grad


def test_embeddings_are_frozen_and_an_untied_head_is_not(lm):
    assert freeze_embeddings(lm) == ["model.embed_tokens.weight"]
    assert trained(lm) == {name for name, _ in lm.named_parameters()} - {
        "model.embed_tokens.weight"
    }


def test_a_tied_head_is_frozen_with_the_embeddings(tied):
    choose_trained(tied, freeze=True)
    assert not tied.lm_head.weight.requires_grad
    assert "model.norm.weight" in trained(tied)


def test_frozen_embeddings_stay_so_though_a_pattern_matches(lm):
    names = choose_trained(lm, [".*embed.*", ".*norm.*"], freeze=True)
    assert "model.embed_tokens.weight" not in names
    assert set(names) == trained(lm)


def test_without_keys_everything_trains(lm):
    assert choose_trained(lm) == [name for name, _ in lm.named_parameters()]


@pytest.mark.parametrize(
    ("patterns", "said"),
    [
        (["down_proj"], r"'down_proj' matches none: it matches parts .* '\.\*down_proj\.\*' would"),
        (
            [".*norm.*", "model.layers.0.mlp.dwn_proj.weight"],
            r"'model\.layers\.0\.mlp\.dwn_proj\.weight' matches none: there are "
            r"model\.layers\.0\.mlp\.down_proj\.weight",
        ),
        (["zzz"], r"'zzz' matches none: there are model\.embed_tokens\.weight, .* 21 in all"),
        (["mlp.(up"], r"must be regular expressions; 'mlp\.\(up' is none: missing \)"),
        ([], r"must be a list of patterns or null; got \[\]"),
    ],
)
def test_bad_patterns_are_one_line(lm, patterns, said):
    with pytest.raises(InputError, match=rf"^model\.train_only .*{said}") as found:
        choose_trained(lm, patterns)
    assert "\n" not in str(found.value)


def test_nothing_left_is_refused(lm):
    with pytest.raises(InputError, match=r"freeze_embeddings leaves nothing to train .*embed_to"):
        choose_trained(lm, [".*embed_tokens.*"], freeze=True)


@pytest.mark.parametrize(
    ("keys", "key"), [({"patterns": [".*"]}, "train_only"), ({"freeze": True}, "freeze_embeddings")]
)
def test_an_adapter_trains_alone(lm, keys, key):
    pytest.importorskip("peft")
    from etw_lightning.tuning.adapters import add_adapter

    add_adapter(lm, {"peft_type": "LORA", "target_modules": ["v_proj"]})
    assert len(choose_trained(lm)) == 4
    with pytest.raises(InputError, match=rf"model\.{key} can't be given with model\.peft"):
        choose_trained(lm, **keys)
