"""The page of what can go wrong: each kind names a test that holds it, and there is one."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "what_can_go_wrong.md").read_text()
#: Rows of the tables but those of libraries, which name a program instead.
ROWS = [
    line
    for part in PAGE.split("\n## ")[1:]
    if not part.startswith("In the libraries")
    for line in part.splitlines()
    if line.startswith("| ") and not line.startswith(("| what goes wrong", "| ---"))
]


def test_each_kind_is_there_once():
    assert len(ROWS) > 75
    kinds = [row.split(" | ")[0] for row in ROWS]
    assert len(set(kinds)) == len(kinds)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[2:40].strip())
def test_each_kind_names_a_test_that_there_is(row):
    cells = row.strip("| ").split(" | ")
    assert len(cells) == 4, "what, how, check, test"
    found = re.fullmatch(r"`(tests/[\w/]+\.py)::(test_\w+)`", cells[-1])
    assert found is not None, cells[-1]
    path, name = found.groups()
    assert re.search(rf"^def {name}\(", (ROOT / path).read_text(), re.MULTILINE)


def test_each_finding_in_a_library_names_its_program():
    part = PAGE.split("\n## In the libraries")[1]
    programs = re.findall(r"`(findings/\w+\.sh)`", part)
    assert programs
    assert all((ROOT / program).is_file() for program in programs)
