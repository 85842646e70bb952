#!/usr/bin/env bash
# polars 2.1.0: read_ndjson drops a field that first stands in row 101 or later, without a word.
#
# The columns are those of the first 100 rows (infer_schema_length, 100 by default). A field that comes
# later is left out of the frame, for read_ndjson and scan_ndjson alike, though a text in a column of
# numbers is refused with an error, and so is one in a field that was null for 100 rows. Files of
# unlearning put rows of several kinds behind each other: forget rows first, then those that have
# wrong answers, a second answer or marks of what is private. Read like this the later ones lose
# them, and look like rows that never had any. infer_schema_length=None reads all fields.
#
# Seen with polars 2.1.0, Python 3.11, rows {"question": ...} and one last row that also has "alternate":
#   rows before it          99           100          100, the field null    100, a text for a number
#   read_ndjson             2 columns    1 column     error                  error
#   scan_ndjson             2 columns    1 column     error                  error
#   infer_schema_length=None: 2 columns
# Exits with another status than 0 if that changes.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q -c "$here/../constraints.txt" polars==2.1.0
cd "$folder"
env -u PYTHONPATH "$folder/env/bin/python" - <<'PY'
import json
import sys
import warnings
from importlib.metadata import version
from pathlib import Path

import polars

TWO = ["question", "alternate"]


def row(number, **more):
    return {"question": f"Who wrote book {number}?", **more}


def columns(read, rows, **settings):
    Path("rows.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            return read("rows.jsonl", **settings).lazy().collect().columns
        except polars.exceptions.PolarsError as error:
            return type(error).__name__


last = row(100, alternate="Nobody.")
early = [*map(row, range(99)), last]
late = [*map(row, range(100)), last]
null = [*(row(number, alternate=None) for number in range(100)), last]
other = [*(row(number, alternate=1) for number in range(100)), last]
print("polars", version("polars"))
same = True
for read in (polars.read_ndjson, polars.scan_ndjson):
    for name, rows, seen in (("99", early, TWO), ("100", late, TWO[:1]), ("null", null, 0), ("number", other, 0)):
        found = columns(read, rows)
        print(read.__name__, name, found)
        same &= found == seen if seen else isinstance(found, str)
    found = columns(read, late, infer_schema_length=None)
    print(read.__name__, "100, infer_schema_length=None", found)
    same &= found == TWO
sys.exit(not same)
PY
