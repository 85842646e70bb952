#!/usr/bin/env bash
# scikit-posthocs 0.17.1: posthoc_quade(dist="normal") calls methods that are alike different in a
# quarter of all pairs, at the 5 % level.
#
# Quade's test ranks k methods within each of b data sets, and the data sets by how far methods are
# apart on them. The difference of two methods' weighted ranks has a variance of
# k (k + 1) (2 b + 1) / (9 b (b + 1)) if methods are alike: each data set adds k (k + 1) / 6 times its
# squared weight. The function takes k (k + 1) (k - 1) (2 n + 1) / (18 n (n + 1)) with n = b k, the count
# of all scores: a third of it for 3 methods, two fifths for 5, less than half for any number. So z is
# too large by the root of 3 or 2.5, and the smaller p is, the further it is off. dist="t", the default,
# holds, as does dealing ranks out at random. Comparisons of unlearning methods over benchmarks, models
# and seeds are such tables.
#
# Seen with scikit-posthocs 0.17.1, numpy 2.4.6, scipy 1.17.1, Python 3.11, normal numbers, 20 data sets:
#                                                 normal    t    ranks dealt out   right variance
#   3 methods that are alike, share of p <= .05      .24   .06
#   5                                                .26   .06
#   p of one table of 3                              .05   .26         .26               .24
#   p of one table of 5                              .05   .21         .21               .20
# Exits with another status than 0 if that changes.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q -c "$here/../constraints.txt" scikit-posthocs==0.17.1 numpy==2.4.6 scipy==1.17.1
cd "$folder"
env -u PYTHONPATH MPLBACKEND=agg "$folder/env/bin/python" - <<'PY'
import sys
from importlib.metadata import version

import numpy as np
from scikit_posthocs import posthoc_quade
from scipy.stats import norm, rankdata

print(*(f"{name} {version(name)}" for name in ("scikit-posthocs", "numpy", "scipy")))
SETS, TABLES, DEALS = 20, 400, 20_000
generator = np.random.default_rng(0)


def by_package(table, dist):
    """p of the first two methods."""
    return np.asarray(posthoc_quade(table, dist=dist))[0, 1]


def difference(ranks, table):
    weights = rankdata(np.ptp(table, axis=1))
    return ((ranks[..., 0] - ranks[..., 1]) * weights).sum(-1) / weights.sum()


def by_dealing(table):
    ranks = rankdata(table, axis=1)
    dealt = generator.permuted(np.broadcast_to(ranks, (DEALS, *ranks.shape)), axis=-1)
    return np.mean(np.abs(difference(dealt, table)) >= abs(difference(ranks, table)) - 1e-9)


def by_variance(table, sets):
    k = table.shape[1]
    variance = k * (k + 1) * (2 * sets + 1) / (9 * sets * (sets + 1))
    return 2 * norm.sf(abs(difference(rankdata(table, axis=1), table)) / np.sqrt(variance))


same = True
for methods, low, high in ((3, 0.2, 0.33), (5, 0.14, 0.3)):
    tables = generator.normal(size=(TABLES, SETS, methods))
    normal, t = (
        np.mean([by_package(table, dist) <= 0.05 for table in tables]) for dist in ("normal", "t")
    )
    print(f"{methods} methods that are alike: p <= .05 for {normal:.3f} by normal, {t:.3f} by t")
    same &= low < normal < high and t < 0.09
    # Of the first tables the one whose p by dealing is nearest to .2.
    table = min(tables[:20], key=lambda one: abs(by_variance(one, SETS) - 0.2))
    normal, t, dealt = by_package(table, "normal"), by_package(table, "t"), by_dealing(table)
    right = by_variance(table, SETS)
    print(f"  one table: normal {normal:.3f}, t {t:.3f}, dealt {dealt:.3f}, variance {right:.3f}")
    same &= abs(dealt - right) < 0.03 and normal < dealt / 2
    if methods == 3:
        same &= abs(normal - by_variance(table, SETS * methods)) < 1e-9
sys.exit(not same)
PY
