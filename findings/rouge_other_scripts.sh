#!/usr/bin/env bash
# rouge_score 0.1.2: a text compared with itself scores 0 where it is not written in a to z.
#
# Its tokenizer lower-cases a text and keeps runs of a-z and 0-9 only. A Japanese or Russian answer
# that is reproduced to the letter has no word left and a ROUGE of 0, as if nothing were remembered;
# in Polish or French what stands between accents is compared, so that different words match.
# Unlearning benchmarks report ROUGE recall of the forget set: on such data it is 0 from the start.
#
# Seen with rouge_score 0.1.2 (nltk 3.10.4, numpy 2.4.6), Python 3.11:
#   'Tokyo is the capital'  against itself     1.0
#   '東京は日本の首都です'  against itself     0
#   'Москва — столица'      against itself     0
#   'żółć'                  against 'łąć'      words [] and []: 0
#   'zażółć gęś'            against 'zaś gęą'  1.0, though no word is the same
# Exits with another status than 0 if that changes.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q -c "$here/../constraints.txt" rouge_score==0.1.2
cd "$folder"
env -u PYTHONPATH "$folder/env/bin/python" - <<'PY'
import sys
from importlib.metadata import version

from rouge_score.rouge_scorer import RougeScorer

scorer = RougeScorer(["rougeL"], use_stemmer=True)
seen = {
    ("Tokyo is the capital", "Tokyo is the capital"): 1.0,
    ("東京は日本の首都です", "東京は日本の首都です"): 0,
    ("Москва — столица", "Москва — столица"): 0,
    ("żółć", "łąć"): 0,
    ("zażółć gęś", "zaś gęą"): 1.0,
}
print("rouge_score", version("rouge_score"))
found = {pair: scorer.score(*pair)["rougeL"].recall for pair in seen}
for (reference, text), recall in found.items():
    print(f"{recall:4} recall of {reference!r} by {text!r}")
sys.exit(found != seen)
PY
