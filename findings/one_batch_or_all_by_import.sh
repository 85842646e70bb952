#!/usr/bin/env bash
# lightning 2.6.6 after spaCy 3.8.18: the command line reads `--trainer.limit_train_batches 1`, one batch,
# as 1.0, which is all of them.
#
# Lightning annotates the argument Optional[Union[int, float]]: a whole number is a number of batches, one
# with a point a share of them. Python's typing keeps one object of two unions that differ in order alone,
# the one that was made first, and jsonargparse tries the members in that object's order. spaCy is among
# the libraries that make Optional[Union[float, int]]; imported before Lightning, its order is Lightning's
# too, and every whole number is read as one with a point. The trainer takes 2.0 for 2 batches again, but 1
# is the whole of an epoch (and `limit_val_batches 1`, meant for a quick look, a whole evaluation). A typed
# setting so depends on the order of imports, as of a sorted import block or of the files that a test run
# collects first.
#
# Seen with lightning 2.6.6, jsonargparse 4.53.0, spacy 3.8.18, torch 2.13.0, Python 3.11, what
# the trainer has for `--trainer.limit_train_batches 1` and `2`:
#   nothing imported before: 1 / 2
#   spacy imported before: 1.0 / 2
# Exits with another status than 0 if that changes.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q -c "$here/../constraints.txt" \
    torch==2.13.0 lightning==2.6.6 jsonargparse==4.53.0 docstring_parser typeshed_client spacy==3.8.18
cd "$folder"
cat >read.py <<'PY'
import sys

if sys.argv[1:]:
    __import__(sys.argv[1])

from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser


def read(typed: str) -> object:
    parser = LightningArgumentParser()
    parser.add_lightning_class_args(Trainer, "trainer")
    given = parser.parse_args(["--trainer.limit_train_batches", typed])
    return Trainer(limit_train_batches=given.trainer.limit_train_batches).limit_train_batches


print(read("1"), "/", read("2"))
PY
plain() { env -u PYTHONPATH "$folder/env/bin/python" read.py "$@" 2>/dev/null; }
"$folder/env/bin/python" -c "
from importlib.metadata import version
print(*(f'{name} {version(name)}' for name in ('lightning', 'jsonargparse', 'spacy', 'torch')))"
alone=$(plain)
after=$(plain spacy)
echo "nothing imported before: $alone"
echo "spacy imported before: $after"
[ "$alone" = "1 / 2" ] && [ "$after" = "1.0 / 2" ]
