"""A small model with random weights: what is saved loads, has its sizes, and hangs on the seed."""

import torch
from transformers import AutoModelForCausalLM

from etw_lightning.benchmarks.quickstart import train_tokenizer
from etw_lightning.models.random_llama import LlamaShape, save_random_llama

TEXTS = ["The mill by the river burned.", "Who owned the mill? Nobody knows."] * 3


def test_what_is_saved_is_a_model_of_these_sizes(tmp_path):
    tokenizer = train_tokenizer(TEXTS, 300)
    shape = LlamaShape(num_layers=3, hidden_size=16, intermediate_size=24, num_heads=2)
    weights = []
    for name, tied in (("one", False), ("two", True), ("again", False)):
        torch.manual_seed(4)
        sizes = LlamaShape(**{**vars(shape), "tied": tied})
        number = save_random_llama(tmp_path / name, tokenizer, sizes)
        lm = AutoModelForCausalLM.from_pretrained(tmp_path / name)
        width, inner, vocab = 16, 24, tokenizer.get_vocab_size()
        layer = 4 * width**2 + 3 * width * inner + 2 * width
        assert number == 3 * layer + width + vocab * width * (1 if tied else 2)
        assert len(lm.base_model.layers) == 3
        assert lm.config.eos_token_id == tokenizer.token_to_id("<|eos|>")
        weights.append(lm.state_dict())
    assert all(torch.equal(value, weights[2][name]) for name, value in weights[0].items())
