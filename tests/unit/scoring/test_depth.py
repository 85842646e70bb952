"""Unlearning depth: states of one model put into another."""

import json

import pytest
import torch
from toy import text
from transformers import AutoConfig, AutoModelForCausalLM

from etw_lightning.data.encode import Encoder
from etw_lightning.metrics.depth import unlearning_depth
from etw_lightning.models.loading import LabelScorer
from etw_lightning.schema import IGNORE_INDEX, EvalSet, Example, InputError
from etw_lightning.scoring.depth import (
    DepthRow,
    build_depth_batches,
    make_depth_rows,
    measure_depth,
)
from etw_lightning.scoring.patching import check_same_layers, patched_logps

NUM_LAYERS = 3
SIZES = {"num_hidden_layers": NUM_LAYERS, "num_attention_heads": 2, "hidden_size": 16}
#: Where decoder layers lie differs between these, and what a layer returns.
KINDS = {
    "llama": {**SIZES, "intermediate_size": 24, "num_key_value_heads": 1},
    "gpt2": {"n_layer": NUM_LAYERS, "n_head": 2, "n_embd": 16, "n_positions": 256},
    "opt": {**SIZES, "ffn_dim": 24, "word_embed_proj_dim": 16, "max_position_embeddings": 256},
}


def make_scorer(kind, seed, vocabulary=320, **changes):
    """Return a random model of float64, wide enough for very different predictions."""
    wide = {"initializer_range": 0.3, "init_std": 0.3, "vocab_size": vocabulary}
    config = AutoConfig.for_model(kind, **{**KINDS[kind], **wide, **changes})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float64)
        for parameter in model.parameters():
            # Norms of ones and biases of zeros would hide a norm applied twice.
            parameter.data += 0.1 * torch.randn_like(parameter)
    return LabelScorer(model).eval()


@pytest.fixture(scope="module")
def llamas(tiny_tokenizer):
    """Target, retain and unlearned model."""
    return [make_scorer("llama", seed, len(tiny_tokenizer)) for seed in range(3)]


@pytest.fixture(scope="module")
def encoder(tiny_tokenizer):
    return Encoder(tiny_tokenizer)


@pytest.fixture(scope="module")
def eval_set():
    examples = tuple(
        Example(f"forget/{n}", text(n, 3 + 5 * n % 7), question=f"What of {text(n, 1 + n % 4)}?")
        for n in range(7)
    )
    return EvalSet("forget", examples)


@pytest.fixture(scope="module")
def marks(eval_set, encoder):
    """Every second or third answer token; nothing in row 3, the end token in none."""
    found = []
    for number, example in enumerate(eval_set.examples):
        count = encoder.encode(example).num_labels
        flags = [number != 3 and place % (2 + number % 2) == 0 for place in range(count - 1)]
        found.append((*flags, None))
    return found


def measure(models, eval_set, encoder, marks, batch_size=4):
    batches = build_depth_batches(eval_set, encoder, marks, batch_size)
    rows = [row for batch in batches for row in measure_depth(*models, batch)]
    return make_depth_rows(eval_set, marks, rows)


def score(rows, tau=0.05):
    return unlearning_depth(
        [row.retain_deltas for row in rows], [row.unlearned_deltas for row in rows], tau
    )


def random_batch(vocabulary=320):
    """Return ids, mask and scattered labels of right-padded rows."""
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(vocabulary, (3, 9), generator=generator)
    mask = (torch.arange(9)[None] < torch.tensor([9, 6, 7])[:, None]).long()
    is_label = (torch.rand(3, 9, generator=generator) < 0.4) & mask.bool()
    is_label[:, 0], is_label[:, 5] = False, True
    return ids, mask, torch.where(is_label, ids, IGNORE_INDEX)


# Patching.


@pytest.mark.parametrize("kind", KINDS)
def test_patching_is_a_plain_run_with_one_output_replaced(kind):
    """The same by running the whole receiver anew for each layer, with library hooks alone."""
    receiver, source = make_scorer(kind, 0), make_scorer(kind, 1)
    ids, mask, labels = random_batch()
    own, patched = patched_logps(receiver, [source, receiver], ids, mask, labels)
    is_label = labels[:, 1:] != IGNORE_INDEX

    def layers(scorer):
        base = scorer.lm.base_model
        return base.h if kind == "gpt2" else getattr(base, "decoder", base).layers

    def first(output):
        return output[0] if isinstance(output, tuple) else output

    @torch.no_grad()
    def mean_logps(scorer):
        logits = scorer.lm(input_ids=ids, attention_mask=mask).logits[:, :-1]
        logps = logits.log_softmax(-1)
        picked = logps.gather(-1, ids[:, 1:, None])[..., 0]
        return (picked * is_label).sum(1) / is_label.sum(1)

    assert torch.allclose(own, mean_logps(receiver), rtol=0, atol=1e-10)
    for number in range(NUM_LAYERS):
        seen = []
        handle = layers(source)[number].register_forward_hook(
            lambda layer, args, output, seen=seen: seen.append(first(output))
        )
        mean_logps(source)
        handle.remove()

        def replace(layer, args, output, state=seen[0]):
            hidden = first(output).clone()
            for row, place in is_label.nonzero().tolist():
                hidden[row, place] = state[row, place]
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        handle = layers(receiver)[number].register_forward_hook(replace)
        wanted = mean_logps(receiver)
        handle.remove()
        assert torch.allclose(patched[0, number], wanted, rtol=0, atol=1e-10)
        assert (patched[0, number] - own).abs().min() > 1e-3
    # A model patched with itself is itself, and comes out of it unchanged.
    assert torch.allclose(patched[1], own.expand(NUM_LAYERS, -1), rtol=0, atol=1e-12)
    assert torch.allclose(own, mean_logps(receiver), rtol=0, atol=1e-10)


def test_the_last_layers_states_go_through_the_receivers_norm_and_head(llamas):
    """RMS norm and head written out; the library's own last hidden state is normed already.

    To 1e-6: the library's norm computes in float32.
    """
    target, source = llamas[:2]
    ids, mask, labels = random_batch(target.lm.config.vocab_size)
    _, patched = patched_logps(target, [source], ids, mask, labels)
    seen = []
    handle = source.lm.model.layers[-1].register_forward_hook(
        lambda layer, args, output: seen.append(output)
    )
    with torch.no_grad():
        source.lm(input_ids=ids, attention_mask=mask)
        handle.remove()
        norm, head = target.lm.model.norm, target.lm.lm_head.weight
        scale = (seen[0].square().mean(-1, keepdim=True) + norm.variance_epsilon).rsqrt()
        logps = (seen[0] * scale * norm.weight @ head.T).log_softmax(-1)
    for row in range(len(ids)):
        wanted = [
            logps[row, place - 1, label].item()
            for place, label in enumerate(labels[row].tolist())
            if label != IGNORE_INDEX
        ]
        mean = sum(wanted) / len(wanted)
        assert patched[0, -1, row].item() == pytest.approx(mean, abs=1e-6)


def test_a_model_is_left_as_it_was_when_patching_fails(llamas):
    target, source = llamas[:2]
    ids, mask, labels = random_batch(target.lm.config.vocab_size)
    calls = []

    def fail_later(module, args):
        calls.append(module)
        if len(calls) == 3:
            raise KeyboardInterrupt

    handle = target.lm.model.norm.register_forward_pre_hook(fail_later)
    with pytest.raises(KeyboardInterrupt):
        patched_logps(target, [source], ids, mask, labels)
    handle.remove()
    for layer in target.lm.model.layers:
        assert "forward" not in vars(layer)
        assert not layer._forward_hooks
    own, patched = patched_logps(target, [target], ids, mask, labels)
    assert torch.allclose(patched[0], own.expand(NUM_LAYERS, -1), rtol=0, atol=1e-12)


# Rows.


def test_a_target_that_was_not_unlearned_scores_zero(llamas, eval_set, encoder, marks):
    target, retain, _ = llamas
    rows = measure([target, retain, target], eval_set, encoder, marks)
    assert all(abs(delta) < 1e-12 for row in rows for delta in row.unlearned_deltas)
    assert score(rows).value == pytest.approx(0, abs=1e-12)
    assert score(rows).n >= 3


def test_the_retain_model_scores_one(llamas, eval_set, encoder, marks):
    target, retain, _ = llamas
    rows = measure([target, retain, retain], eval_set, encoder, marks)
    assert score(rows).value == pytest.approx(1, abs=1e-12)
    assert score(rows).num_without_tokens == 1


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_batches_and_padding_do_not_matter(llamas, eval_set, encoder, marks, batch_size):
    rows = measure(llamas, eval_set, encoder, marks, batch_size)
    one_by_one = []
    for number in range(len(eval_set.examples)):
        part = EvalSet("forget", eval_set.examples[number : number + 1])
        one_by_one += measure(llamas, part, encoder, marks[number : number + 1])
    assert [row.id for row in rows] == [example.id for example in eval_set.examples]
    for row, alone in zip(rows, one_by_one, strict=True):
        assert row.num_tokens == alone.num_tokens
        assert row.target_logp == pytest.approx(alone.target_logp, abs=1e-10)
        assert row.retain_deltas == pytest.approx(alone.retain_deltas, abs=1e-10)
        assert row.unlearned_deltas == pytest.approx(alone.unlearned_deltas, abs=1e-10)


def test_what_follows_the_last_marked_token_is_not_run_and_does_not_matter(
    llamas, eval_set, encoder
):
    example = eval_set.examples[1]
    row = encoder.encode(example)
    labels = torch.tensor([row.labels])
    places = (labels[0] != IGNORE_INDEX).nonzero()[:, 0]
    marks = [tuple(place in (0, 2) for place in range(len(places)))]
    (batch,) = build_depth_batches(EvalSet("forget", (example,)), encoder, marks, 1)
    assert batch.input_ids.shape[1] == places[2] + 1 < len(row.input_ids)
    kept = torch.full_like(labels, IGNORE_INDEX)
    kept[0, places[[0, 2]]] = labels[0, places[[0, 2]]]
    ids = torch.tensor([row.input_ids])
    target, retain, unlearned = llamas
    own, patched = patched_logps(target, [retain, unlearned], ids, torch.ones_like(ids), kept)
    (found,) = measure_depth(*llamas, batch)
    assert found.num_tokens == 2
    assert found.target_logp == pytest.approx(own[0].item(), abs=1e-10)
    assert found.retain_deltas == pytest.approx((own - patched[0])[:, 0].tolist(), abs=1e-10)
    assert found.unlearned_deltas == pytest.approx((own - patched[1])[:, 0].tolist(), abs=1e-10)


def test_rows_survive_a_file(llamas, eval_set, encoder, marks):
    rows = measure(llamas, eval_set, encoder, marks)
    lines = [json.dumps(row.to_json()) for row in rows]
    assert [DepthRow.from_json(json.loads(line)) for line in lines] == rows
    assert rows[3] == DepthRow(3, "forget/3")
    assert len(rows[0].retain_deltas) == NUM_LAYERS


def test_other_rows_and_tokens_are_named(eval_set, encoder, marks):
    with pytest.raises(InputError, match="marks of 6 rows for 7 rows of 'forget'"):
        build_depth_batches(eval_set, encoder, marks[:-1], 4)
    with pytest.raises(InputError, match=r"row forget/0 has \d+ labelled tokens, its record 1;"):
        build_depth_batches(eval_set, encoder, [(True,), *marks[1:]], 4)
    with pytest.raises(InputError, match="row forget/0 of forget was not measured"):
        make_depth_rows(eval_set, marks, [])


def test_models_that_do_not_fit_are_named(llamas):
    target = llamas[0]
    with pytest.raises(InputError, match=r"data\.retain_model has 2 layers of width 16.* 3 of"):
        check_same_layers(target, make_scorer("llama", 0, num_hidden_layers=2), "data.retain_model")
    with pytest.raises(InputError, match=r"model\.pretrained has 3 layers of width 32"):
        check_same_layers(target, make_scorer("llama", 0, hidden_size=32), "model.pretrained")
    hidden = make_scorer("llama", 0)
    hidden.lm.model.layers = torch.nn.Sequential(*hidden.lm.model.layers)
    with pytest.raises(InputError, match="decoder layers of LlamaForCausalLM can't be found"):
        check_same_layers(target, hidden, "data.retain_model")


def test_depth_batches_hold_the_longest_rows_first(eval_set, encoder, marks):
    """A row ends with its last marked token, and has no label but the marked ones."""
    batches = build_depth_batches(eval_set, encoder, marks, 3)
    wanted = {}
    for number, (one, flags) in enumerate(zip(eval_set.examples, marks, strict=True)):
        row = encoder.encode(one)
        places = [place for place, label in enumerate(row.labels) if label != IGNORE_INDEX]
        kept = [place for place, flag in zip(places, flags, strict=True) if flag]
        if kept:
            labels = [row.labels[n] if n in kept else IGNORE_INDEX for n in range(kept[-1] + 1)]
            wanted[number] = (one.id, list(row.input_ids[: kept[-1] + 1]), labels)
    rows = [number for batch in batches for number in batch.rows]
    assert sorted(rows) == sorted(wanted)
    sizes = [len(wanted[number][1]) for number in rows]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) > 1
    assert [len(batch.rows) for batch in batches[:-1]] == [3] * (len(batches) - 1)
    for batch in batches:
        for place, number in enumerate(batch.rows):
            name, ids, labels = wanted[number]
            size = len(ids)
            assert batch.ids[place] == name
            assert batch.input_ids[place, :size].tolist() == ids
            assert batch.labels[place, :size].tolist() == labels
            assert (batch.labels[place, size:] == IGNORE_INDEX).all()
            assert batch.attention_mask[place].tolist() == [
                int(n < size) for n in range(batch.input_ids.shape[1])
            ]
