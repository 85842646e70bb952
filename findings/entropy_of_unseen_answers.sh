#!/usr/bin/env bash
# infomeasure 0.6.3: of two Bayesian entropies "bayes" falls with each answer that could have come and
# didn't, and "nsb" is another number than its formula, NaN where as many answers are possible as came.
#
# K is the number of answers there can be, seen or not. By the documented formula of "bayes" each has
# the probability (n + alpha) / (N + K alpha) and the entropy is the sum over all K; the code sums over
# those that were seen, whose probabilities no longer add up to 1. "nsb" (Nemenman, Shafee and Bialek
# 2002) weighs concentrations by a product of Gamma(n + beta) / Gamma(beta) over all K answers; the code
# raises each factor to the power n, takes unseen answers off the mean of the entropy too, cuts the
# integral over beta at ln K, and counts repeats as N - K, so that N = K has none (a warning says so).
# With no K given the product is wrong all the same. Entropies over meanings of a few sampled answers
# are such samples: a model that spreads out further would be read as surer.
#
# Seen with infomeasure 0.6.3, numpy 2.4.6, scipy 1.17.1, Python 3.11, nats; right are the documented
# formulas, for K = 100 "nsb" also the value printed in the README of the package ndd, 2.8400:
#                                       K       bayes, alpha 1/2, right       nsb   right
#   100 answers, 20 of them different   20        2.742   2.742              2.817  2.770
#                                       100       2.238   3.759               NaN   2.840
#                                       1,000      .814   6.604              2.901  2.846
#   five answers, 2, 2 and 1 alike      3         1.073   1.073               .958   .996
#                                       10         .978   2.026               .989  1.576
# Exits with another status than 0 if that changes.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q -c "$here/../constraints.txt" infomeasure==0.6.3 numba==0.68.1 numpy==2.4.6 scipy==1.17.1
cd "$folder"
env -u PYTHONPATH "$folder/env/bin/python" - <<'PY'
import logging
import sys
import warnings
from importlib.metadata import version

import infomeasure
import numpy as np
from scipy.special import digamma, gammaln, polygamma

logging.disable(logging.WARNING)
warnings.simplefilter("ignore", RuntimeWarning)
print(*(f"{name} {version(name)}" for name in ("infomeasure", "numpy", "scipy")))
README = [12, 4, 12, 4, 5, 3, 1, 5, 1, 2, 2, 2, 2, 11, 3, 4, 12, 12, 1, 2]
SEEN = {
    (*README, 20): (2.742, 2.742, 2.817, 2.770),
    (*README, 100): (2.238, 3.759, np.nan, 2.840),
    (*README, 1000): (0.814, 6.604, 2.901, 2.846),
    (2, 2, 1, 3): (1.073, 1.073, 0.958, 0.996),
    (2, 2, 1, 10): (0.978, 2.026, 0.989, 1.576),
}


def bayes(counts, alpha):
    shares = (counts + alpha) / (counts + alpha).sum()
    return -(shares * np.log(shares)).sum()


def nsb(counts):
    """The mean entropy, over concentrations whose prior mean entropies are even, on a fine grid."""
    size, rows = len(counts), counts.sum()
    steps = np.linspace(np.log(1e-7), np.log(1e5), 8001)
    beta = np.exp(steps)
    kinds, numbers = np.unique(counts, return_counts=True)
    logs = gammaln(size * beta) - gammaln(size * beta + rows)
    mean = digamma(rows + size * beta + 1)
    for kind, number in zip(kinds, numbers):
        logs += number * (gammaln(kind + beta) - gammaln(beta))
        mean -= number * (kind + beta) / (rows + size * beta) * digamma(kind + beta + 1)
    even = size * polygamma(1, size * beta + 1) - polygamma(1, beta + 1)
    weights = np.exp(logs - logs.max()) * even * beta
    return (weights * mean).sum() / weights.sum()


same = True
for (*seen_counts, size), seen in SEEN.items():
    counts = np.array(seen_counts + [0] * (size - len(seen_counts)), dtype=float)
    rows = np.repeat(np.arange(len(seen_counts)), seen_counts)
    found = (
        infomeasure.entropy(rows, approach="bayes", alpha=0.5, K=size, base="e"),
        bayes(counts, 0.5),
        infomeasure.entropy(rows, approach="nsb", K=size, base="e"),
        nsb(counts),
    )
    print(
        f"{len(rows)} answers, {len(seen_counts)} different, of {size}: "
        f"bayes {found[0]:.3f}, right {found[1]:.3f}; nsb {found[2]:.3f}, right {found[3]:.3f}"
    )
    same &= np.allclose(found, seen, rtol=0, atol=0.002, equal_nan=True)
sys.exit(not same)
PY
