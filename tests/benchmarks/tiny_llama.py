"""A Llama of a million weights with a chat template, made in seconds."""

from __future__ import annotations

import json
from pathlib import Path

#: As in most chat templates, each row begins with a system prompt.
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_tiny_llama(folder: Path, root: Path) -> Path:
    """Write a random model and a tokenizer that has learned TOFU's words.

    Args:
        folder: Where to.
        root: Folder of TOFU's files.
    """
    import torch

    from etw_lightning.benchmarks.quickstart import save_tokenizer, train_tokenizer
    from etw_lightning.models.random_llama import LlamaShape, save_random_llama

    lines = (root / "retain90.jsonl").read_text(encoding="utf-8").splitlines()[:1000]
    texts = [" ".join((row["question"], row["answer"])) for row in map(json.loads, lines)]
    tokenizer = train_tokenizer([*texts, "You are a helpful assistant. system user"], 1000)
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    save_tokenizer(tokenizer, folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings |= {"eos_token": "<|im_end|>", "model_max_length": 512}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    torch.manual_seed(0)
    shape = LlamaShape(num_layers=4, hidden_size=128, intermediate_size=344, num_heads=4)
    save_random_llama(folder, tokenizer, shape)
    return folder
