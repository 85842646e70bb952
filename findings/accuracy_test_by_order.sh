#!/usr/bin/env bash
# mlxtend 0.25.0: the p-value of proportion_difference depends on which of two models is named first:
# .04 in one order and .96 in the other, and neither is that of the test in its documentation.
#
# Its guide sets the test out with two sides (is either model better than the other) and says that two
# accuracies differ at the 5 % level if z is beyond 1.96. The function gives the share of the normal
# distribution below z, signed: half of the p-value if the first model is the worse one, and one minus
# that half if it is the better one. So 84 and 92 right of 100 are "different" with a z of 1.75, which
# the rule says they aren't; with the better model first no difference is ever found, however large.
# A table that has the unlearned model first and the retain model second finds losses and no gains.
#
# Seen with mlxtend 0.25.0, scipy 1.17.1, statsmodels 0.15.0, Python 3.11, z and p of n = 100 or 1,000:
#                      proportion_difference   two sides of the same z   statsmodels, two sides
#   .84 .92,   100         -1.75  .040                   .079                   .082
#   .92 .84,   100          1.75  .960                   .079                   .082
#   .95 .50, 1,000         26.1  1.000                 5e-150                 2e-112
# Exits with another status than 0 if that changes.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q -c "$here/../constraints.txt" mlxtend==0.25.0 scipy==1.17.1 statsmodels==0.15.0
cd "$folder"
env -u PYTHONPATH "$folder/env/bin/python" - <<'PY'
import sys
from importlib.metadata import version
from math import erfc, sqrt

from mlxtend.evaluate import proportion_difference
from statsmodels.stats.proportion import proportions_ztest

print(*(f"{name} {version(name)}" for name in ("mlxtend", "scipy", "statsmodels")))
same = True
for first, second, rows, said, rule in (
    (0.84, 0.92, 100, True, False),
    (0.92, 0.84, 100, False, False),
    (0.95, 0.50, 1000, False, True),
):
    z, p = proportion_difference(first, second, rows)
    sides = erfc(abs(z) / sqrt(2))
    other = proportions_ztest([first * rows, second * rows], [rows, rows])[1]
    print(
        f"{first} {second} of {rows}: z {z:.2f}, p {p:.3f}; two sides {sides:.2g}, "
        f"statsmodels {other:.2g}"
    )
    same &= abs(p - (sides / 2 if z < 0 else 1 - sides / 2)) < 1e-9
    same &= (p < 0.05) == said and (abs(z) > 1.96) == rule
sys.exit(not same)
PY
