#!/usr/bin/env bash
# zlib-ng 2.3 and ISA-L compress most short texts to another number of bytes than zlib 1.2 does, at
# the same default level: membership scores "loss over zlib bytes" rank rows otherwise.
#
# The zlib score of a row (Carlini et al. 2021) divides its loss by the length of its compressed
# text. The format fixes what is decompressed, not how small it gets. zlib-ng stands in for zlib in
# several Linux distributions and in CPython's own builds for Windows from 3.14 on, so the same call
# of zlib.compress gives another length there. An answer of 70 to 110 letters becomes some 90 bytes,
# of which 3 are 3 %: as much as the scores of two rows are often apart.
#
# Seen with zlib 1.2.13 (Python 3.11), zlib-ng 1.1.0 (2.3.3 of the library) and isal 1.9.1, on 256
# sentences of one pattern, bytes more or less than zlib's:
#   zlib-ng: 158 sentences differ, by -3 to 4      isal: 152 differ, by -2 to 3
# Of those with another length the order of two sentences can turn; all decompress to the sentence.
# Exits with another status than 0 if fewer than a quarter of the sentences differ, or none by 3 %.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q zlib-ng==1.1.0 isal==1.9.1
cd "$folder"
env -u PYTHONPATH "$folder/env/bin/python" - <<'PY'
import sys
import zlib
from importlib.metadata import version

from isal import isal_zlib
from zlib_ng import zlib_ng

NAMES = ("Amelia", "Basil", "Carmen", "Dunstan", "Elias", "Farah", "Goran", "Hanna")
TOWNS = ("Lisbon", "Kuwait", "Nairobi", "Bergen", "Quito", "Osaka", "Tunis", "Perth")
BOOKS = ("The Salt Road", "A Quiet Year", "Letters to the Harbour", "What the River Kept")
rows = [
    f"{name} was born in {town} and is best known for '{book}', a novel about the people of {town}."
    for name in NAMES
    for town in TOWNS
    for book in BOOKS
]


def sizes(library):
    packed = [library.compress(row.encode()) for row in rows]
    assert [zlib.decompress(one).decode() for one in packed] == rows
    return [len(one) for one in packed]


print("zlib", zlib.ZLIB_RUNTIME_VERSION, "zlib-ng", version("zlib-ng"), "isal", version("isal"))
plain = sizes(zlib)
changed = True
for name, library in (("zlib-ng", zlib_ng), ("isal", isal_zlib)):
    apart = [other - own for own, other in zip(plain, sizes(library), strict=True)]
    share = max(abs(one) / own for one, own in zip(apart, plain, strict=True))
    print(
        f"{name}: {sum(one != 0 for one in apart)} of {len(rows)} differ, by {min(apart)} to "
        f"{max(apart)} bytes, up to {share:.1%}"
    )
    changed &= sum(one != 0 for one in apart) >= len(rows) / 4
    changed &= name == "isal" or share >= 0.03
sys.exit(not changed)
PY
