#!/usr/bin/env bash
# concept-erasure 0.2.4: LEACE erases nothing if the labels are rare or in small units, however well the
# concept can be read; nothing says so.
#
# The guarantee of LEACE is that no linear probe does better than a constant afterwards. What it erases
# are directions whose covariance with the labels, after whitening the states, is above svd_tol = 0.01;
# the labels themselves are not brought to a scale. That covariance is at most the labels' standard
# deviation: one row of 10,000 or less, or labels in units of a thousandth, lie below it altogether,
# and the eraser is the identity. The documentation of svd_tol speaks of traces of correlation that may
# be left. One author's tokens among those of a corpus are as rare. Multiply the labels by 100 and the
# same call erases the same concept; or fit on as many rows with it as without.
#
# Seen with concept-erasure 0.2.4, torch 2.13.0 (CPU), Python 3.11, float64, 100,000 states of 16 numbers,
# a concept that moves them by 12 in one direction, where they vary by .5 to 2; AUC of a linear probe
# before and after, and how much of the covariance with the labels is left:
#   half of the rows                     1.00   .50   nothing
#   8 rows                               1.00  1.00   all, states are bit for bit what they were
#   8 rows, labels times 100             1.00   .5    nothing
#   half of the rows, labels 0 or .001   1.00  1.00   all
# Exits with another status than 0 if that changes. Installs torch: where no GPU is needed, have pip
# find its CPU wheel, which is a tenth of the size.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q -c "$here/../constraints.txt" concept-erasure==0.2.4 torch==2.13.0 numpy==2.4.6
cd "$folder"
env -u PYTHONPATH CUDA_VISIBLE_DEVICES= "$folder/env/bin/python" - <<'PY'
import sys
from importlib.metadata import version

import torch
from concept_erasure import LeaceEraser

print(*(f"{name} {version(name)}" for name in ("concept-erasure", "torch")))
torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)
torch.manual_seed(0)
ROWS, WIDTH = 100_000, 16
mixing = torch.linalg.qr(torch.randn(WIDTH, WIDTH))[0] * torch.linspace(0.5, 2, WIDTH)
direction = torch.randn(WIDTH)
direction *= 12 / direction.norm()


def probe(states, marks):
    """Area under the curve of a least-squares probe of the marks."""
    centred = states - states.mean(0)
    weights = torch.linalg.lstsq(centred, (marks - marks.mean())[:, None]).solution
    ranks = (centred @ weights)[:, 0].argsort().argsort() + 1.0
    with_it = marks > 0
    count = int(with_it.sum())
    return float((ranks[with_it].sum() - count * (count + 1) / 2) / (count * (len(marks) - count)))


same = True
for name, with_it, unit, erased in (
    ("half of the rows", ROWS // 2, 1.0, True),
    ("8 rows of 100,000", 8, 1.0, False),
    ("8 rows, labels times 100", 8, 100.0, True),
    ("half of the rows, labels of .001", ROWS // 2, 0.001, False),
):
    marks = torch.zeros(ROWS)
    marks[:with_it] = 1
    states = torch.randn(ROWS, WIDTH) @ mixing + marks[:, None] * direction
    after = LeaceEraser.fit(states, marks[:, None] * unit)(states)
    covariance = ((after - after.mean(0)).T @ (marks - marks.mean())).norm() / ROWS
    asked = ((states - states.mean(0)).T @ (marks - marks.mean())).norm() / ROWS
    left = float(covariance / asked)
    before_auc, after_auc = probe(states, marks), probe(after, marks)
    moved = not torch.equal(after, states)
    print(
        f"{name}: AUC {before_auc:.3f}, then {after_auc:.3f}; covariance left {left:.1e}, "
        f"moved {moved}"
    )
    same &= before_auc > 0.999 and (left < 1e-6) == erased and moved == erased
    same &= (after_auc > 0.999) != erased
sys.exit(not same)
PY
