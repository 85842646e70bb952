#!/usr/bin/env bash
# datasets 5.2.0, pandas 3.1.1: to_json writes a probability of 3e-12 as 0.0, and one of 3e-20 as 3e-20.
#
# Dataset.to_json hands its rows to pandas, which writes ten digits after the point: what lies between
# 1e-15 and 5e-11 becomes 0.0, and what is smaller than 1e-15 is written in full, with its exponent
# (open as pandas issue 23328). The order of rows turns, and logarithms and ratios are infinite for
# those in between alone. The probabilities of unlearned answers lie there, and of their tokens.
# Losses lose digits as well. double_precision=15, the most that is taken, still cuts below 1e-14;
# Python's json and to_parquet keep all of it.
#
# Seen with datasets 5.2.0, pandas 3.1.1, Python 3.11; written and read by Python's json:
#                        Dataset.to_json   the same, double_precision=15   json.dumps
#   3e-08                3e-08             3e-08                           3e-08
#   3e-12                0.0               3e-12                           3e-12
#   1.4e-15              0.0               1e-15                           1.4e-15
#   3e-20                3e-20             3e-20                           3e-20
#   0.123456789012345    0.123456789       0.123456789012345               0.123456789012345
# Exits with another status than 0 if that changes.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q -c "$here/../constraints.txt" datasets==5.2.0 pandas==3.1.1
cd "$folder"
env -u PYTHONPATH HF_HOME="$folder/home" HF_HUB_OFFLINE=1 "$folder/env/bin/python" - <<'PY'
import json
import sys
from importlib.metadata import version
from pathlib import Path

import datasets

datasets.disable_progress_bars()
NUMBERS = [3e-8, 3e-12, 1.4e-15, 3e-20, 0.123456789012345]
SEEN = {
    "": [3e-8, 0.0, 0.0, 3e-20, 0.123456789],
    "double_precision=15": [3e-8, 3e-12, 1e-15, 3e-20, 0.123456789012345],
}
print(*(f"{name} {version(name)}" for name in ("datasets", "pandas")))
rows = datasets.Dataset.from_dict({"probability": NUMBERS})
rows.to_parquet("rows.parquet")
same = json.loads(json.dumps(NUMBERS)) == NUMBERS
same &= datasets.Dataset.from_parquet("rows.parquet", cache_dir="cache")["probability"][:] == NUMBERS
for setting, seen in SEEN.items():
    rows.to_json("rows.jsonl", **({"double_precision": 15} if setting else {}))
    lines = Path("rows.jsonl").read_text().splitlines()
    found = [json.loads(line)["probability"] for line in lines]
    print(*found, setting)
    same &= found == seen
sys.exit(not same)
PY
