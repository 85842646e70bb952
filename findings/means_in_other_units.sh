#!/usr/bin/env bash
# hyppo 0.5.2: Hotelling of one column doesn't divide by its variance, so that p depends on the unit of
# the scores; MANOVA of several columns misses differences that Hotelling and statsmodels find.
#
# With one column Hotelling's T2 is the square of Student's t, which no unit changes. The branch for one
# column has 1 for the inverse of the variance: probabilities and the same ones in per cent have two
# p-values, small numbers never differ and large ones nearly always. Several columns are right.
# MANOVA's matrices, within the groups and between them, are sums of outer products by its documentation;
# "@" of two vectors is one number, which is added to all their entries. Of one column that is right; of
# several the difference is thinned out by their number (open as hyppo issue 323). Of two groups it
# is the same test as Hotelling's. Such tests say whether the scores of a model, one or several of a
# row, are those of one that never saw the forget set: "no difference" is what a method hopes for.
#
# Seen with hyppo 0.5.2, numpy 2.4.6, scipy 1.17.1, statsmodels 0.15.0, numba 0.68.1, Python 3.11, two
# groups of 50 rows, normal, half a standard deviation apart in each column; p-values:
#   one column, its numbers          times .01    as they are    times 100
#     Hotelling                        .98          .046           3e-130
#     Student's t, by scipy            .040         .040           .040
#     alike, called different at the 5 % level, of 1,000 pairs
#     Hotelling                        0            4.5 %          99 %
#     Student's t                      4.7 %        4.7 %          4.7 %
#   columns                          2            5              10
#     MANOVA                           .12          .48            .61
#     MANOVA by statsmodels            .021         1e-4           4e-11
#     Hotelling                        .021         1e-4           4e-11
# Exits with another status than 0 if that changes.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q -c "$here/../constraints.txt" hyppo==0.5.2 numba==0.68.1 numpy==2.4.6 \
    scipy==1.17.1 statsmodels==0.15.0
cd "$folder"
env -u PYTHONPATH "$folder/env/bin/python" - <<'PY'
import sys
from importlib.metadata import version

import numpy as np
from hyppo.ksample import MANOVA, Hotelling
from scipy.stats import ttest_ind
from statsmodels.multivariate.manova import MANOVA as OfStatsmodels

print(*(f"{name} {version(name)}" for name in ("hyppo", "numpy", "scipy", "statsmodels", "numba")))
ROWS = 50
generator = np.random.default_rng(0)


def pair(columns, apart=0.5):
    first, second = generator.normal(size=(2, ROWS, columns))
    return first, second + apart


def p_of(test, first, second):
    return float(np.squeeze(test().test(first, second)[1]))


def student(first, second):
    return float(ttest_ind(first, second).pvalue[0])


def statsmodels(first, second):
    groups = np.column_stack([np.ones(2 * ROWS), np.repeat([0.0, 1.0], ROWS)])
    fit = OfStatsmodels(np.vstack([first, second]), groups)
    tests = fit.mv_test([("groups", np.array([[0.0, 1.0]]))]).results["groups"]["stat"]
    return float(tests.loc["Pillai's trace", "Pr > F"])


UNITS = (0.01, 1.0, 100.0)
same = True
first, second = pair(1)
for unit, low, high in zip(UNITS, (0.97, 0.04, 0), (1, 0.05, 1e-100)):
    found, right = p_of(Hotelling, unit * first, unit * second), student(unit * first, unit * second)
    print(f"one column times {unit}: Hotelling {found:.2g}, Student's t {right:.3f}")
    same &= low <= found <= high and abs(right - 0.040) < 0.001

for columns, seen, right in ((2, 0.120, 0.0205), (5, 0.478, 1.16e-4), (10, 0.613, 4.16e-11)):
    first, second = pair(columns)
    found, other = p_of(MANOVA, first, second), statsmodels(first, second)
    of_two = p_of(Hotelling, first, second)
    print(f"{columns} columns: MANOVA {found:.3f}, statsmodels {other:.3g}, Hotelling {of_two:.3g}")
    same &= abs(found - seen) < 0.001 and abs(other / right - 1) < 0.01 and abs(of_two / other - 1) < 1e-6

alike = [pair(1, apart=0) for _ in range(1000)]
for unit, low, high in zip(UNITS, (0, 0.03, 0.95), (0, 0.07, 1)):
    scaled = [(unit * one, unit * other) for one, other in alike]
    found = np.mean([p_of(Hotelling, *two) <= 0.05 for two in scaled])
    right = np.mean([student(*two) <= 0.05 for two in scaled])
    print(f"alike, times {unit}, called different at 5 %: Hotelling {found:.3f}, Student's t {right:.3f}")
    same &= low <= found <= high and 0.03 <= right <= 0.07
sys.exit(not same)
PY
