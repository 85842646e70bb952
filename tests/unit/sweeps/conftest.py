"""The file of a sweep, where its runs and methods can be found."""

from pathlib import Path

import pytest
import yaml
from swept import BASE


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write a sweep's file, changed in some keys, where its runs and methods can be found."""
    monkeypatch.chdir(tmp_path)
    methods = Path("configs/method")
    methods.mkdir(parents=True)
    for path in (Path("run.yaml"), *(methods / f"{name}.yaml" for name in ("etw", "ga", "npo"))):
        path.write_text("model: {}\n")

    def call(**changes):
        Path("sweep.yaml").write_text(yaml.safe_dump({**BASE, **changes}, sort_keys=False))
        return "sweep.yaml"

    return call
