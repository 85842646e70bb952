#!/usr/bin/env bash
# dcor 0.7: permutations that give the very statistic that was seen don't count in the p-value, so that
# scores with few values differ too often; two samples of nothing but zeros differ most of all.
#
# The p-value of a permutation test is the share of permutations as extreme as what was seen, ties
# among them. energy_test and distance_covariance_test count what is strictly larger, which is the same
# for numbers that are all different, and far from it for exact matches, refusals or leaks (0 or 1), for
# ROUGE that is mostly 0 and for truth ratios pushed off their scale. Three leaks of 40 against none
# of 40 have p = .24: all three fall into one sample that often; dcor gives the smallest p there is. Of
# pairs of samples of one coin a test at the 5 % level may call 5 % different.
# Here are 199 permutations; by default energy_test does none, and every p is 1.
#
# Seen with dcor 0.7, numba 0.68.1, numpy 2.4.6, scipy 1.17.1, Python 3.11, 40 scores and 40:
#                                     dcor    exact    scipy's permutation test
#   zeros and zeros                   .005    1        1
#   3 ones of 40 and none             .005    .24      .24
#   called different at the 5 % level,
#   of 200 pairs of one coin of .05   27 %    0
# Exits with another status than 0 if that changes.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q -c "$here/../constraints.txt" dcor==0.7 numba==0.68.1 numpy==2.4.6 scipy==1.17.1
cd "$folder"
env -u PYTHONPATH "$folder/env/bin/python" - <<'PY'
import sys
from importlib.metadata import version
from math import comb

import numpy as np
from dcor.homogeneity import energy_test
from scipy.stats import energy_distance, permutation_test

print(*(f"{name} {version(name)}" for name in ("dcor", "numba", "numpy", "scipy")))
ROWS, DRAWS = 40, 199


def ones(count):
    return np.repeat([1.0, 0.0], [count, ROWS - count])


def by_dcor(first, second):
    first, second = first[:, None], second[:, None]
    return energy_test(first, second, num_resamples=DRAWS, random_state=0).pvalue


def exact(first, second):
    """Of all ways to deal the ones out, those whose counts are as far apart or further."""
    total, apart = int(first.sum() + second.sum()), abs(first.sum() - second.sum())
    deals = [k for k in range(total + 1) if abs(2 * k - total) >= apart]
    return sum(comb(ROWS, k) * comb(ROWS, total - k) for k in deals) / comb(2 * ROWS, total)


same = True
for name, first, second, right in (
    ("zeros and zeros", ones(0), ones(0), 1.0),
    ("3 ones and none", ones(3), ones(0), 0.24),
):
    seen = by_dcor(first, second)
    other = permutation_test(
        (first, second), energy_distance, n_resamples=999, alternative="greater", rng=0
    ).pvalue
    print(f"{name}: dcor {seen:.3f}, exact {exact(first, second):.3f}, scipy {other:.3f}")
    same &= abs(seen - 1 / (DRAWS + 1)) < 1e-12
    same &= abs(exact(first, second) - right) < 0.005 and abs(other - right) < 0.06

generator = np.random.default_rng(0)
pairs = [generator.binomial(1, 0.05, (2, ROWS)).astype(float) for _ in range(200)]
share = np.mean([by_dcor(*pair) <= 0.05 for pair in pairs])
of_exact = np.mean([exact(*pair) <= 0.05 for pair in pairs])
print(f"both of one coin of .05, called different at 5 %: dcor {share:.2f}, exact {of_exact:.2f}")
same &= share > 0.1 and of_exact <= 0.08
sys.exit(not same)
PY
