"""The programs under ``tests/benchmarks``, which are no package."""

import importlib
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def program():
    """Import one of them by its name."""
    folder = str(Path(__file__).resolve().parents[2] / "benchmarks")
    sys.path.insert(0, folder)
    yield importlib.import_module
    sys.path.remove(folder)
