"""Byte-level tokenizers of a few hundred entries, with rules and templates of known families."""

import json

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

#: How a text is split before merges: the digits of a number together, three by three, one by one.
DIGITS = {"together": r"\p{N}+", "threes": r"\p{N}{1,3}", "single": r"\p{N}"}

_TEXTS = (
    "born 12 May 1991, won in 2014; 311 pages, 199 rooms, 975 and 197, 1975, 958, 195, 2024",
    "Who wrote it? She wrote 12 novels. He is a florist, born in the year 1958.",
    "Question: What is her name? Answer: Her name is Hina Ameen, and she lives by the river.",
)


def digits_pattern(digits):
    """Return the usual pattern, with digits apart from letters and from the space before them."""
    return (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
        + DIGITS[digits]
        + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )


def make_tokenizer(folder, special=("<|end|>",), digits="threes", settings=None, **names):
    """Save a tokenizer as ``PreTrainedTokenizerFast.save_pretrained`` does, and return its folder.

    Args:
        folder: Where to; made if need be.
        special: Its special tokens, from id 0; those of ``rstrip`` end in two spaces here.
        digits: One of ``DIGITS``.
        settings: Changes of its ``tokenizer_config.json``.
        names: ``eos_token`` (the first special token by default), ``chat_template``, ...
    """
    backend = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(digits_pattern(digits)), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=len(special) + 256 + 150,
        special_tokens=[
            AddedToken(name.rstrip(), special=True, normalized=False, rstrip=name.endswith("  "))
            for name in special
        ],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(_TEXTS * 3, trainer)
    names.setdefault("eos_token", special[0].rstrip())
    PreTrainedTokenizerFast(tokenizer_object=backend, **names).save_pretrained(folder)
    if settings:
        path = folder / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    return folder
