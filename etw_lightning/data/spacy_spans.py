"""Words that a spaCy model finds in texts: nouns or entities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast, get_args

from etw_lightning.schema import InputError

__all__ = ["Kind", "spacy_spans"]

#: What is looked for: single words tagged NOUN or PROPN, or named entities.
Kind = Literal["nouns", "entities"]

_NOUNS = ("NOUN", "PROPN")
#: Parts of a model that find each kind, and those that these lean on.
_FINDERS: dict[str, tuple[str, ...]] = {
    "nouns": ("tagger", "morphologizer"),
    "entities": ("ner", "beam_ner", "entity_ruler", "span_ruler"),
}
_SUPPORT = ("tok2vec", "transformer", "curated_transformer", "attribute_ruler")


def spacy_spans(
    texts: Sequence[str], kind: Kind, model: str, key: str = "model.weighting: Spacy.model"
) -> list[list[tuple[int, int]]]:
    """Return the characters of all nouns or entities of each text.

    Parts of the model that play no role in it are left out.

    Args:
        texts: What is searched; an empty one has no spans.
        kind: ``nouns``: tokens tagged NOUN or PROPN, each on its own. ``entities``: named
            entities, whole.
        model: Name of an installed spaCy model, or its folder.
        key: Configuration key that errors name.

    Returns:
        Start and end (exclusive) of each, in order, ``(B,)`` lists.

    Raises:
        InputError: If spaCy or the model is not installed, or the model can't find the kind.
    """
    assert kind in get_args(Kind)
    nlp = _load(model, key)
    factories = {name: nlp.get_pipe_meta(name).factory for name in nlp.pipe_names}
    if not set(_FINDERS[kind]) & set(factories.values()):
        raise InputError(
            f"{key} is {model!r}, which can't find {kind}: it has none of "
            f"{', '.join(_FINDERS[kind])}. Its parts are {', '.join(factories) or 'none'}."
        )
    used = {*_FINDERS[kind], *_SUPPORT}
    # Texts are read, not parsed, so the limit that guards the parser's memory does not matter.
    nlp.max_length = max([nlp.max_length, *map(len, texts)])
    with nlp.select_pipes(enable=[name for name in factories if factories[name] in used]):
        return [_spans(doc, kind) for doc in nlp.pipe(texts)]


def _load(model: str, key: str) -> Any:
    """Return a spaCy model."""
    try:
        import spacy
    except ImportError as error:
        raise InputError(
            f"{key} is {model!r}, a spaCy model, but spaCy is not installed: "
            f"pip install spacy && python -m spacy download {model}"
        ) from error
    try:
        return cast(Any, spacy).load(model)
    except (OSError, ValueError, ImportError) as error:
        # spaCy's first sentence; what follows guesses at the cause.
        reason = " ".join(str(error).split()).split(". ")[0].rstrip(".")
        raise InputError(
            f"{key} must be an installed spaCy model; {model!r} can't be loaded ({reason:.200}). "
            f"Get it: python -m spacy download {model}"
        ) from error
    except (TypeError, AttributeError) as error:
        # spaCy calls the function ``load`` of any package of that name.
        raise InputError(
            f"{key} must be an installed spaCy model, such as en_core_web_sm; {model!r} is a "
            "package that holds none. Get one: python -m spacy download en_core_web_sm"
        ) from error


def _spans(doc: Any, kind: Kind) -> list[tuple[int, int]]:
    if kind == "entities":
        return [(entity.start_char, entity.end_char) for entity in doc.ents]
    return [(word.idx, word.idx + len(word.text)) for word in doc if word.pos_ in _NOUNS]
