#!/usr/bin/env bash
# diversity 0.3.1: texts that share no word have the homogenization score of texts that are all the same,
# and compression_ratio compresses twice, so that repeated text gets ratios gzip can't reach.
#
# The homogenization score (Padmakumar and He 2024) is the mean similarity of all pairs, "higher = more
# homogeneous". Where the sum is 0 it is set to 1, "case where all strings are the exact same" by a
# comment; the same strings have a sum that isn't 0. One word that two of the texts share, and it is the
# mean again. "gzip", the default of compression_ratio, writes the compressed bytes through gzip a second
# time: short texts look less repetitive (the second header), and a model that says one thing over and
# over far more so; DEFLATE ends at 1,032. "xz" compresses once. Of outputs before and after unlearning
# such numbers say how much of a model broke.
#
# Seen with diversity 0.3.1, rouge_score 0.1.2, zlib 1.2.13, Python 3.11. The two modules are loaded by
# themselves; the package as a whole wants torch. Homogenization by ROUGE-L, and the mean of pairs by hand:
#   red cat, blue dog, green fish     1.0    0
#   red cat, blue dog, green cat       .167   .167
#   red cat, red cat, red cat         1.0    1.0
# compression_ratio, and characters by those of gzip.compress:
#   one sentence, 12 words               .57     .84
#   the same 400 times                 190      156
#   10,000 times                     4,380      328
# Exits with another status than 0 if that changes.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q -c "$here/../constraints.txt" rouge_score==0.1.2 evaluate==0.4.6
"$folder/env/bin/pip" install -q --no-deps diversity==0.3.1
cd "$folder"
env -u PYTHONPATH HF_HOME="$folder/home" HF_HUB_OFFLINE=1 "$folder/env/bin/python" - <<'PY'
import gzip
import sys
from importlib.metadata import files, version
from importlib.util import module_from_spec, spec_from_file_location
from itertools import combinations

print(*(f"{name} {version(name)}" for name in ("diversity", "rouge_score")))


def module(name):
    [path] = [one.locate() for one in files("diversity") if str(one) == f"diversity/{name}.py"]
    spec = spec_from_file_location(name, path)
    loaded = module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def pair(first, second):
    """ROUGE-L's F1 of two texts of two words each, which keep their places."""
    return sum(a == b for a, b in zip(first.split(), second.split())) / 2


homogenization, ratio = module("homogenization"), module("compression").compression_ratio
same = True
for texts, seen, right in (
    (("red cat", "blue dog", "green fish"), 1.0, 0.0),
    (("red cat", "blue dog", "green cat"), 0.167, 0.167),
    (("red cat", "red cat", "red cat"), 1.0, 1.0),
):
    found = homogenization.homogenization_score(list(texts), verbose=False)
    pairs = [pair(*two) for two in combinations(texts, 2)]
    by_hand = round(sum(pairs) / len(pairs), 3)
    print(f"{', '.join(texts)}: {found}, mean of pairs {by_hand}")
    same &= (found, by_hand) == (seen, right)

MILL = "the mill stands by the river and grinds corn of the village"
for times, low, high in ((1, 0.6, 0.8), (400, 1.2, 1.4), (10_000, 12, 16)):
    texts = [MILL] * times
    joined = " ".join(texts).encode()
    found, once = ratio(texts), len(joined) / len(gzip.compress(joined))
    print(f"{times} times: {found}, compressed once {once:.3f}")
    same &= low < found / once < high and once < 1032
    same &= (found > 1032) == (times == 10_000)
sys.exit(not same)
PY
