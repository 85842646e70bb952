"""A GGUF file's tokenizer cuts texts by the rule that the file names, or is refused."""

import pytest
from transformers.convert_slow_tokenizer import bytes_to_unicode

from etw_lightning.models.loading import load_tokenizer
from etw_lightning.schema import InputError

#: In the order in which they are made; no merge leads to the last word.
MERGES = ["1 9", "9 8", "19 98"]
WORDS = ["19", "98", "1998", "word"]
#: Of each name what it makes of "1998": pieces of any length, of up to three numerals, of one.
WHOLE, THREE, ONE = ["1998"], ["19", "9", "8"], list("1998")
RULES = {
    "gpt-2": WHOLE,
    "olmo": WHOLE,
    "llama-bpe": THREE,
    "glm4": THREE,
    "qwen2": ONE,
    "stablelm2": ONE,
    "smollm": ONE,
    "command-r": ONE,
    "refact": ONE,
}


@pytest.fixture
def gguf_file(tmp_path):
    gguf = pytest.importorskip("gguf")

    def call(rule):
        path = tmp_path / "model.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_tokenizer_model("gpt2")
        if rule is not None:
            writer.add_tokenizer_pre(rule)
        writer.add_token_list([*bytes_to_unicode().values(), *WORDS])
        writer.add_token_merges(MERGES)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
        return str(path)

    return call


@pytest.mark.parametrize(("rule", "pieces"), RULES.items())
def test_numerals_are_cut_as_the_rule_says(gguf_file, rule, pieces):
    tokenizer = load_tokenizer(gguf_file(rule))
    assert tokenizer.tokenize("1998") == pieces
    assert tokenizer.decode(tokenizer("in 1998, x²!")["input_ids"]) == "in 1998, x²!"


@pytest.mark.parametrize(
    ("rule", "pieces"), [("llama-bpe", ["word"]), ("gpt-2", list("word")), ("qwen2", list("word"))]
)
def test_words_without_a_merge_are_one_token_where_the_model_has_it_so(gguf_file, rule, pieces):
    assert load_tokenizer(gguf_file(rule)).tokenize("word") == pieces


@pytest.mark.parametrize("rule", ["deepseek-v3", "falcon", "of tomorrow"])
def test_an_unknown_rule_is_refused(gguf_file, rule):
    path = gguf_file(rule)
    with pytest.raises(InputError) as caught:
        load_tokenizer(path)
    assert str(caught.value) == (
        f"model.pretrained {path!r}: its tokenizer cuts texts by the rule {rule!r}, which the "
        "library does not know: it would cut as GPT-2 does. Give the folder of the model's own "
        "tokenizer as data.tokenizer."
    )


@pytest.mark.parametrize("rule", [None, "default"])
def test_a_file_that_names_no_rule_is_told(gguf_file, rule):
    path = gguf_file(rule)
    with pytest.warns(UserWarning, match="does not say by which rule its tokenizer cuts texts"):
        assert load_tokenizer(path).tokenize("1998") == WHOLE
