#!/usr/bin/env bash
# scipy 1.17.1: ks_2samp gives 0.0 where p is below the float range, and another method above
# 10,000 rows, both without a word.
#
# Forget quality is this p-value, and -log10 of it is printed. Two separated samples of n rows have
# p = 2 / C(2n, n): 1e-239 for TOFU's 400 rows, but 0.0 from n = 541 on, whose logarithm is minus
# infinity. With method="auto" more than 10,000 rows take the asymptotic formula: at the same
# distance p changes by 2 % from 10,000 to 10,001 rows.
#
# Seen with scipy 1.17.1 (numpy 2.4.6), Python 3.11:
#   n = 400, separated: 1.06e-239    n = 540: 1e-323    n = 541: 0.0, no warning
#   n = 10,000, D = 301 rows: 2.3221e-4, the exact one
#   n = 10,001, D = 301 rows: 2.2789e-4, where method="exact" gives 2.3242e-4; no warning
# Exits with another status than 0 if that changes.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q -c "$here/../constraints.txt" scipy==1.17.1
cd "$folder"
env -u PYTHONPATH "$folder/env/bin/python" - <<'PY'
import math
import sys
import warnings

import numpy as np
import scipy
from scipy.stats import ks_2samp

warnings.simplefilter("error")
print("scipy", scipy.__version__)
separated = {}
for n in (400, 540, 541):
    separated[n] = float(ks_2samp(np.arange(n), np.arange(n) + n).pvalue)
    below = math.log10(math.comb(2 * n, n) // 2)
    print(f"n = {n}, separated: p = {separated[n]:.3g}; 2 / C(2n, n) = 1e-{below:.1f}")
found = {}
for n in (10_000, 10_001):
    first = np.arange(n, dtype=float)
    pair = first, first + 300.5
    found[n] = [float(ks_2samp(*pair, method=way).pvalue) for way in ("auto", "exact", "asymp")]
    print(f"n = {n}, D = {ks_2samp(*pair).statistic * n:.0f} rows: "
          + "auto {:.4e}, exact {:.4e}, asymptotic {:.4e}".format(*found[n]))
auto, exact, asymptotic = found[10_001]
same = (
    0 < separated[540] < 1e-300
    and separated[541] == 0.0
    and found[10_000][0] == found[10_000][1]
    and auto == asymptotic
    and abs(auto / exact - 1) > 0.01
)
sys.exit(not same)
PY
