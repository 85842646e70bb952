"""By which rule a GGUF file's byte-level tokenizer cuts a text before it merges.

A file names its rule and does not hold it. ``transformers`` knows some of the names, and cuts by
GPT-2's rule for all others, without a word: a number of four digits is then one piece where the
model was trained on three and one. Names and rules are those of llama.cpp, which writes such files
(src/llama-vocab.cpp).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["unknown_split"]

#: Names of GPT-2's own rule.
_GPT2 = frozenset(
    {
        "gpt-2",
        "phi-2",
        "jina-es",
        "jina-de",
        "jina-v1-en",
        "jina-v2-es",
        "jina-v2-de",
        "jina-v2-code",
        "roberta-bpe",
        "gigachat",
        "a.x-4.0",
        "mellum",
        "modern-bert",
        "mpt",
        "olmo",
        "jais",
        "trillion",
        "granite-docling",
        "exaone4",
    }
)
#: Each numeral by itself, then GPT-2's rule.
_NUMERALS = frozenset(
    {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"}
)
#: The rule of a name that the library knows.
_SAME = {"stablelm2": "qwen2", "hunyuan": "qwen2", "glm4": "llama-bpe", "chatglm-bpe": "llama-bpe"}
#: A word of the vocabulary is one token, whether merges lead to it or not.
_WHOLE_WORDS = frozenset({"llama3", "llama-v3", "llama-bpe"})


def unknown_split(tokenizer: Any, file: Path) -> str | None:
    """Let a tokenizer cut as its file says.

    Args:
        tokenizer: What ``transformers`` built from the file; its rule is set where the library does
            not know it.
        file: The ``.gguf`` file.

    Returns:
        The name of a rule that is neither known to the library nor here; empty if the file names
        none. None if the tokenizer cuts as the file says.
    """
    from tokenizers import pre_tokenizers
    from transformers.integrations.gguf import gguf_tokenizer_mapping as library
    from transformers.integrations.gguf.reader import read_gguf_metadata

    metadata, _ = read_gguf_metadata(str(file))
    if metadata.get("tokenizer.ggml.model") != "gpt2":
        return None
    name = metadata.get("tokenizer.ggml.pre", "")
    backend = tokenizer.backend_tokenizer
    if name in _WHOLE_WORDS:
        backend.model.ignore_merges = True
    if name in _SAME:
        library.set_split_regex(tokenizer, {"pre_tokenizer_type": _SAME[name]})
    elif name in _NUMERALS:
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        )
    elif name not in _GPT2 and name not in library.GGUF_PRE_TOKENIZER_SPLITS:
        return "" if name == "default" else name
    return None
