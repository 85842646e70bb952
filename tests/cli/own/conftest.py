"""Own rows in the current folder, and commands that are run to their end on them."""

import json

import pytest

from etw_lightning.scoring.retain_results import load_records


@pytest.fixture
def rows(home, corpus, write_rows):
    """Own rows in the current folder: 4 to forget, 5 to keep, 3 of which no model knows."""
    parts = {
        "forget": corpus["forget_perturbed"][:4],
        "retain": corpus["retain"][:5],
        "unseen": corpus["full"][-3:],
    }
    for name, part in parts.items():
        write_rows(home / f"{name}.jsonl", part)
    return parts


@pytest.fixture
def own(own_args, rows):
    """What own rows need on the command line, of ``fit`` or of ``evaluate``."""
    return own_args


@pytest.fixture
def run(command, home):
    """Run a command to its end; return what it printed, its results and its records."""

    def call(name, *args, into="out"):
        folder = home / into
        result = command(name, *args, f"--output_dir={folder}")
        assert (result.status, result.err) == (0, ""), result.err
        return result.out, json.loads((folder / "results.json").read_text()), load_records(folder)

    return call
