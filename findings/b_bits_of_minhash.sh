#!/usr/bin/env bash
# datasketch 2.0.0: with b of 3 and more, bBitMinHash reads every similarity low as soon as r is above
# 0: sets that share nothing are -.07 alike, and the smallest r is far from r = 0.
#
# The lowest b bits of two hashes agree by chance, and the estimate takes that share off. For sets that
# fill a part r of all values it is made of A = r (1 - r)^(2^b - 1) / (1 - (1 - r)^(2^b)) (Li and Koenig
# 2010, which the class names). The package has 2 b in place of the second 2^b, right for b = 1 and 2
# only: near r = 0 it takes off 1 / 2b for 1 / 2^b, sixteen times as much for 8 bits. r = 0, the
# default, is a case of its own and right. Whoever fills r in, as its documentation says ("the expected
# ratio of set size to the size of the universe"), misses pairs that a threshold of .5 should have
# found: rows of a retain set that repeat forget rows, test questions in training text. Mended
# upstream in pull request 325, after this release.
#
# Seen with datasketch 2.0.0, numpy 2.4.6, scipy 1.17.1, Python 3.11, 4 x 1,024 hashes of sets of 300
# words; similarity, and estimates with r = 0, r = 1e-6, and the latter by the formula of the paper:
#   b   similarity     0           .5          .9
#   2               -.01 -.01 -.01   .50 .50 .50   .90 .90 .90
#   4                .00 -.07  .00   .50 .47 .50   .90 .90 .90
#   8                .00 -.06  .00   .50 .47 .50   .90 .90 .90
# Exits with another status than 0 if that changes.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q -c "$here/../constraints.txt" datasketch==2.0.0 numpy==2.4.6 scipy==1.17.1
cd "$folder"
env -u PYTHONPATH "$folder/env/bin/python" - <<'PY'
import sys
from importlib.metadata import version
from math import expm1, log1p

import numpy as np
from datasketch import MinHash, bBitMinHash

print(*(f"{name} {version(name)}" for name in ("datasketch", "numpy", "scipy")))
WORDS, SMALL = 300, 1e-6


def hashes(numbers, seed):
    minhash = MinHash(num_perm=1024, seed=seed)
    minhash.update_batch([f"word {number}".encode() for number in numbers])
    return minhash


def by_formula(first, second, b, r):
    """Two sets of one size: both constants of the paper are A."""
    agree = np.mean(first.hashvalues == second.hashvalues)
    a = r * (1 - r) ** (2**b - 1) / -expm1(2**b * log1p(-r))
    return (agree - a) / (1 - a)


same = True
for b in (2, 4, 8):
    for shared in (0, 200, 284):
        estimates = []
        for seed in range(1, 5):
            start = 1000 * seed
            first = hashes(range(start, start + WORDS), seed)
            second = hashes(range(start + WORDS - shared, start + 2 * WORDS - shared), seed)
            at_zero, at_small = (
                (bBitMinHash(first, b, r), bBitMinHash(second, b, r)) for r in (0.0, SMALL)
            )
            estimates.append(
                (
                    at_zero[0].jaccard(at_zero[1]),
                    at_small[0].jaccard(at_small[1]),
                    by_formula(*at_small, b, SMALL),
                )
            )
        true = shared / (2 * WORDS - shared)
        zero, small, formula = np.mean(estimates, axis=0)
        print(
            f"b {b}, similarity {true:.2f}: r = 0 {zero:.3f}, r = 1e-6 {small:.3f}, "
            f"formula {formula:.3f}"
        )
        # By the package's A near r = 0, 1 / 2b, all of the error is this.
        low = (1 - true) * (1 / (2 * b) - 2.0**-b) / (1 - 1 / (2 * b))
        same &= abs(zero - true) < 0.03 and abs(formula - zero) < 1e-3
        same &= abs((zero - small) - low) < 0.01
sys.exit(not same)
PY
