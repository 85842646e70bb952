#!/usr/bin/env bash
# datasets 5.2.0: load_dataset("json") makes points in time of texts, if all texts of a column look
# like dates.
#
# A JSON string is a text, but pyarrow's reader takes a column whose every string has the form of
# ISO 8601 for time stamps, and datasets hands that on: the answers "1958-01-02" and "1999-12-31"
# come back as datetime objects, and written out as text they say "1958-01-02 00:00:00". One row of
# another form, and all stay texts; so a part of a data set (only the questions of birthdays, a first
# hundred rows, one file of several) has another type than the whole, and two parts that should be
# joined don't fit. Python's json and .csv of datasets give texts. With declared features
# (Features(answer=Value("string"))) the texts come back with the time of day that was never there.
#
# Seen with datasets 5.2.0, pyarrow 26.0.1, Python 3.11, answers of a file of two rows:
#   "1958-01-02", "1999-12-31"              timestamp[s]   datetime(1958, 1, 2, 0, 0), ...
#   "1958-01-02 10:11", "1999-12-31 00:00"  timestamp[s]
#   "1958-01-02", "Rome"                    string
#   "007", "1e5"                            string
# Exits with another status than 0 if that changes.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q -c "$here/../constraints.txt" datasets==5.2.0 pyarrow==26.0.1
cd "$folder"
env -u PYTHONPATH HF_HOME="$folder/cache" HF_HUB_OFFLINE=1 "$folder/env/bin/python" - <<'PY'
import json
import sys
from importlib.metadata import version
from pathlib import Path

import datasets
from datasets import Features, Value, load_dataset

datasets.disable_progress_bars()
print(*(f"{name} {version(name)}" for name in ("datasets", "pyarrow")))
SEEN = {
    ("1958-01-02", "1999-12-31"): "timestamp[s]",
    ("1958-01-02 10:11", "1999-12-31 00:00"): "timestamp[s]",
    ("1958-01-02", "Rome"): "string",
    ("007", "1e5"): "string",
}


def read(number, answers, **further):
    path = Path(f"rows{number}.jsonl")
    path.write_text("".join(json.dumps({"answer": answer}) + "\n" for answer in answers))
    return load_dataset("json", data_files=str(path), split="train", **further)


same = True
for number, (answers, kind) in enumerate(SEEN.items()):
    rows = read(number, answers)
    print(f"{rows.features['answer'].dtype:14} {answers} {rows['answer'][:]}")
    same &= rows.features["answer"].dtype == kind
declared = read("declared", ("1958-01-02", "1999-12-31"), features=Features(answer=Value("string")))
print("declared as texts:", declared["answer"][:])
same &= declared["answer"][:] == ["1958-01-02 00:00:00", "1999-12-31 00:00:00"]
sys.exit(not same)
PY
