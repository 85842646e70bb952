"""Greedy continuation: what a row becomes depends on that row alone."""

import functools
import random
import warnings
from collections import Counter
from contextlib import nullcontext
from weakref import WeakKeyDictionary

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from toy import text

from etw_lightning.data.encode import Encoder
from etw_lightning.models import continuation, generation, stopping
from etw_lightning.models.generation import continue_greedily, continue_in_turn, cut
from etw_lightning.models.loading import load_model
from etw_lightning.schema import Conventions, EvalSet, Example
from etw_lightning.scoring.batches import build_batches, pad_rows

COUNT = 12


@pytest.fixture(scope="module")
def lm(tiny_model_dir):
    """In float64, where a batch can't turn the order of two tokens by rounding."""
    return load_model(str(tiny_model_dir)).double().eval()


@pytest.fixture(scope="module")
def prompts(tiny_tokenizer):
    encoder = Encoder(tiny_tokenizer)
    questions = [
        f"What of a river and a town, {text(number, 1 + 5 * number % 7)}?" for number in range(9)
    ]
    return [encoder.encode_prompt(Example("x", "a", question)) for question in questions]


BART = {
    "d_model": 32,
    "decoder_layers": 2,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 48,
    "init_std": 0.3,
    "forced_eos_token_id": None,
}


def tiny(name, tokenizer, **settings):
    """Return a random model of another architecture.

    In float32: attention that is not fused turns padding to NaN in float64.
    """
    import transformers

    config = getattr(transformers, f"{name}Config")(
        vocab_size=len(tokenizer),
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=None,
        bos_token_id=None,
        **{
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "initializer_range": 0.3,
            **settings,
        },
    )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return transformers.AutoModelForCausalLM.from_config(config).eval()


def one_by_one(lm, prompt, ends, hidden=()):
    """Continue one row without batch, padding or cache; some of its tokens may be hidden."""
    found = []
    while len(found) < COUNT and not (found and found[-1] in ends):
        mask = torch.tensor([[*(token not in hidden for token in prompt), *(1 for _ in found)]])
        positions = {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0)} if hidden else {}
        with torch.no_grad():
            logits = lm(
                input_ids=torch.tensor([[*prompt, *found]]),
                attention_mask=mask.long(),
                use_cache=False,
                **positions,
            ).logits
        found.append(int(logits[0, -1].argmax()))
    return found


def batched(lm, prompts, tokenizer, stops=()):
    ids, mask = pad_rows(prompts, tokenizer.eos_token_id, left=True)
    return continue_greedily(lm, ids, mask, tokenizer, COUNT, stops)


@pytest.fixture
def feeds(lm):
    """Rows and columns of each forward pass."""
    seen = []
    handle = lm.base_model.register_forward_pre_hook(
        lambda _module, _args, kwargs: seen.append(tuple(kwargs["input_ids"].shape)),
        with_kwargs=True,
    )
    yield seen
    handle.remove()


@pytest.fixture
def ends(lm, prompts, tiny_tokenizer, monkeypatch):
    """End tokens that rows come to after very different lengths."""
    free = [one_by_one(lm, prompt, ()) for prompt in prompts]
    chosen = [2, free[0][1], free[3][4], free[5][8]]
    monkeypatch.setattr(lm.generation_config, "eos_token_id", chosen)
    return {*chosen, tiny_tokenizer.eos_token_id}


def texts_of(rows, tokenizer):
    return [tokenizer.decode(row, skip_special_tokens=True).strip() for row in rows]


@pytest.mark.parametrize("way", ["step", "library"])
def test_the_batch_does_not_change_a_row(lm, prompts, tiny_tokenizer, ends, monkeypatch, way):
    if way == "library":
        monkeypatch.setattr(generation, "_new_cache", lambda lm: None)
    rows = [one_by_one(lm, prompt, ends) for prompt in prompts]
    assert len({len(row) for row in rows}) > 3
    expected = texts_of(rows, tiny_tokenizer)
    for size in (1, 2, 4, 9):
        order = random.Random(size).sample(range(9), 9)
        for start in range(0, 9, size):
            part = order[start : start + size]
            found = batched(lm, [prompts[number] for number in part], tiny_tokenizer)
            assert found == [expected[number] for number in part]


@pytest.mark.parametrize("at_once", [1, 2, 3, 8])
def test_rows_take_the_places_of_those_that_have_ended(
    lm, prompts, tiny_tokenizer, ends, feeds, at_once
):
    """They come as they end; never more at once than asked for, and nothing of a row changes."""
    rows = [one_by_one(lm, prompt, ends) for prompt in prompts]
    feeds.clear()
    ids, mask = pad_rows(prompts, tiny_tokenizer.eos_token_id, left=True)
    turns = continue_in_turn(lm, ids, mask, tiny_tokenizer, COUNT, at_once=at_once)
    found = dict(turns)
    expected = texts_of(rows, tiny_tokenizer)
    assert found == dict(enumerate(expected))
    assert list(found) != sorted(found) or at_once == 1
    assert max(rows for rows, _ in feeds) == at_once
    # Each row once a step, and once for its prompt; the common beginning once.
    assert sum(count for count, width in feeds) == sum(map(len, rows)) + 1


def test_models_whose_caches_can_t_be_joined_take_some_rows_after_others(tiny_tokenizer, prompts):
    for name, settings in (
        ("Mistral", {"num_key_value_heads": 2, "sliding_window": 8}),
        ("Bloom", {"n_head": 4}),
    ):
        lm = tiny(name, tiny_tokenizer, **settings)
        ids, mask = pad_rows(prompts, tiny_tokenizer.eos_token_id, left=True)
        found = dict(continue_in_turn(lm, ids, mask, tiny_tokenizer, COUNT, at_once=4))
        rows = [one_by_one(lm, prompt, {tiny_tokenizer.eos_token_id}) for prompt in prompts]
        assert found == dict(enumerate(texts_of(rows, tiny_tokenizer)))


@pytest.mark.parametrize(
    ("name", "settings", "steps"),
    [
        ("GPT2", {"n_embd": 32, "n_layer": 2, "n_head": 4}, True),
        # A window shorter than what the prompts share.
        ("Mistral", {"num_key_value_heads": 2, "sliding_window": 8}, True),
        ("Gemma2", {"head_dim": 8, "num_key_value_heads": 2, "sliding_window": 8}, True),
        # Declares its window in words of its own.
        (
            "GPTNeo",
            {"num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 8},
            True,
        ),
        # Neither takes positions; one keeps no keys and values at all.
        ("Bloom", {"n_head": 4}, False),
        ("Mamba", {"state_size": 4}, False),
        # Neither counts positions without padding; one does not even see what is padding.
        ("Bart", BART, False),
        ("Rwkv", {"attention_hidden_size": 32}, False),
    ],
)
def test_models_of_every_kind_of_cache(tiny_tokenizer, prompts, name, settings, steps):
    lm = tiny(name, tiny_tokenizer, **settings)
    assert (generation._new_cache(lm) is not None) == steps
    rows = [one_by_one(lm, prompt, {tiny_tokenizer.eos_token_id}) for prompt in prompts]
    with warnings.catch_warnings(record=True):
        assert batched(lm, prompts, tiny_tokenizer) == texts_of(rows, tiny_tokenizer)


def test_a_model_that_minds_padding_gets_prompts_of_one_length(
    tiny_tokenizer, prompts, monkeypatch
):
    lm = tiny("Bart", tiny_tokenizer, **BART)
    seen = []
    original = generation.by_library

    def spy(lm, ids, mask, *rest):
        seen.append((len(ids), bool(mask.all())))
        return original(lm, ids, mask, *rest)

    monkeypatch.setattr(generation, "by_library", spy)
    several = [*prompts[:3], prompts[0], prompts[1]]
    with pytest.warns(UserWarning, match="BartForCausalLM does not continue .* prompts of one"):
        found = batched(lm, several, tiny_tokenizer)
    lengths = [len(prompt) for prompt in several]
    assert sorted(size for size, _ in seen) == sorted(map(lengths.count, set(lengths)))
    assert all(is_whole for _, is_whole in seen)
    assert found[3:] == found[:2]
    with warnings.catch_warnings():
        # It is asked once.
        warnings.simplefilter("error")
        assert batched(lm, several, tiny_tokenizer) == found


def test_a_model_that_ignores_the_mask_gets_prompts_of_one_length(
    tiny_model_dir, tiny_tokenizer, prompts
):
    """What stands before its prompts would be read as text."""
    lm = load_model(str(tiny_model_dir))
    forward = lm.forward
    deaf = {"attention_mask": None, "position_ids": None}
    lm.forward = functools.wraps(forward)(lambda **given: forward(**(given | deaf)))
    rows = texts_of(
        [one_by_one(lm, prompt, {tiny_tokenizer.eos_token_id}) for prompt in prompts],
        tiny_tokenizer,
    )
    says = r"LlamaForCausalLM does not continue a prompt that is padded as it does the prompt alone"
    with pytest.warns(UserWarning, match=says):
        found = batched(lm, prompts, tiny_tokenizer)
    assert found == rows
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert batched(lm, prompts[:2], tiny_tokenizer) == rows[:2]
    assert generation.way_of(lm) == "one length"
    # Else padding would not have shown.
    generation._WAYS[lm] = "padded"
    assert batched(lm, prompts, tiny_tokenizer) != rows


def test_a_model_whose_cache_is_wrong_goes_without(tiny_tokenizer, prompts, monkeypatch):
    lm = tiny("Rwkv", tiny_tokenizer, attention_hidden_size=32)
    with pytest.warns(UserWarning, match="RwkvForCausalLM .* with its cache .* without a cache"):
        assert generation.way_of(lm) == "no cache"
    monkeypatch.setattr(generation, "by_library", None)
    ends = {tiny_tokenizer.eos_token_id}
    rows = [one_by_one(lm, prompt, ends) for prompt in prompts[:4]]
    texts = texts_of(rows, tiny_tokenizer)
    assert batched(lm, prompts[:4], tiny_tokenizer) == texts
    stop = texts[0][3]
    stopped = batched(lm, prompts[:4], tiny_tokenizer, (stop,))
    assert stopped == [cut(text, (stop,)) for text in texts]


def test_a_model_that_does_not_mind_is_asked_once(lm, prompts, tiny_tokenizer, feeds, monkeypatch):
    monkeypatch.setattr(generation, "_WAYS", WeakKeyDictionary())
    assert not generation._WAYS
    batched(lm, prompts[:2], tiny_tokenizer)
    assert generation._WAYS[lm] == "padded"
    asked = (2, generation._NUM_PROBED)
    assert feeds.count(asked) == 1
    batched(lm, prompts[:2], tiny_tokenizer)
    assert feeds.count(asked) == 1


def test_hidden_tokens_are_neither_seen_nor_counted(lm, tiny_tokenizer):
    """The peer's mask: whatever equals the padding token, also inside a prompt."""
    encoder = Encoder(tiny_tokenizer, conventions=Conventions(attention_mask="token_id"))
    examples = tuple(
        Example(f"forget/{number}", "a", f"What of {text(number, 1 + number)}?")
        for number in range(4)
    )
    (batch,) = build_batches(EvalSet("forget", examples, False, max_new_tokens=3), encoder, 8)
    pad = encoder.pad_id
    prompts = [
        row[row.index(next(t for t in row if t != pad)) :] for row in batch.input_ids.tolist()
    ]
    # Turn ends, as in a conversation whose end token also pads.
    prompts = [[*row[:5], pad, *row[5:9], pad, pad, *row[9:]] for row in prompts]
    ids, mask = pad_rows(prompts, pad, left=True)
    mask = (ids != pad).long()
    rows = [one_by_one(lm, prompt, {tiny_tokenizer.eos_token_id}, {pad}) for prompt in prompts]
    found = continue_greedily(lm, ids, mask, tiny_tokenizer, COUNT)
    assert found == texts_of(rows, tiny_tokenizer)
    assert found != batched(lm, prompts, tiny_tokenizer)
    assert torch.equal(batch.attention_mask, (batch.input_ids != pad).long())


def test_what_prompts_share_and_rows_that_stopped_are_not_fed(
    lm, prompts, tiny_tokenizer, ends, feeds
):
    rows = [one_by_one(lm, prompt, ends) for prompt in prompts]
    feeds.clear()
    batched(lm, prompts, tiny_tokenizer)
    shared = next(k for k in range(99) if len({tuple(row[: k + 1]) for row in prompts}) > 1)
    assert shared > continuation._MIN_SHARED
    alive = [sum(len(row) > step for row in rows) for step in range(1, COUNT)]
    assert feeds == [
        (1, shared),
        (9, max(map(len, prompts)) - shared),
        *[(count, 1) for count in alive if count],
    ]


@pytest.mark.parametrize("way", ["step", "library"])
def test_rows_stop_at_a_stop_string(lm, prompts, tiny_tokenizer, feeds, monkeypatch, way):
    if way == "library":
        monkeypatch.setattr(generation, "_new_cache", lambda lm: None)
    whole = texts_of(
        [one_by_one(lm, p, {tiny_tokenizer.eos_token_id}) for p in prompts], tiny_tokenizer
    )
    # Of several tokens, somewhere in the middle, and another for every row.
    stops = [row[len(row) // 2 :][:3] for row in whole]
    assert any(len(tiny_tokenizer(stop)["input_ids"]) > 1 for stop in stops)
    expected = [generation.cut(row, stops) for row in whole]
    assert all(len(cut) < len(row) for cut, row in zip(expected, whole, strict=True))
    feeds.clear()
    batched(lm, prompts, tiny_tokenizer)
    without = sum(rows * columns for rows, columns in feeds)
    feeds.clear()
    assert batched(lm, prompts, tiny_tokenizer, stops) == expected
    assert sum(rows * columns for rows, columns in feeds) < without


def test_an_empty_stop_string_is_none(lm, prompts, tiny_tokenizer):
    free = batched(lm, prompts[:2], tiny_tokenizer)
    assert any(free)
    assert batched(lm, prompts[:2], tiny_tokenizer, ("",)) == free


def test_a_stop_string_in_pieces_is_seen(tiny_tokenizer):
    """Its last token may hold only part of a character, or more than the stop string."""
    for stop, written in (("\n\n", "a\n\nb"), ("é", "caf\u00e9"), (".\n", "so. No.\n\n")):
        tokens = tiny_tokenizer(written, add_special_tokens=False)["input_ids"]
        seen = stopping.Stops(tiny_tokenizer, (stop,))
        first = next(k for k in range(1, len(tokens) + 1) if seen(tokens[:k]))
        assert stop in tiny_tokenizer.decode(tokens[:first])
        assert stop not in tiny_tokenizer.decode(tokens[: first - 1])


def test_no_gradient_and_no_setting_is_left_behind(lm, prompts, tiny_tokenizer):
    before = lm.generation_config.to_dict()
    batched(lm, prompts[:2], tiny_tokenizer)
    assert lm.generation_config.to_dict() == before
    assert all(parameter.grad is None for parameter in lm.parameters())


class Casts(TorchDispatchMode):
    """Counts how often each weight is cast to 16 bits."""

    def __init__(self, lm):
        super().__init__()
        self.names = {weight.data_ptr(): name for name, weight in lm.named_parameters()}
        self.counts = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._to_copy.default and kwargs["dtype"] == torch.bfloat16:
            self.counts[self.names.get(args[0].data_ptr())] += 1
        return function(*args, **(kwargs or {}))


@pytest.fixture
def wide(tiny_model_dir):
    return load_model(str(tiny_model_dir)).eval()


@pytest.mark.parametrize("trains", ["all", "some", "none"])
def test_autocast_casts_each_weight_once_whether_it_trains_or_not(
    wide, prompts, tiny_tokenizer, trains, monkeypatch
):
    for number, weight in enumerate(wide.parameters()):
        weight.requires_grad_(trains == "all" or (trains == "some" and number % 2 == 0))
    flags = [weight.requires_grad for weight in wide.parameters()]
    generation.way_of(wide)
    low = functools.partial(torch.autocast, "cpu", torch.bfloat16)
    with low(), Casts(wide) as casts:
        said = batched(wide, prompts[:3], tiny_tokenizer)
    products = {f"{n}.weight" for n, m in wide.named_modules() if isinstance(m, torch.nn.Linear)}
    # One that is tied has the name of the first of its places.
    products = {n for n in products if n in dict(wide.named_parameters())}
    once = {name: count for name, count in casts.counts.items() if name in products}
    assert once == dict.fromkeys(products, 1)
    assert [weight.requires_grad for weight in wide.parameters()] == flags
    monkeypatch.setattr(generation, "cast_once", lambda _: nullcontext())
    wide.requires_grad_(False)
    with low(), Casts(wide) as casts:
        assert batched(wide, prompts[:3], tiny_tokenizer) == said
    assert min(casts.counts[name] for name in products) > 3


def test_weights_that_change_under_autocast_are_cast_again(wide, prompts, tiny_tokenizer):
    wide.requires_grad_(False)

    def changed():
        for weight in wide.parameters():
            weight.mul_(-1.5)

    with torch.autocast("cpu", torch.bfloat16):
        before = batched(wide, prompts[:3], tiny_tokenizer)
        changed()
        after = batched(wide, prompts[:3], tiny_tokenizer)
    with torch.autocast("cpu", torch.bfloat16):
        assert batched(wide, prompts[:3], tiny_tokenizer) == after != before


def test_weights_stay_frozen_where_a_continuation_is_broken_off(wide, prompts, tiny_tokenizer):
    wide.requires_grad_(False)
    ids, mask = pad_rows(prompts, tiny_tokenizer.eos_token_id, left=True)
    with torch.autocast("cpu", torch.bfloat16):
        texts = continue_in_turn(wide, ids, mask, tiny_tokenizer, COUNT)
        next(texts)
        texts.close()
    assert not any(weight.requires_grad for weight in wide.parameters())
