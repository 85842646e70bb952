#!/usr/bin/env bash
# MLstatkit 0.1.91: DeLong's test of a score against itself has a p-value of 0, as has that of two attacks
# which are both perfect, or of a loss against its perplexity.
#
# Where the variance of the difference of two AUCs is 0, Delong_test draws bootstrap samples, all of whose
# differences are 0. The p-value is twice the smaller of the shares "<= 0" and "> 0", which are 1 and 0.
# z is 0 beside it, for which the two-sided p-value is 1; R's pROC, which the function is "aligned with",
# has z = 0 and p = 1 there. A score that ranks the rows in the same order is in the same case, such as
# exp(loss) for loss, as is an attack that finds every member before and after unlearning: a table says
# that unlearning changed it with p < 1e-3. Nothing warns; info says "bootstrap".
#
# Seen with MLstatkit 0.1.91, numpy 2.4.6, scipy 1.17.1, Python 3.11; 100 members, 100 others:
#   scores                             AUCs         z     p
#   loss, loss                         .66  .66     0     0
#   loss, exp(loss)                    .66  .66     0     0
#   two other scores, both perfect      1    1      0     0
#   loss, loss with noise of 1e-3      .66  .66     .41   .68
# Exits with another status than 0 if that changes.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q -c "$here/../constraints.txt" numpy==2.4.6 scipy==1.17.1 scikit-learn==1.9.1
"$folder/env/bin/pip" install -q --no-deps MLstatkit==0.1.91
cd "$folder"
env -u PYTHONPATH OMP_NUM_THREADS=1 "$folder/env/bin/python" - <<'PY'
import math
import sys
from importlib.metadata import version

import numpy as np
from MLstatkit import Delong_test

print(*(f"{name} {version(name)}" for name in ("MLstatkit", "numpy", "scipy", "scikit-learn")))
generator = np.random.default_rng(0)
labels = np.repeat([1, 0], 100)
loss = generator.normal(size=200) + labels / 2
perfect = [generator.random(200) + 2 * labels for _ in range(2)]
same = True
for what, first, second, equal in (
    ("loss, loss", loss, loss, True),
    ("loss, exp(loss)", loss, np.exp(loss), True),
    ("two other scores, both perfect", *perfect, True),
    ("loss, loss with noise of 1e-3", loss, loss + generator.normal(size=200) / 1000, False),
):
    z, p, _, _, *both, info = Delong_test(labels, first, second, n_boot=1000, random_state=0)
    by_hand = math.erfc(abs(z) / math.sqrt(2))
    print(f"{what}: AUCs {both[0]:.3f} {both[1]:.3f}, z {z:.3f}, p {p:.3f} ({info['method']}), p of z {by_hand:.3f}")
    same &= (both[0] == both[1] and z == 0 and p == 0 and by_hand == 1) if equal else abs(p - by_hand) < 1e-9
sys.exit(not same)
PY
