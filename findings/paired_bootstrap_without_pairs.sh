#!/usr/bin/env bash
# deepsig 1.2.8 (deep-significance): bootstrap_test, documented as a paired bootstrap, draws the rows of
# the two models apart from each other, so that its p-value is that of two unpaired samples.
#
# A paired bootstrap draws rows, and takes both models' scores of each row that was drawn. Here scores
# of one model and scores of the other are drawn by two draws, and only the lengths must agree. Scores
# of one model before and after training go up and down together over rows, by far more than they
# differ: what is certain by pairs looks like chance. Where scores go against each other (rows that gain
# what others lose) p is too small instead. permutation_test of the same package swaps within rows and
# is right; so is the t-test of pairs.
#
# Seen with deepsig 1.2.8, numpy 2.4.6, scipy 1.17.1, Python 3.11, 200 rows, one-sided p of "a is better",
# 1,000 draws:
#                             bootstrap_test   permutation_test   rows drawn   t-test of pairs
#   a = b + .01, up and down together    .31               .001         .000             5e-7
#   a and b against each other           .02                .08          .08              .08
# Exits with another status than 0 if that changes.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q -c "$here/../constraints.txt" deepsig==1.2.8 numpy==2.4.6 scipy==1.17.1
cd "$folder"
env -u PYTHONPATH "$folder/env/bin/python" - <<'PY'
import sys
from importlib.metadata import version

import numpy as np
from deepsig import bootstrap_test, permutation_test
from scipy.stats import ttest_ind, ttest_rel

print(*(f"{name} {version(name)}" for name in ("deepsig", "numpy", "scipy")))
generator = np.random.default_rng(0)


def standard(count):
    """Normal numbers of mean 0 and standard deviation 1, exactly."""
    numbers = generator.normal(size=count)
    return (numbers - numbers.mean()) / numbers.std()


rows = 200
hard, noise = standard(rows), standard(rows)
noise -= (hard @ noise) / rows * hard
same = True
for name, a, b in (
    ("together", 0.51 + 0.2 * hard + 0.014 * noise, 0.5 + 0.2 * hard - 0.014 * noise),
    ("against each other", 0.54 + 0.2 * hard, 0.5 - 0.2 * hard),
):
    differences = a - b
    draws = generator.integers(rows, size=(10_000, rows))
    # The same rule as the package's: a mean of twice what was seen, or more.
    drawn = np.mean(differences[draws].mean(axis=1) >= 2 * differences.mean())
    paired = ttest_rel(a, b, alternative="greater").pvalue
    apart = ttest_ind(a, b, alternative="greater").pvalue
    bootstrap = bootstrap_test(a, b, num_samples=1000, seed=0)
    permutation = permutation_test(a, b, num_samples=1000, seed=0)
    print(
        f"{name}: bootstrap_test {bootstrap:.3f}, permutation_test {permutation:.3f}, rows drawn "
        f"{drawn:.3f}, t-test of pairs {paired:.1e}, of samples apart {apart:.3f}"
    )
    error = 4 * np.sqrt(0.25 / 1000)
    same &= abs(bootstrap - apart) < error and abs(permutation - paired) < error
    same &= abs(drawn - paired) < error and abs(bootstrap - drawn) > 0.04
sys.exit(not same)
PY
