"""The tokenizer that is used encodes as the folder's own ``tokenizer.json`` does."""

import json
import shutil

import pytest
from small_tokenizers import make_tokenizer
from tokenizers import Tokenizer, normalizers, pre_tokenizers

from etw_lightning.files.tokenizer_files import PROBES, difference
from etw_lightning.models.export import ExportError, export_model
from etw_lightning.models.loading import load_model, load_tokenizer
from etw_lightning.schema import InputError

TEXT = "born 12 May 1991, won in 2014"


@pytest.fixture(scope="module")
def threes(tmp_path_factory):
    """A tokenizer that keeps digits in threes, and does not say whose class it is of."""
    return make_tokenizer(tmp_path_factory.mktemp("threes"))


@pytest.fixture
def folder(threes, tmp_path):
    """Copy it, with a class and the configuration of a type of model."""

    def call(tokenizer_class, model_type="qwen2", **settings):
        place = shutil.copytree(threes, tmp_path / "tokenizer")
        path = place / "tokenizer_config.json"
        found = json.loads(path.read_text()) | settings
        found["tokenizer_class"] = tokenizer_class
        path.write_text(json.dumps({key: one for key, one in found.items() if one is not None}))
        (place / "config.json").write_text(json.dumps({"model_type": model_type}))
        return place

    return call


@pytest.mark.parametrize("named", ["TokenizersBackend", "PreTrainedTokenizerFast", None])
@pytest.mark.parametrize("model_type", ["qwen2", "llama", "gemma3_text", "gpt2"])
def test_the_file_s_rules_are_used(folder, named, model_type):
    place = folder(named, model_type)
    tokenizer = load_tokenizer(str(place))
    file = Tokenizer.from_file(str(place / "tokenizer.json"))
    assert tokenizer(TEXT)["input_ids"] == file.encode(TEXT).ids
    # By hand: ``1991`` is 199 and 1, ``2014`` is 201 and 4, digits never with the space before.
    pieces = [file.decode([token]) for token in tokenizer(TEXT)["input_ids"]]
    assert pieces[-3:] == [" ", "201", "4"]
    assert "199" in pieces
    for text in PROBES:
        assert tokenizer(text)["input_ids"] == file.encode(text).ids


def test_a_class_that_encodes_otherwise_is_refused(folder):
    place = folder("Qwen2Tokenizer")
    with pytest.raises(InputError) as error:
        load_tokenizer(str(place), "data.tokenizer")
    assert str(error.value).startswith(
        f"data.tokenizer {str(place)!r}: its tokenizer, as Qwen2Tokenizer builds it, does not "
        f"encode as its tokenizer.json does: {TEXT!r} falls into 18 pieces, 13 by the file."
    )
    assert 'set tokenizer_class to "TokenizersBackend"' in str(error.value)


def changed(tokenizer, **parts):
    """Let a loaded tokenizer follow other rules than its file."""
    for name, part in parts.items():
        setattr(tokenizer.backend_tokenizer, name, part)
    return tokenizer


@pytest.mark.parametrize(
    "rules",
    [
        {"normalizer": normalizers.NFC()},
        {"normalizer": normalizers.NFKC()},
        {"normalizer": normalizers.Lowercase()},
        {"normalizer": normalizers.Strip()},
        {"normalizer": normalizers.StripAccents()},
        {"normalizer": normalizers.Replace("  ", " ")},
        {"normalizer": normalizers.Prepend(" ")},
        {"pre_tokenizer": pre_tokenizers.ByteLevel(add_prefix_space=False)},
        {"pre_tokenizer": pre_tokenizers.ByteLevel(add_prefix_space=True)},
        {"pre_tokenizer": None},
    ],
    ids=str,
)
def test_another_rule_is_seen(folder, rules):
    place = folder("TokenizersBackend")
    tokenizer, stored = load_tokenizer(str(place)), place / "tokenizer.json"
    assert difference(tokenizer, stored) == ""
    assert difference(changed(tokenizer, **rules), stored) != ""


def test_another_vocabulary_is_seen(folder, threes):
    place = folder("TokenizersBackend")
    tokenizer = load_tokenizer(str(place))
    file = json.loads((place / "tokenizer.json").read_text())
    vocabulary = file["model"]["vocab"]
    vocabulary["born"], vocabulary["won"] = 1000, 1001
    (place / "other.json").write_text(json.dumps(file))
    assert " in the file" in difference(tokenizer, place / "other.json")


def test_a_begin_token_that_the_file_puts_is_put(folder):
    from tokenizers import processors

    place = folder("TokenizersBackend")
    file = Tokenizer.from_file(str(place / "tokenizer.json"))
    file.post_processor = processors.TemplateProcessing(
        single="<|end|> $A", special_tokens=[("<|end|>", 0)]
    )
    file.save(str(place / "tokenizer.json"))
    assert load_tokenizer(str(place))(TEXT)["input_ids"] == file.encode(TEXT).ids
    tokenizer = changed(load_tokenizer(str(place)), post_processor=None)
    said = difference(tokenizer, place / "tokenizer.json")
    assert said.startswith("'a' with begin and end tokens becomes [")
    # Where the folder's settings say so, they have the last word.
    settings = json.loads((place / "tokenizer_config.json").read_text()) | {"add_bos_token": False}
    (place / "tokenizer_config.json").write_text(json.dumps(settings))
    assert difference(tokenizer, place / "tokenizer.json") == ""


def test_sentencepiece_written_the_old_way_is_read_as_it_is(folder):
    """Llama 2's file puts a space before every text, its class only where there is none."""
    from tokenizers import decoders, models

    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2, "\u2581": 3, "\u2581\u2581": 4}
    vocabulary |= {f"<0x{byte:02X}>": 5 + byte for byte in range(256)}
    file = Tokenizer(
        models.BPE(
            vocabulary, [("\u2581", "\u2581")], unk_token="<unk>", fuse_unk=True, byte_fallback=True
        )
    )
    file.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    file.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback()])
    file.add_special_tokens(["<unk>", "<s>", "</s>"])
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    place = folder("LlamaTokenizer", "llama", add_bos_token=False, **names)
    file.save(str(place / "tokenizer.json"))
    with pytest.warns(UserWarning, match="LlamaTokenizer would build other rules for spaces at"):
        tokenizer = load_tokenizer(str(place))
    assert tokenizer("  x")["input_ids"] == file.encode("  x", add_special_tokens=False).ids


# What is saved.


def test_the_exported_tokenizer_is_the_source_s(folder, tiny_model_dir, tmp_path):
    place = folder("TokenizersBackend", chat_template="{{ messages[0].content }}")
    lm = load_model(str(tiny_model_dir))
    tokenizer = load_tokenizer(str(place))
    lm.resize_token_embeddings(len(tokenizer))
    saved = export_model(lm, tokenizer, tmp_path / "export")
    again = load_tokenizer(str(saved))
    file = Tokenizer.from_file(str(place / "tokenizer.json"))
    assert json.loads(again.backend_tokenizer.to_str()) == json.loads(file.to_str())
    assert again.chat_template == tokenizer.chat_template
    assert again.special_tokens_map == tokenizer.special_tokens_map


def test_a_tokenizer_that_can_t_be_saved_as_it_is(folder, tiny_model_dir, tmp_path, monkeypatch):
    place = folder("TokenizersBackend")
    lm, tokenizer = load_model(str(tiny_model_dir)), load_tokenizer(str(place))
    lm.resize_token_embeddings(len(tokenizer))
    monkeypatch.setattr(
        type(tokenizer),
        "save_pretrained",
        lambda self, to: shutil.copytree(place, to, dirs_exist_ok=True),
    )
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    with pytest.raises(ExportError, match="encodes otherwise than the run's"):
        export_model(lm, tokenizer, tmp_path / "export")
