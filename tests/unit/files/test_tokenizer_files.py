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
    assert said.startswith(f"{TEXT!r} with begin and end tokens becomes [")
    # Where the folder's settings say so, they have the last word; but not of what they don't say.
    settings = json.loads((place / "tokenizer_config.json").read_text())
    for says, is_alike in (
        ({"add_bos_token": False}, True),
        ({"add_bos_token": True}, False),
        ({"add_eos_token": False}, False),
    ):
        (place / "tokenizer_config.json").write_text(json.dumps(settings | says))
        assert (difference(tokenizer, place / "tokenizer.json") == "") == is_alike


#: What a token may say of how it is found in a text, each in a way that a text shows.
FLAGS = {
    "lstrip": {"lstrip": True},
    "rstrip": {"rstrip": True},
    "single_word": {"single_word": True},
    "normalized": {"normalized": True},
}


@pytest.fixture
def flagged(folder):
    """A folder whose end token has these flags, and one more token that is no special one."""

    def call(tokenizer_class, normalizer=None, **flags):
        place = folder(tokenizer_class)
        file = json.loads((place / "tokenizer.json").read_text())
        file["added_tokens"][0] |= flags
        more = {"id": len(file["model"]["vocab"]), "content": "<think>", "special": False}
        file["added_tokens"].append(file["added_tokens"][0] | more)
        if normalizer is not None:
            file["normalizer"] = {"type": normalizer}
        (place / "tokenizer.json").write_text(json.dumps(file))
        return place, Tokenizer.from_file(str(place / "tokenizer.json"))

    return call


MARKED = "Yes <|end|> no\n<|end|>\nPerhaps<|end|>so <|END|> <think> it is"


@pytest.mark.parametrize("flags", FLAGS.values(), ids=FLAGS)
def test_a_token_is_found_as_the_file_says(flagged, flags):
    place, file = flagged("TokenizersBackend", "Lowercase", **flags)
    tokenizer = load_tokenizer(str(place))
    ids = file.encode(MARKED).ids
    assert tokenizer(MARKED)["input_ids"] == ids
    # The end token, named by the settings, is left out of decoded text; the other is not.
    assert tokenizer.decode(ids, skip_special_tokens=True) == file.decode(ids)
    assert "<think>" in file.decode(ids)
    plain = flagged_as(place, dict.fromkeys(flags, False))
    assert plain.encode(MARKED).ids != ids, "else the flag would not show"


def flagged_as(place, flags):
    """Return the file's tokenizer with other flags of its tokens."""
    file = json.loads((place / "tokenizer.json").read_text())
    file["added_tokens"] = [one | flags for one in file["added_tokens"]]
    return Tokenizer.from_str(json.dumps(file))


@pytest.mark.parametrize("flags", FLAGS.values(), ids=FLAGS)
def test_other_flags_of_a_token_are_seen(flagged, flags):
    place, _ = flagged("TokenizersBackend", "Lowercase", **flags)
    tokenizer = load_tokenizer(str(place))
    tokenizer._tokenizer = flagged_as(place, dict.fromkeys(flags, False))
    said = difference(tokenizer, place / "tokenizer.json")
    assert "which says otherwise how '<|end|>' is found" in said


@pytest.mark.parametrize("is_special", [True, False])
def test_a_token_that_is_left_out_of_decoded_text_is_seen(flagged, is_special):
    """A thought that is left out of what a model says, or an end that is kept there."""
    place, _ = flagged("TokenizersBackend")
    tokenizer = load_tokenizer(str(place))
    tokenizer._tokenizer = flagged_as(place, {"special": is_special})
    said = difference(tokenizer, place / "tokenizer.json")
    what = "'<think>' is left out of" if is_special else "'<|end|>' is kept in"
    assert said == f"{what} decoded text, unlike by the file"


def test_settings_that_change_a_token_are_refused(flagged):
    place, _ = flagged("TokenizersBackend")
    settings = json.loads((place / "tokenizer_config.json").read_text())
    settings["added_tokens_decoder"] = {"363": {"content": "<think>", "lstrip": True}}
    (place / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(InputError) as error:
        load_tokenizer(str(place))
    assert "which says otherwise how '<think>' is found" in str(error.value)
    assert "take out of tokenizer_config.json what says otherwise" in str(error.value)


def test_a_token_that_the_settings_name_is_found_as_the_file_says_and_left_out(flagged):
    place, file = flagged("TokenizersBackend")
    settings = json.loads((place / "tokenizer_config.json").read_text())
    settings["pad_token"] = {"__type": "AddedToken", "content": "<think>", "lstrip": True}
    (place / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer, ids = load_tokenizer(str(place)), file.encode(MARKED).ids
    assert tokenizer(MARKED)["input_ids"] == ids
    assert "<think>" not in tokenizer.decode(ids, skip_special_tokens=True)


def test_settings_of_a_wrong_kind_are_one_line(flagged):
    place, _ = flagged("TokenizersBackend")
    settings = json.loads((place / "tokenizer_config.json").read_text())
    settings["pad_token"] = {"content": "<think>"}
    (place / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(InputError, match="could not be loaded: Special token pad_token has to be"):
        load_tokenizer(str(place))


def test_a_class_that_drops_a_token_s_flags_is_not_taken(tmp_path):
    """Qwen2's class builds its end token anew, without the spaces that the file's one takes."""
    place = make_tokenizer(tmp_path / "own", special=("<|end|>  ",), digits="single")
    settings = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|end|>"}
    path = place / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    (place / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    file = json.loads((place / "tokenizer.json").read_text())
    assert file["added_tokens"][0]["rstrip"]
    file["normalizer"] = {"type": "NFC"}
    (place / "tokenizer.json").write_text(json.dumps(file))
    with pytest.warns(UserWarning, match=r"Qwen2Tokenizer would build other .* beside its own tok"):
        tokenizer = load_tokenizer(str(place))
    text = "Yes <|end|>\n no <|end|> "
    assert tokenizer(text)["input_ids"] == Tokenizer.from_str(json.dumps(file)).encode(text).ids


def test_a_decoder_that_says_something_else_is_seen(folder):
    from tokenizers import decoders

    place = folder("TokenizersBackend")
    tokenizer = changed(load_tokenizer(str(place)), decoder=decoders.Metaspace())
    said = difference(tokenizer, place / "tokenizer.json")
    assert said.startswith("the tokens of 'born 12 May 1991, won in 2014' are decoded as ")


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
    flags = {"lstrip": True, "rstrip": True, "single_word": True, "normalized": True}
    changed_file = json.loads((place / "tokenizer.json").read_text())
    changed_file["added_tokens"][0] |= flags
    (place / "tokenizer.json").write_text(json.dumps(changed_file))
    lm = load_model(str(tiny_model_dir))
    tokenizer = load_tokenizer(str(place))
    lm.resize_token_embeddings(len(tokenizer))
    saved = export_model(lm, tokenizer, tmp_path / "export")
    again = load_tokenizer(str(saved))
    file = Tokenizer.from_file(str(place / "tokenizer.json"))
    assert json.loads(again.backend_tokenizer.to_str()) == json.loads(file.to_str())
    assert flags.items() <= json.loads(file.to_str())["added_tokens"][0].items()
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
