#!/usr/bin/env bash
# krippendorff 0.9.0: alpha of unsigned integers is another number than that of the same scores as signed
# ones: .33 in place of .80, as 4 and 5 are taken to be 255 apart in one direction and 1 in the other.
#
# The interval and ratio levels (interval is the default) take one score from the other before they turn
# to floats; in unsigned types 4 - 5 wraps around to 255 or 4294967295, and its square drowns what scores
# differ by: nearly the nominal alpha is left. Sums of the ratio level wrap around too, as do int8 differences
# above 127. A comment in the code counts unsigned integers among what it takes; nothing warns. Scores of
# judges or annotators that are kept small (a column of pandas' downcast="unsigned", polars' UInt8,
# torch's uint8) look as if the judges didn't agree. Marks of 0 and 1 are right, the factor cancels.
#
# Seen with krippendorff 0.9.0, numpy 2.4.6, Python 3.11, three judges who give 60 answers 1 to 5, at most 1
# off the truth:
#                 int64, float64, by hand    uint8     uint16 and larger
#   interval            .795                 .327      .332
#   ratio               .720                 .096      .102
#   ordinal             .791                 .791      .791
#   nominal             .332                 .332      .332
# Exits with another status than 0 if that changes.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q -c "$here/../constraints.txt" krippendorff==0.9.0 numpy==2.4.6
cd "$folder"
env -u PYTHONPATH "$folder/env/bin/python" -W error - <<'PY'
import sys
from fractions import Fraction
from importlib.metadata import version
from itertools import permutations

import numpy as np
from krippendorff import alpha

print(*(f"{name} {version(name)}" for name in ("krippendorff", "numpy")))
generator = np.random.default_rng(0)
truth = generator.integers(1, 6, 60)
scores = np.clip(truth + generator.integers(-1, 2, (3, 60)), 1, 5)


def by_hand(scores, apart):
    """1 - observed over expected difference, in fractions; each answer has all three scores."""
    answers = [[int(score) for score in answer] for answer in scores.T]
    every = [score for answer in answers for score in answer]
    observed = sum(apart(*two) for answer in answers for two in permutations(answer, 2))
    expected = sum(apart(*two) for two in permutations(every, 2))
    return float(1 - Fraction(observed, 2) * (len(every) - 1) / expected)


HAND = {
    "interval": lambda one, other: (one - other) ** 2,
    "ratio": lambda one, other: Fraction(one - other, one + other) ** 2,
    "nominal": lambda one, other: int(one != other),
}
SEEN = {"interval": (0.795, 0.327, 0.332), "ratio": (0.720, 0.096, 0.102)}
SEEN |= {"ordinal": (0.791,) * 3, "nominal": (0.332,) * 3}
same = True
for level, (right, small, large) in SEEN.items():
    found = {
        kind: float(alpha(scores.astype(kind), level_of_measurement=level))
        for kind in ("int64", "float64", "uint8", "uint16", "uint32", "uint64")
    }
    print(level, *(f"{kind} {value:.3f}" for kind, value in found.items()))
    if level in HAND:
        print(f"{level} by hand {by_hand(scores, HAND[level]):.3f}")
        same &= abs(by_hand(scores, HAND[level]) - found["int64"]) < 1e-12
    wanted = dict.fromkeys(found, large) | {"int64": right, "float64": right, "uint8": small}
    same &= all(abs(found[kind] - wanted[kind]) < 0.001 for kind in found)
marks = (scores > 3).astype("uint8")
same &= abs(alpha(marks) - alpha(marks.astype(int))) < 1e-12
sys.exit(not same)
PY
