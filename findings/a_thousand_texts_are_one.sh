#!/usr/bin/env bash
# vendi-score 0.0.3: of a sparse matrix score_K reads six eigenvalues, so that a thousand texts that share
# nothing count as one; score_X ignores q; at q = .1 copies of a text count as other texts.
#
# The Vendi score (Friedman and Dieng 2023) is exp of the entropy of the eigenvalues of K/n, "the effective
# number of unique elements"; of order q it is Renyi's entropy. A CSR matrix goes to scipy's eigsh, whose
# default is the six largest: the rest is left out, what is left doesn't sum to 1, and the more texts
# differ the lower the score. score_X takes q and hands on 1. Eigenvalues that are 0 come out of rounding as
# some 1e-17 or -1e-17. Those above 0 count: to the power of .1 each is .02, and every second copy has one.
# Of answers before and after unlearning the score says whether a model still says different things.
#
# Seen with vendi-score 0.0.3, numpy 2.4.6, scipy 1.17.1, scikit-learn 1.9.1, Python 3.11. score_K of n texts
# that share nothing, whose score is n:
#   n           10     20    100   1,000
#   dense       10     20    100   1,000
#   CSR          4.0    2.5    1.3     1.04
# Ten texts with random embeddings, each c times, whose score doesn't depend on c:
#   q           .1      1       2
#   score_K      9.9    9.43    8.93    c = 1
#   score_K     21.4    9.43    8.93    c = 100
#   score_X      9.43   9.43    9.43    c = 1
#   by hand      9.94   9.43    8.93
# Exits with another status than 0 if that changes.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q -c "$here/../constraints.txt" numpy==2.4.6 scipy==1.17.1 scikit-learn==1.9.1
"$folder/env/bin/pip" install -q --no-deps vendi-score==0.0.3
cd "$folder"
env -u PYTHONPATH OMP_NUM_THREADS=1 "$folder/env/bin/python" - <<'PY'
import sys
from importlib.metadata import version

import numpy as np
from scipy.sparse import csr_matrix
from vendi_score import vendi

print(*(f"{name} {version(name)}" for name in ("vendi-score", "numpy", "scipy", "scikit-learn")))
same = True
for count, seen in ((10, 3.981), (20, 2.456), (100, 1.318), (1000, 1.042)):
    dense = vendi.score_K(np.eye(count))
    sparse = vendi.score_K(csr_matrix(np.eye(count)))
    six = (1 / count) ** (-6 / count)  # exp of the sum of six times -1/n log 1/n
    print(f"{count} texts that share nothing: dense {dense:.3f}, CSR {sparse:.3f}, six of them by hand {six:.3f}")
    same &= abs(dense - count) < 1e-6 * count and abs(sparse - seen) < 0.001 and abs(six - seen) < 0.001

texts = np.random.default_rng(0).normal(size=(10, 64))
texts /= np.linalg.norm(texts, axis=1, keepdims=True)
values = np.linalg.eigvalsh(texts @ texts.T / 10)  # none of these ten is near 0
for q in (0.1, 1, 2):
    entropy = -(values * np.log(values)).sum() if q == 1 else np.log((values**q).sum()) / (1 - q)
    right = np.exp(entropy)
    once, copied = (vendi.score_K(rows @ rows.T, q=q) for rows in (texts, np.repeat(texts, 100, axis=0)))
    other = vendi.score_X(texts, q=q)
    print(f"q {q}: score_K {once:.3f}, of 100 copies {copied:.3f}, score_X {other:.3f}, by hand {right:.3f}")
    same &= abs(once - right) < 1e-6 and abs(other - vendi.score_X(texts, q=1)) < 1e-9
    same &= copied > 1.3 * right if q == 0.1 else abs(copied - right) < 1e-3
    same &= (abs(other - right) < 1e-6) == (q == 1)
sys.exit(not same)
PY
