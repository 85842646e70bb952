"""Lines for a person: broken between words in a terminal, whole where a program reads them."""

import sys

import pytest

from etw_lightning.notices import for_screen, hanging

LINE = "scored: forget 40 rows, retain 80 rows, world_facts 24 rows"


@pytest.mark.parametrize("is_terminal", [False, True])
def test_lines_are_broken_for_a_terminal_alone(monkeypatch, is_terminal):
    monkeypatch.setenv("COLUMNS", "30")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: is_terminal)
    broken = ["scored: forget 40 rows, retain", "  80 rows, world_facts 24 rows", "  end"]
    assert for_screen(f"{LINE}\n  end").split("\n") == (broken if is_terminal else [LINE, "  end"])


def test_an_error_is_broken_if_errors_go_to_a_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False)
    assert for_screen(LINE, is_error=True) == LINE
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert for_screen(LINE, is_error=True) == for_screen(LINE) != LINE


def test_a_path_longer_than_the_terminal_stays_whole():
    path = "runs/quickstart/etw-altpo-lambda0.05/worst_rows.md"
    assert hanging(f"worst rows: {path}", 20).split("\n") == ["worst rows:", f"  {path}"]
