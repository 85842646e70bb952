"""Whether a tokenizer encodes as the ``tokenizer.json`` it was loaded from does.

``transformers`` builds some classes anew from the vocabulary, with their own rules for digits,
spaces and letters, whatever rules the file holds; and takes a class by the model's type where the
folder names none of its own. What a model is then fed is not what it was trained on.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["PROBES", "STORED", "difference", "encoding_of", "named_class", "own_code"]

#: The file that says how a text is encoded.
STORED = "tokenizer.json"

#: Texts that rules of splitting and normalising treat each in its own way: digits, spaces, line
#: ends, contractions, capitals within words, signs, accents in two forms, letters of other scripts.
PROBES = (
    "born 12 May 1991, won in 2014",
    "1 12 123 1234 12345 0.5 1,000,000 3rd x2y 10km 2e-5 \u0664\u0662 \uff14\uff12 \u2163 \xbd",
    "She's won't they'll I'M IT'S he'd we've 'tis rock'n'roll d'être l\u2019eau",
    "HTTPServer iPhone OpenAI camelCase SNAKE_CASE McDonald ALL CAPS",
    "a  b   c\td\t\te\nf\n\ng\r\nh \n i.",
    "(and) [signs] {x}: a/b\\c #tag @me -- --- ... ?! $5 50% «q» \u201cq\u201d \u2014 \u2013.",
    "def f(x):\n    return x  # 4 spaces\n\treturn",
    "https://example.org/a-b_c?d=1&e=2 me@example.org",
    "café cafe\u0301 ﬁne Straße İstanbul naïve Ångström A\u030angstro\u0308m",
    "Она родилась в Москве, Ελληνικά, 中文没有空格 日本語のテキスト 한국어 \u1112\u1161\u11ab",
    "العربية עברית हिन्दी ไทย",
    "👍🏽👨‍👩‍👧 ☃️ ∑∫√ ™ \u00a0\u200b\u200d\ufeff x",
)
#: Texts with spaces at their ends. SentencePiece's were written down in two ways, which differ
#: there alone.
_OUTER = ("  leading", " one", "trailing  ", "line\n", "")


def difference(tokenizer: Any, stored: Path, *, outer_spaces: bool = True) -> str:
    """Say in what a tokenizer encodes otherwise than the file does; empty if in nothing.

    Rules are compared by what they make of ``PROBES``, before merges are looked up: so a small
    vocabulary hides nothing, and two ways of writing one rule are one.

    Args:
        tokenizer: A fast tokenizer of ``transformers``.
        stored: The ``tokenizer.json`` of its folder.
        outer_spaces: Also compare texts that begin or end with spaces.
    """
    from tokenizers import Tokenizer

    own, file = tokenizer.backend_tokenizer, Tokenizer.from_file(str(stored))
    vocabulary, used = file.get_vocab(), own.get_vocab()
    other = next((token for token, place in vocabulary.items() if used.get(token) != place), None)
    if other is not None:
        return f"{other!r} is token {used.get(other)}, {vocabulary[other]} in the file"
    for text in PROBES + (_OUTER if outer_spaces else ()):
        pieces, wanted = _pieces(own, text), _pieces(file, text)
        if pieces != wanted:
            return f"{text!r:.40} falls into {len(pieces)} pieces, {len(wanted)} by the file"
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        plain = _encoded(file, text, special=False)
        if list(ids) != plain:
            return f"{text!r:.40} becomes {len(ids)} tokens, {len(plain)} other ones by the file"
        said, wanted_text = own.decode(plain).strip(), file.decode(plain).strip()
        if said != wanted_text:
            return f"the tokens of {text!r:.40} are decoded as {said!r:.40}"
    if outer_spaces and (found := _otherwise_taken(own, file)):
        return found
    return _otherwise_left_out(tokenizer, file) or _otherwise_framed(tokenizer, file, stored.parent)


def _otherwise_taken(own: Any, file: Any) -> str:
    """Say which added token is found elsewhere in a text, or takes other spaces with it."""
    for token in file.get_added_tokens_decoder().values():
        name = token.content
        for text in (f"a{name}b {name} c\n{name}\nd", name.upper(), name.lower()):
            found, wanted = (_encoded(one, text, special=False) for one in (own, file))
            if found != wanted:
                return (
                    f"{text!r:.60} becomes {len(found)} tokens, {len(wanted)} other ones by the "
                    f"file, which says otherwise how {name!r} is found (lstrip, rstrip, "
                    "single_word, normalized)"
                )
    return ""


def _otherwise_left_out(tokenizer: Any, file: Any) -> str:
    """Say which added token is left out of decoded text, or kept there, unlike by the file.

    One that ends or begins texts may be left out whatever the file says.
    """
    own, named = tokenizer.backend_tokenizer, set(tokenizer.all_special_tokens)
    for place, token in file.get_added_tokens_decoder().items():
        is_left_out = own.decode([place]) == ""
        if is_left_out != (file.decode([place]) == "") and not (
            is_left_out and token.content in named
        ):
            what = "left out of" if is_left_out else "kept in"
            return f"{token.content!r} is {what} decoded text, unlike by the file"
    return ""


def _otherwise_framed(tokenizer: Any, file: Any, folder: Path) -> str:
    """Say which tokens a text begins and ends with if neither file nor settings say these.

    What the folder's settings say of it has the last word, where its class heeds them.
    """
    text, settings = PROBES[0], _settings(folder)
    plain = _encoded(file, text, special=False)
    framed = _encoded(file, text, special=True)
    start = next((n for n in range(len(framed)) if framed[n : n + len(plain)] == plain), 0)
    begin, end = framed[:start], framed[start + len(plain) :]
    for name, token in (("add_bos_token", "bos"), ("add_eos_token", "eos")):
        said, place = settings.get(name), getattr(tokenizer, f"{token}_token_id")
        if said is not None:
            other = [place] if said else []
            begin, end = (other, end) if token == "bos" else (begin, other)
    ids = list(tokenizer(text)["input_ids"])
    if ids in (framed, begin + plain + end):
        return ""
    return f"{text!r} with begin and end tokens becomes {ids}, {framed} by the file"


def _pieces(backend: Any, text: str) -> list[str]:
    """Return what a text is split into before tokens are looked up."""
    shown = text if backend.normalizer is None else backend.normalizer.normalize_str(text)
    if backend.pre_tokenizer is None:
        return [shown] if shown else []
    return [piece for piece, _ in backend.pre_tokenizer.pre_tokenize_str(shown) if piece]


def _encoded(backend: Any, text: str, *, special: bool) -> list[int]:
    backend.no_truncation()
    backend.no_padding()
    return list(backend.encode(text, add_special_tokens=special).ids)


def _settings(folder: Path) -> dict[str, Any]:
    """Return what ``tokenizer_config.json`` says; nothing if it can't be read."""
    try:
        found = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def named_class(folder: Path) -> str:
    """Return the class a folder's settings name; if none, the one that reads the file as it is."""
    named = _settings(folder).get("tokenizer_class")
    return named if isinstance(named, str) and named.isidentifier() else "TokenizersBackend"


def own_code(folder: Path) -> str:
    """Return the class of a tokenizer that is code of its folder's; empty if it is a known one."""
    import transformers

    settings, named = _settings(folder), named_class(folder)
    has_code = "AutoTokenizer" in (settings.get("auto_map") or {})
    return named if has_code and not hasattr(transformers, named) else ""


def encoding_of(tokenizer: Any) -> dict[str, Any]:
    """Return all that decides what a text, or a chat, becomes, in values that can be compared."""
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    return {
        # Of the last call, not of the tokenizer.
        **{name: part for name, part in rules.items() if name not in ("padding", "truncation")},
        "special": tokenizer.special_tokens_map,
        "chat_template": tokenizer.chat_template,
    }
