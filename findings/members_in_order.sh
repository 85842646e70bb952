#!/usr/bin/env bash
# sacroml 2.0.1: get_metrics, of a membership attack, goes by the order of the rows where scores tie, in
# spite of permute_rows=True: an attack that knows nothing is perfect when members come last.
#
# FMAX, FMIN and FDIF are the share of members among the tenth (fifth, hundredth) of rows with the
# highest scores, with the lowest, and the difference; PDIF is -log of its p-value. Which of equal
# scores count as highest is up to argsort, which leaves them more or less as they stand. permute_rows,
# on by default, says it permutes the arrays first; what it permutes are names of its own, and nothing
# comes back: with and without it all numbers are the same. Members are mostly stacked before or behind
# the others, and scores do tie: probabilities of 1 of a model that is sure, exact matches, refusals.
# The AUC beside them is .5.
#
# Seen with sacroml 2.0.1, numpy 2.4.6, scikit-learn 1.9.1, scipy 1.17.1, Python 3.11, 500 members and 500
# others; FDIF and PDIF of the tenth, and the FDIF that is expected if ties are broken by lot:
#                                   members last    members first    by turns     by lot
#   all scores 1/2                   1.00  115.1    -1.00    0.0     .00  .7       .00
#   scores of 1 for 800 rows by lot   .23    7.5     -.23    0.0     .05  1.4      .00 to .02
# (how equal scores are laid is numpy's, and differs a little between processors).
# The package is installed without what it needs for its other parts, which want torch.
# Exits with another status than 0 if that changes.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q -c "$here/../constraints.txt" numpy==2.4.6 scikit-learn==1.9.1 scipy==1.17.1
"$folder/env/bin/pip" install -q --no-deps sacroml==2.0.1
cd "$folder"
env -u PYTHONPATH "$folder/env/bin/python" - <<'PY'
import sys
from fractions import Fraction
from importlib.metadata import version

import numpy as np
from sacroml.metrics import get_metrics

print(*(f"{name} {version(name)}" for name in ("sacroml", "numpy", "scikit-learn", "scipy")))
MEMBERS = 500
ORDERS = {
    "last": np.repeat([0, 1], MEMBERS),
    "first": np.repeat([1, 0], MEMBERS),
    "by turns": np.tile([0, 1], MEMBERS),
}


def share(scores, members, rows):
    """The expected share of members among the first rows, equal scores in an order by lot."""
    left, found = rows, Fraction(0)
    for value in np.unique(scores)[::-1]:
        group = members[scores == value]
        taken = min(left, len(group))
        found += taken * Fraction(int(group.sum()), len(group))
        left -= taken
    return found / rows


generator = np.random.default_rng(0)
sure = np.where(generator.permutation(2 * MEMBERS) < 800, 1.0, generator.random(2 * MEMBERS) / 2 + 0.4)
same = True
for kind, scores in (("all 1/2", np.full(2 * MEMBERS, 0.5)), ("800 at 1", sure)):
    gaps = {}
    for order, members in ORDERS.items():
        both = np.column_stack([1 - scores, scores])
        found, other = (get_metrics(both, members, permute_rows=on) for on in (True, False))
        same &= all(np.array_equal(found[name], other[name], equal_nan=True) for name in found)
        gaps[order] = found["FDIF01"]
        right = float(share(scores, members, 100) - share(-scores, members, 100))
        print(
            f"{kind}, members {order}: FDIF {gaps[order]:.2f}, PDIF {found['PDIF01']:.1f}, "
            f"AUC {found['AUC']:.3f}; by lot {right:.3f}"
        )
        same &= abs(right) < 0.12 and abs(found["AUC"] - 0.5) < 0.03
    # The scores are the same; how far apart the orders are is up to argsort, less so if all tie.
    same &= gaps["last"] - gaps["first"] > (0.5 if kind == "all 1/2" else 0.1)
sys.exit(not same)
PY
