"""Fixtures shared by all tests."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of the benchmark data and reference logs; skips where there is none."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("ETW_DATA") or beside)
    if not folder.is_dir():
        pytest.skip("no benchmark data: set ETW_DATA to the folder that holds tofu/ and muse_news/")
    return folder
