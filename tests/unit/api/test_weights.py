"""``weights`` and ``etw_weights``: the weights of one text, and of anybody's logits."""

import io
import math
from html import escape

import pytest
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

from etw_lightning import etw_weights, weights
from etw_lightning.api.token_table import TokenWeights
from etw_lightning.kernels.signals import TokenSignals
from etw_lightning.models.loading import LabelScorer
from etw_lightning.schema import InputError
from etw_lightning.weighting import ETW, TokenWeighting

TEXT = "The town of Quillmere lies by a river."


@pytest.fixture(scope="module")
def loaded(tiny_model_dir):
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    return model.eval(), AutoTokenizer.from_pretrained(tiny_model_dir)


def entropies_of(logits, temperature=1.0):
    """The formula, written down again, in float64."""
    p = (logits.double() / temperature).softmax(-1)
    return -(p * p.log()).sum(-1)


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(3, 7, 11, generator=generator)
    labels = torch.randint(11, (3, 7), generator=generator)
    labels[0, :3] = labels[1, 5:] = labels[2] = -100
    return logits, labels


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_etw_weights_are_the_formula_at_the_labels_own_places(batch, temperature):
    logits, labels = batch
    found = etw_weights(logits, labels, temperature)
    assert found.shape == labels.shape
    assert not found.requires_grad
    for row in range(3):
        places = [t for t in range(1, 7) if labels[row, t] != -100]
        entropies = [entropies_of(logits[row, t - 1], temperature).item() for t in places]
        expected = {
            t: len(places) * one / math.fsum(entropies)
            for t, one in zip(places, entropies, strict=True)
        }
        for t in range(7):
            assert found[row, t].item() == pytest.approx(expected.get(t, 0.0), abs=1e-6)


def test_a_label_at_the_first_token_has_no_weight(batch):
    logits, labels = batch
    assert labels[1, 0] != -100
    assert etw_weights(logits, labels)[1, 0] == 0


def test_etw_weights_in_float64_and_bfloat16(batch):
    logits, labels = batch
    wide = etw_weights(logits.double(), labels)
    assert wide.dtype == torch.float64
    assert torch.allclose(wide.float(), etw_weights(logits, labels), atol=1e-6)
    narrow = etw_weights(logits.bfloat16(), labels)
    assert narrow.dtype == torch.float32
    assert torch.allclose(narrow, etw_weights(logits.bfloat16().float(), labels), atol=1e-6)


def test_impossible_tokens_have_no_part_in_an_entropy(batch):
    logits, labels = batch
    barred = torch.cat([logits, torch.full((3, 7, 2), -torch.inf)], -1)
    assert torch.allclose(etw_weights(barred, labels), etw_weights(logits, labels))


def test_what_etw_weights_can_not_take_is_refused(batch):
    logits, labels = batch
    with pytest.raises(ValueError, match="labels"):
        etw_weights(logits, labels[:, 1:])
    with pytest.raises(ValueError, match="temperature"):
        etw_weights(logits, labels, 0.0)


def test_etw_weights_are_those_of_training(loaded):
    model, tokenizer = loaded
    ids = torch.tensor([tokenizer(TEXT)["input_ids"]])
    labels = ids.clone()
    labels[:, :3] = -100
    with torch.no_grad():
        logits = model(ids).logits
        signals = LabelScorer(model)(ids, torch.ones_like(ids), labels, {"entropies"}, 2.0)
    inside = ETW(temperature=2.0)(signals)
    assert torch.allclose(etw_weights(logits, labels, 2.0)[0, 3:], inside, atol=1e-5)


def test_weights_of_a_text(loaded):
    model, tokenizer = loaded
    found = weights(model, tokenizer, TEXT)
    ids = torch.tensor([tokenizer(TEXT)["input_ids"]])
    with torch.no_grad():
        logits = model(ids).logits[0]
    entropies = entropies_of(logits[:-1])
    n = len(entropies)
    assert len(found) == n
    assert found.entropies == pytest.approx(entropies.tolist(), abs=1e-5)
    assert found.weights == pytest.approx((n * entropies / entropies.sum()).tolist(), abs=1e-5)
    expected = logits[:-1].double().softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
    assert found.probabilities == pytest.approx(expected.tolist(), abs=1e-6)
    assert "".join(found.tokens) == TEXT[-len("".join(found.tokens)) :]
    assert list(found.frame().columns) == ["token", "weight", "entropy", "probability"]


def test_the_first_token_of_a_text_is_told_as_one_without_a_weight(loaded):
    model, tokenizer = loaded
    found = weights(model, tokenizer, TEXT)
    assert found.first
    assert found.first + "".join(found.tokens) == TEXT
    said = f"{found.first!r} stands first: nothing predicts it, so it has no weight"
    assert said in " ".join(repr(found).split())
    assert escape(said) in found._repr_html_()
    row = {"question": "Where is Quillmere?", "answer": "By a river."}
    assert weights(model, tokenizer, row).first == ""


def test_weights_of_an_answer_leave_out_the_question(loaded):
    row = {"question": "Where is Quillmere?", "answer": "By a river."}
    found = weights(*loaded, row)
    assert "".join(found.tokens).startswith("By a river.")
    assert "Where" not in "".join(found.tokens)
    assert sum(found.weights) == pytest.approx(len(found))


def test_weights_of_words(loaded):
    row = {"question": "Where is Quillmere?", "answer": "By Quillmere's old river."}
    plain, found = weights(*loaded, row, ETW()), weights(*loaded, row, ETW(unit="word"))
    text = "".join(plain.tokens)
    starts = [text.index(word) for word in ("By", "Quillmere's", "old", "river")]
    ends = [starts[1] - 1, starts[2] - 1, starts[3] - 1, text.index(".")]
    sums, place = [0.0] * 4, 0
    words = []
    for token, entropy in zip(plain.tokens, plain.entropies, strict=True):
        stop = place + len(token)
        inside = [i for i in range(4) if place < ends[i] and stop > starts[i]]
        words.append(inside[0] if inside else None)
        if inside:
            sums[inside[0]] += entropy
        place = stop
    assert len(set(words)) == 5
    assert len([word for word in words if word == 1]) > 1, "a word of several tokens"
    values = [
        entropy if word is None else sums[word]
        for word, entropy in zip(words, plain.entropies, strict=True)
    ]
    expected = [len(values) * value / sum(values) for value in values]
    assert found.weights == pytest.approx(expected, rel=1e-4)
    assert found.entropies == plain.entropies


def test_the_model_is_left_as_it_was(loaded):
    model, tokenizer = loaded
    model.train()
    weights(model, tokenizer, TEXT)
    assert model.training
    assert all(weight.requires_grad for weight in model.parameters())
    model.eval()


def test_a_weighting_is_a_name_or_an_object(loaded, tiny_model_dir):
    assert set(weights(*loaded, TEXT, "uniform").weights) == {1.0}
    assert weights(*loaded, TEXT, ETW(top_share=0.2)).weights.count(0.0) > 0
    one, two = weights(*loaded, TEXT, "wga"), weights(*loaded, TEXT)
    assert one.weights != two.weights
    by_name = weights(str(tiny_model_dir), None, TEXT)
    assert by_name.weights == pytest.approx(two.weights, abs=1e-6)


def test_a_weighting_that_compares_needs_the_target_model(loaded):
    with pytest.raises(InputError, match=r"reads reference_logps.*give reference"):
        weights(*loaded, TEXT, "tnpo")
    # Beside itself a model is as likely as itself: TNPO's weight is 1.
    assert weights(*loaded, TEXT, "tnpo", reference=loaded[0]).weights == pytest.approx(
        [1.0] * len(weights(*loaded, TEXT)), abs=1e-5
    )


def test_what_can_not_be_weighed_is_refused(loaded):
    with pytest.raises(InputError, match="reads marked"):
        weights(*loaded, TEXT, "annotated")
    with pytest.raises(InputError, match=r"weighting must be .*'etv'"):
        weights(*loaded, TEXT, "etv")
    with pytest.raises(InputError, match="text must be a text"):
        weights(*loaded, "")
    with pytest.raises(InputError, match="max_length = 4"):
        weights(*loaded, TEXT, max_length=4)


HOSTILE = TokenWeights(
    ["<b>x</b>", "[red]y[/red]", "\x1b[31mz\x1b[0m", "\n", "<|eos|>"],
    [0.0, 1.0, 2.0, 1.0, 1.0],
    [0.5] * 5,
    [0.1] * 5,
    "<i>ETW</i>",
)


def test_a_notebook_shows_tokens_as_they_are_written():
    page = HOSTILE._repr_html_()
    assert "<b>" not in page
    assert "<i>" not in page
    assert "&lt;b&gt;x&lt;/b&gt;" in page
    assert "\\x1b[31mz" in page
    assert "\x1b" not in page
    assert page.count("<tr>") == 6
    # The largest weight has the full colour, none has none.
    assert "rgba(230,90,60,1.000)" in page
    assert "rgba(230,90,60,0.000)" in page


def test_a_terminal_shows_tokens_as_they_are_written():
    page = io.StringIO()
    Console(file=page, force_terminal=True, color_system="truecolor", width=80).print(HOSTILE)
    assert "[red]y[/red]" in page.getvalue()
    assert "\\x1b[31mz\\x1b[0m" in page.getvalue()
    assert "\x1b[31mz" not in page.getvalue()
    assert "48;2;230;90;60" in page.getvalue(), "coloured"
    shown = repr(HOSTILE)
    assert "\x1b" not in shown, "what is no terminal gets no colours"
    assert "2.0000" in shown


class Own(TokenWeighting):
    def __call__(self, signals: TokenSignals):
        return (signals.labels % 2).float()


def test_a_weighting_of_ones_own(loaded):
    assert set(weights(*loaded, TEXT, Own()).weights) == {0.0, 1.0}
