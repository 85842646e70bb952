#!/usr/bin/env bash
# lexicalrichness 0.5.1: msttr leaves out the last whole segment of a text whose length is a multiple of
# the segment's; an answer that ends in babble has the diversity of its beginning.
#
# The mean type-token ratio over segments (Johnson 1944) has discard=True, by which "the remaining
# segment", the 5 words behind the 100 of a text of 105, aren't counted. The code takes the last piece
# off whatever its length. Generated texts have such lengths: 128, 256 or 512 new tokens, cut in 64 or
# 128. A model that says its piece and then one word over and over ends in the piece that is lost. One
# word more, and it counts. A text of one segment is refused ("window size must be greater than text
# size"), where it is long enough; discard=False counts a remainder as a whole segment.
#
# Seen with lexicalrichness 0.5.1, Python 3.11, 100 different words and then "x" over and over; msttr of
# segments of 100 words, and the mean over the whole segments:
#   words          200     201     205     300     301
#   msttr         1.000    .505    .505    .505    .340
#   right          .505    .505    .505    .340    .340
# Exits with another status than 0 if that changes.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q -c "$here/../constraints.txt" lexicalrichness==0.5.1
cd "$folder"
env -u PYTHONPATH MPLBACKEND=agg "$folder/env/bin/python" - <<'PY'
import sys
from fractions import Fraction
from importlib.metadata import version

from lexicalrichness import LexicalRichness

print("lexicalrichness", version("lexicalrichness"))
SEGMENT = 100
SEEN = {200: 1.0, 201: 0.505, 205: 0.505, 300: 0.505, 301: 0.34}


def right(words):
    whole = [words[start : start + SEGMENT] for start in range(0, len(words), SEGMENT)]
    ratios = [Fraction(len(set(part)), SEGMENT) for part in whole if len(part) == SEGMENT]
    return float(sum(ratios) / len(ratios))


same = True
for length, seen in SEEN.items():
    words = [f"word{number}" for number in range(100)] + ["x"] * (length - 100)
    found = LexicalRichness(words, preprocessor=None, tokenizer=None).msttr(SEGMENT)
    print(f"{length} words: msttr {found:.3f}, right {right(words):.3f}")
    same &= abs(found - seen) < 1e-9 and (found == right(words)) == (length % SEGMENT > 0)
sys.exit(not same)
PY
