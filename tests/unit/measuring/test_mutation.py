"""Faults that are put in on purpose: which there are, and that they reach what is loaded."""

import ast
import importlib.util
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "mutation"
SOURCE = '''
"""A page."""
LIMIT = 3


def first(rows, places=2):
    """Return them."""
    if len(rows) < places:
        raise ValueError(f"{1 + 1} rows")
    return rows[1:places] + [not rows]
'''


@pytest.fixture(scope="module")
def mutants():
    spec = importlib.util.spec_from_file_location("mutants", FOLDER / "mutants.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["mutants"] = module
    spec.loader.exec_module(module)
    return module.mutants_of("some.module", SOURCE)


def test_the_faults_of_a_module(mutants):
    found = {(one.place, one.change) for one in mutants}
    assert {
        ("", "3 -> 4 in LIMIT = 3"),
        ("", "3 -> 2 in LIMIT = 3"),
        ("first", "2 -> 1"),
        ("first", "len(rows) < places -> len(rows) <= places"),
        ("first", "len(rows) < places -> places < len(rows)"),
        ("first", "1:places -> :places in rows[1:places]"),
        ("first", "1:places -> 1: in rows[1:places]"),
        ("first", "not rows -> rows in [not rows]"),
    } <= found
    assert not any("raise" in change or "page" in change for _, change in found)


def test_each_is_one_change(mutants):
    whole = ast.unparse(ast.parse(SOURCE)).splitlines()
    for one in mutants:
        lines = ast.unparse(one.tree(SOURCE)).splitlines()
        changed = [line for line, before in zip(lines, whole, strict=True) if line != before]
        assert len(changed) == 1, one.name
