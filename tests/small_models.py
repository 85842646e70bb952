"""Configurations of models small enough for a test."""


def llama_config(vocab_size, width, layers=2, *, inner=None, heads=4, **others):
    """Return a Llama's configuration; of two heads for keys and values, where nothing else is said.

    Args:
        vocab_size: Entries of the vocabulary.
        width: Hidden width.
        layers: Number of layers.
        inner: Width between; twice ``width`` where it is not given.
        heads: Attention heads.
        others: Further fields, by ``transformers``' names.
    """
    from transformers import LlamaConfig

    sizes = {"hidden_size": width, "intermediate_size": inner or 2 * width}
    sizes |= {"num_attention_heads": heads, "num_key_value_heads": 2}
    return LlamaConfig(vocab_size=vocab_size, num_hidden_layers=layers, **sizes | others)


def special_tokens(tokenizer):
    """Return the fields of a configuration that name a tokenizer's special tokens."""
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    return {name: getattr(tokenizer, name) for name in names}
