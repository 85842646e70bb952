#!/usr/bin/env bash
# textdescriptives 2.8.4: the "fraction" of characters in the top n-gram is 3.5 for an answer of one word over
# and over, and the fraction in duplicate n-grams of an answer behind its prompt is 0 where all of it repeats.
#
# The top n-gram's share is said to be the "fraction of characters in a document which are contained within"
# it; the code multiplies its length by its count, and where a text repeats, the occurrences overlap: each
# character counts up to n times. (The sibling for duplicates takes care "not to count overlapping n-grams
# twice".) Such answers are what a broken model writes, and the mean over answers drowns in them.
# duplicate_ngram_fraction takes a Doc or a Span, but marks the repeats by their place in the Doc, in a
# list as long as the Span: those of a Span that doesn't begin the Doc move to the right and fall off its
# end. A Doc is right.
#
# Seen with textdescriptives 2.8.4, spacy 3.8.18, numpy 1.26.4, Python 3.11. The component's Doc._.quality has
# the same numbers (its Span._.quality fails with a TypeError). Right: characters that any occurrence covers.
#   top n-gram, n                     2       3       4
#   "no", 50 times                  1.64    2.58    3.47     right 1.00 for all
#   "the cat", 25 times              .88    1.33    1.81     right .88, .98, 1.00
#   duplicate 5-grams of an answer that says one sentence 6 times
#   as Doc                          1.00
#   as Span behind 10 tokens         .82                     right 1.00
#   as Span behind 60 tokens         .00                     right 1.00
# Exits with another status than 0 if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q spacy==3.8.18 numpy==1.26.4 pandas==3.0.6 pydantic==2.14.3 \
  pyphen==0.18.1 ftfy==6.3.1
"$folder/env/bin/pip" install -q --no-deps textdescriptives==2.8.4
cd "$folder"
env -u PYTHONPATH "$folder/env/bin/python" - <<'PY'
import sys
from collections import Counter
from importlib.metadata import version

import spacy
from textdescriptives.components.quality import duplicate_ngram_fraction, top_ngram_chr_fraction

print(*(f"{name} {version(name)}" for name in ("textdescriptives", "spacy", "numpy")))
english = spacy.blank("en")


def covered(tokens, size, top):
    """Share of characters inside the first most frequent n-gram, or inside all that come twice."""
    grams = [tokens[start : start + size] for start in range(len(tokens) - size + 1)]
    counts = Counter(gram.text for gram in grams)
    chosen = {counts.most_common(1)[0][0]} if top else {text for text in counts if counts[text] > 1}
    places = [range(gram.start_char, gram.end_char) for gram in grams if gram.text in chosen]
    return len({place for part in places for place in part}) / len(tokens.text)


same = True
for text, seen in (
    (" ".join(["no"] * 50), (1.644, 2.577, 3.470)),
    (" ".join(["the cat"] * 25), (0.879, 1.327, 1.809)),
):
    doc = english(text)
    found = top_ngram_chr_fraction(doc, (2, 4))
    for size, value in zip((2, 3, 4), seen):
        right = covered(doc[:], size, top=True)
        print(f"{text[:10]}.. top {size}-gram: {found[size]:.3f}, right {right:.3f}")
        same &= abs(found[size] - value) < 0.001 and 0.87 < right <= 1

PROMPT = "Who wrote the book about the northern harbour towns ? "
OTHER = " ".join(f"word{number}" for number in range(50)) + " "
ANSWER = "I do not know the answer to that . " * 5 + "I do not know the answer to that ."
for before, name, seen in (("", "Doc", 1.0), (PROMPT, "Span", 0.823), (OTHER + PROMPT, "Span", 0.0)):
    behind = len(english(before))
    doc = english(before + ANSWER)
    tokens = doc[behind:] if before else doc
    assert tokens.text == ANSWER
    found = duplicate_ngram_fraction(tokens, (5, 5))[5]
    right = covered(doc[behind:], 5, top=False)
    print(f"answer as {name} behind {behind} tokens, duplicate 5-grams: {found:.3f}, right {right:.3f}")
    same &= abs(found - seen) < 0.005 and right == 1
sys.exit(not same)
PY
