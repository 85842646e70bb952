#!/usr/bin/env bash
# irrCAC 0.4.4: the p-value of Brennan-Prediger's agreement from raw ratings is half of what it should be:
# .03 where the 95 % interval beside it holds 0, and chance agreement is "significant" twice as often.
#
# raw.CAC's other coefficients (gwet, fleiss, conger, krippendorff) and table.CAC's bp have the two-sided
# p-value, twice the tail of t beyond z; raw.CAC's bp has the tail alone, of |z| whatever the sign, so
# it is no one-sided test either: two annotators who agree less than chance pass it as well. The package is
# a port of R's irrCAC, whose page shows .00024 for its ratings by four raters; here it is .00012, and the
# package's own tests hold the half. Brennan-Prediger is taken where one class is rare and kappa is low: which
# words of a forget set are to be forgotten, which answers still tell. Values, errors and intervals are right.
#
# Seen with irrCAC 0.4.4, numpy 1.26.4, scipy 1.12.0, pandas 2.3.3, Python 3.11, two annotators who mark half
# of 40 words each and agree on 26: .30 by all but the last, 95 % from -.01 to .61
#   p-value     raw: bp   gwet, fleiss, conger   table: bp   t-test of the 40 agreements
#   26 agree     .028     .057                   .054        .057
#   14 agree     .028     .057                               .057
#   p < .05 by chance (binomial, 40 words): bp .081, twice its p-value .038
# Exits with another status than 0 if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q irrCAC==0.4.4 numpy==1.26.4 scipy==1.12.0 pandas==2.3.3
cd "$folder"
env -u PYTHONPATH "$folder/env/bin/python" -W ignore - <<'PY'
import sys
from importlib.metadata import version

import numpy as np
import pandas as pd
from irrCAC import raw, table
from irrCAC.datasets import raw_4raters
from scipy import stats

print(*(f"{name} {version(name)}" for name in ("irrCAC", "numpy", "scipy", "pandas")))
WORDS = 40
first = np.array([1, 0] * (WORDS // 2))


def marks(agree):
    second = np.where(np.arange(WORDS) < agree, first, 1 - first)
    return pd.DataFrame({"first": first, "second": second})


def near(value, right):
    return abs(value - right) < 0.0006


same = True
for agree in (26, 14):
    ratings = marks(agree)
    raters = raw.CAC(ratings, categories=[0, 1])
    found = {name: getattr(raters, name)()["est"] for name in ("bp", "gwet", "fleiss", "conger")}
    for name, values in found.items():
        low, high = values["confidence_interval"]
        print(
            f"{agree} of {WORDS} agree, raw {name}: {values['coefficient_value']:.2f}, "
            f"95 % {low:.3f} to {high:.3f}, z {values['z']:.3f}, p {values['p_value']:.4f}"
        )
        same &= near(abs(values["coefficient_value"]), 0.3) and low < 0 < high
    agreements = np.where(np.arange(WORDS) < agree, 1, -1)
    by_hand = stats.ttest_1samp(agreements, 0).pvalue
    print(f"t-test of the agreements: p {by_hand:.4f}")
    same &= near(by_hand, 0.0567) and near(found["bp"]["p_value"], 0.0283)
    same &= all(near(found[name]["p_value"], by_hand) for name in ("gwet", "fleiss", "conger"))
ratings = marks(26)
counted = table.CAC(pd.crosstab(ratings["first"], ratings["second"])).bp()["est"]
print(f"table bp: {counted['coefficient_value']:.2f}, p {counted['p_value']:.4f}")
same &= near(counted["p_value"], 0.0538)

once = twice = 0.0
for agree in range(WORDS + 1):
    found = raw.CAC(marks(agree), categories=[0, 1]).bp()["est"]["p_value"]
    chance = stats.binom.pmf(agree, WORDS, 0.5)
    once += chance * (found < 0.05)
    twice += chance * (2 * found < 0.05)
print(f"p < .05 by chance: {once:.3f}, twice the p-value {twice:.3f}")
same &= near(once, 0.0807) and near(twice, 0.0385)

four = raw.CAC(raw_4raters()).bp()["est"]["p_value"]
print(f"four raters: p {four:.7f}, by the page of R's package 0.0002376")
same &= abs(2 * four - 0.0002375609) < 1e-8
sys.exit(not same)
PY
