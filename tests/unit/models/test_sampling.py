"""Sampled continuation: drawn by the model's probabilities, whoever shares the batch."""

import random

import numpy as np
import pytest
import torch

from etw_lightning.data.encode import Encoder
from etw_lightning.models import generation
from etw_lightning.models.generation import continue_greedily, continue_sampled
from etw_lightning.models.loading import load_model
from etw_lightning.models.sampling import Draws, Sampling, drawn_tokens, uniform_numbers
from etw_lightning.schema import Example, InputError
from etw_lightning.scoring.batches import pad_rows

COUNT = 10
NAMES = [f"forget/{number // 2}#{number % 2}" for number in range(8)]


@pytest.fixture(scope="module")
def lm(tiny_model_dir):
    """In float64, where a batch can't turn a draw by rounding."""
    return load_model(str(tiny_model_dir)).double().eval()


@pytest.fixture(scope="module")
def prompts(tiny_tokenizer):
    encoder = Encoder(tiny_tokenizer)
    words = ["the", "river", "of", "a", "town", "and", "its", "mill"]
    asked = [" ".join(words[: 1 + 3 * n % 8]) for n in range(4)]
    ids = [encoder.encode_prompt(Example("x", "a", f"What of {text}?")) for text in asked]
    return [ids[number // 2] for number in range(8)]


def sampled(lm, prompts, names, tokenizer, **settings):
    ids, mask = pad_rows(prompts, tokenizer.eos_token_id, left=True)
    return continue_sampled(
        lm, ids, mask, tokenizer, COUNT, keys=names, sampling=Sampling(**settings)
    )


def one_by_one(lm, prompt, name, tokenizer, sampling):
    """Draw a row without batch, cache or padding, by numpy."""
    ends = {tokenizer.eos_token_id, lm.generation_config.eos_token_id}
    numbers = uniform_numbers(name, COUNT, sampling.seed).tolist()
    found = []
    while len(found) < COUNT and not (found and found[-1] in ends):
        with torch.no_grad():
            logits = lm(torch.tensor([[*prompt, *found]]), use_cache=False).logits[0, -1]
        scaled = logits.numpy() / sampling.temperature
        weights = np.exp(scaled - scaled.max())
        summed = np.cumsum(weights / weights.sum())
        found.append(int(np.argmax(summed >= numbers[len(found)] * summed[-1])))
    return tokenizer.decode(found, skip_special_tokens=True).strip()


@pytest.mark.parametrize("way", ["step", "library", "no cache"])
def test_the_batch_does_not_change_a_sample(lm, prompts, tiny_tokenizer, monkeypatch, way):
    if way == "library":
        monkeypatch.setattr(generation, "_new_cache", lambda lm: None)
    if way == "no cache":
        monkeypatch.setattr(generation, "way_of", lambda lm: "no cache")
    sampling = Sampling(temperature=0.7, seed=3)
    expected = [
        one_by_one(lm, prompt, name, tiny_tokenizer, sampling)
        for prompt, name in zip(prompts, NAMES, strict=True)
    ]
    # Two samples of a row are two texts.
    assert len(set(expected)) == 8
    for size in (1, 3, 8):
        order = random.Random(size).sample(range(8), 8)
        for start in range(0, 8, size):
            part = order[start : start + size]
            found = sampled(
                lm,
                [prompts[n] for n in part],
                [NAMES[n] for n in part],
                tiny_tokenizer,
                temperature=0.7,
                seed=3,
            )
            assert found == [expected[n] for n in part]


def test_the_seed_decides(lm, prompts, tiny_tokenizer):
    first, again, other = (
        sampled(lm, prompts, NAMES, tiny_tokenizer, seed=seed) for seed in (0, 0, 1)
    )
    assert first == again
    assert first != other


def test_nearly_no_temperature_is_greedy(lm, prompts, tiny_tokenizer):
    ids, mask = pad_rows(prompts, tiny_tokenizer.eos_token_id, left=True)
    greedy = continue_greedily(lm, ids, mask, tiny_tokenizer, COUNT)
    assert sampled(lm, prompts, NAMES, tiny_tokenizer, temperature=1e-6) == greedy
    assert sampled(lm, prompts, NAMES, tiny_tokenizer, top_p=1e-6) == greedy


def test_tokens_are_drawn_as_often_as_they_are_likely():
    likely = torch.tensor([0.5, 0.0, 0.125, 0.375])
    numbers = torch.cat([uniform_numbers(f"forget/{n}", 40, 0) for n in range(500)])
    drawn = drawn_tokens(likely.log().expand(len(numbers), -1), numbers, 1.0, 1.0)
    shares = torch.bincount(drawn, minlength=4) / len(numbers)
    # Three deviations of a share of 20,000 draws, sqrt(.25 / 20000), are .0106.
    assert shares.tolist() == pytest.approx(likely.tolist(), abs=0.0106)
    assert shares[1] == 0


def test_temperature_and_mass_change_what_is_drawn():
    logits = torch.tensor([[1.0, 3.0, 2.0]], dtype=torch.float64).log()
    # At temperature .5 the odds are 1 : 9 : 4.
    for number, token in ((1 / 14, 0), (1 / 14 + 1e-9, 1), (10 / 14, 1), (10 / 14 + 1e-9, 2)):
        wanted = torch.tensor([number], dtype=torch.float64)
        assert drawn_tokens(logits, wanted - 1e-12, 0.5, 1.0).tolist() == [token]
    # The likeliest has half of the mass, the first two five sixths.
    for top_p, kept in ((0.4, {1}), (0.6, {1, 2}), (0.9, {0, 1, 2})):
        numbers = torch.linspace(0.01, 1, 100, dtype=torch.float64)
        assert set(drawn_tokens(logits.expand(100, -1), numbers, 1.0, top_p).tolist()) == kept


def test_the_numbers_of_a_row_are_its_own():
    assert uniform_numbers("forget/0#1", 3, 0).tolist() == (
        uniform_numbers("forget/0#1", 9, 0)[:3].tolist()
    )
    assert len({float(uniform_numbers(name, 1, 0)) for name in NAMES}) == 8
    assert uniform_numbers("forget/0#1", 1, 1) != uniform_numbers("forget/0#1", 1, 0)
    every = uniform_numbers("a", 10000, 0)
    assert 0 < every.min() <= every.max() <= 1


def test_a_broken_model_is_said_to_be_broken():
    draws = Draws(["forget/0"], 2, Sampling())
    with pytest.raises(InputError, match="the model is broken"):
        draws(torch.tensor([[float("nan"), 1.0]]), [0], 0)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"temperature": 0.0}, "temperature must be above 0, got 0.0"),
        ({"temperature": float("inf")}, "temperature must be above 0"),
        ({"top_p": 0.0}, "top_p must be above 0 and at most 1, got 0.0"),
        ({"top_p": 1.5}, "top_p must be above 0"),
        ({"seed": -1}, "seed must be 0 or more, got -1"),
    ],
)
def test_what_sampling_refuses(settings, said):
    with pytest.raises(InputError, match=said):
        Sampling(**settings)
