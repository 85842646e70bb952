"""A classifier's opinion of texts: its clean label, its padding, and what can't serve."""

from types import SimpleNamespace

import pytest
import torch
from refusals import message
from transformers import BatchEncoding

from etw_lightning.scoring import gibberish_classifier as module
from etw_lightning.scoring.gibberish_classifier import clean_probabilities


def test_the_classifier_is_asked_for_its_clean_label(classifier_dir, tiny_tokenizer):
    from transformers import AutoModelForSequenceClassification

    texts = ["The town", "a river and an old mill", "book", "the the the the"]
    found = clean_probabilities(texts, str(classifier_dir), batch_size=3)
    model = AutoModelForSequenceClassification.from_pretrained(classifier_dir).eval()
    with torch.no_grad():
        for text, value in zip(texts, found, strict=True):
            ids = torch.tensor([tiny_tokenizer(text)["input_ids"]])
            own = torch.softmax(model(input_ids=ids).logits[0].double(), -1)
            assert value == pytest.approx(own[1].item(), abs=1e-6)
            assert own[1] != pytest.approx(own[0].item(), abs=1e-3), "or the label would not show"
    assert clean_probabilities([], str(classifier_dir)) == []


def test_32_texts_of_512_tokens_go_together_the_longest_first(monkeypatch):
    asked = []

    class Model(torch.nn.Module):
        config = SimpleNamespace(id2label={0: "noise", 1: "clean"})

        def forward(self, lengths):
            logits = torch.stack([torch.zeros(len(lengths)), lengths.log()], 1)
            return SimpleNamespace(logits=logits)

    def tokenizer(texts, **settings):
        asked.append((len(texts), settings))
        return BatchEncoding({"lengths": torch.tensor([float(len(text)) for text in texts])})

    monkeypatch.setattr(module, "_load", lambda _: (Model(), tokenizer))
    found = clean_probabilities(["a" * n for n in range(1, 41)], "anybody")
    # p = n / (1 + n).
    assert found == pytest.approx([n / (1 + n) for n in range(1, 41)], rel=1e-6)
    cut = {"padding": True, "truncation": True, "max_length": 512, "return_tensors": "pt"}
    assert asked == [(32, cut), (8, cut)]


def test_a_classifier_that_cannot_serve_is_an_error(
    classifier_dir, tiny_tokenizer, tmp_path, monkeypatch
):
    text = message(clean_probabilities, ["a"], str(classifier_dir), label="fluent")
    assert "has no label 'fluent'; its labels are noise, Clean, word salad." in text
    tiny_tokenizer.save_pretrained(tmp_path / "empty")
    text = message(clean_probabilities, ["a"], str(tmp_path / "empty"))
    assert text.startswith(f"gibberish_classifier {str(tmp_path / 'empty')!r} could not be loaded:")
    monkeypatch.setattr("etw_lightning.scoring.gibberish_classifier.hub_answers", lambda: False)
    text = message(clean_probabilities, ["a"], "nobody/gibberish")
    assert "the hub can't be reached and there is no local copy. Give the folder" in text
    assert "\n" not in text


def test_a_classifier_without_padding_pads_with_its_end_token(
    classifier_dir, tmp_path, tiny_tokenizer
):
    import copy
    import shutil

    folder = shutil.copytree(classifier_dir, tmp_path / "classifier")
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)
    texts = ["The town", "a river and an old mill"]
    expected = clean_probabilities(texts, str(classifier_dir))
    assert clean_probabilities(texts, str(folder)) == pytest.approx(expected, abs=1e-6)


def test_a_classifier_without_its_head_is_an_error_and_nothing_else(
    classifier_dir, tmp_path, caplog, capfd
):
    import shutil

    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(classifier_dir, tmp_path / "classifier")
    weights = load_file(folder / "model.safetensors")
    head = [name for name in weights if name.startswith(("score", "classifier"))]
    assert head
    kept = {name: weight for name, weight in weights.items() if name not in head}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    text = message(clean_probabilities, ["a"], str(folder))
    assert f"1 weight ({head[0]}) is missing" in text
    assert "REPORT" not in caplog.text + "".join(capfd.readouterr())
