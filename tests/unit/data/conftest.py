"""What tests of kept rows share."""

import pytest

from etw_lightning.data import encode_many, kept_rows


@pytest.fixture
def small_sets(monkeypatch, tmp_path):
    """Have sets of more than a few rows kept, in a cache of the test's own."""
    monkeypatch.setattr(kept_rows, "SMALL", 20)
    monkeypatch.setattr(encode_many, "TOGETHER", 16)
    monkeypatch.setattr("etw_lightning.data.stored_rows._TOGETHER", 8)
    monkeypatch.setenv("ETW_CACHE", str(tmp_path / "cache"))
