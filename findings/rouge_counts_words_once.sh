#!/usr/bin/env bash
# rouge 1.0.1: a text that repeats itself, or says its sentences in another order, has a perfect
# score, as ROUGE-1 and ROUGE-L count each word once and ROUGE-L forgets where sentences stand.
#
# Before it counts, the package takes words and pairs of words as sets, and of longest common
# subsequences the union of their words, sentence by sentence. What a broken model says, the same
# words over and over, has precision and F1 of 1 where the definition (and the package rouge_score)
# gives a quarter; its ROUGE-1 says nothing of how often. Words keep their case and their full stops,
# so that an exact answer without its full stop loses a quarter. Unlearned models babble: by this
# package the babble of the forgotten answer looks like the answer, and that of a kept one like one
# that was kept.
#
# Seen with rouge 1.0.1 and rouge_score 0.1.2, Python 3.11, F1 of ROUGE-1 and ROUGE-L:
#   text                                     reference                rouge       rouge_score
#   'basil basil basil basil'                'basil'                  1.00 1.00    .40  .40
#   'the mill by the river' three times      'the mill by the river'  1.00 1.00    .50  .50
#   'c d. a b'                               'a b. c d'               1.00 1.00   1.00  .50
#   'Basil wrote of sand.'                   'basil wrote of sand'     .75  .75   1.00 1.00
# Exits with another status than 0 if that changes.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q -c "$here/../constraints.txt" rouge==1.0.1 rouge_score==0.1.2
cd "$folder"
env -u PYTHONPATH "$folder/env/bin/python" - <<'PY'
import sys
from importlib.metadata import version

from rouge import Rouge
from rouge_score.rouge_scorer import RougeScorer

MILL = "the mill by the river"
SEEN = {
    ("basil basil basil basil", "basil"): ((1.0, 1.0), (0.4, 0.4)),
    (" ".join([MILL] * 3), MILL): ((1.0, 1.0), (0.5, 0.5)),
    ("c d. a b", "a b. c d"): ((1.0, 1.0), (1.0, 0.5)),
    ("Basil wrote of sand.", "basil wrote of sand"): ((0.75, 0.75), (1.0, 1.0)),
}
print(*(f"{name} {version(name)}" for name in ("rouge", "rouge_score")))
theirs, other = Rouge(), RougeScorer(["rouge1", "rougeL"])
same = True
for (text, reference), seen in SEEN.items():
    one = theirs.get_scores(text, reference)[0]
    two = other.score(reference, text)
    found = (
        (one["rouge-1"]["f"], one["rouge-l"]["f"]),
        (two["rouge1"].fmeasure, two["rougeL"].fmeasure),
    )
    print(*(f"{value:.2f}" for pair in found for value in pair), repr(text), repr(reference))
    same &= all(abs(a - b) < 1e-6 for x, y in zip(found, seen) for a, b in zip(x, y))
sys.exit(not same)
PY
