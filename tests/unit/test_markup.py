"""Data are never markup: what rows, names and answers hold appears as it is written."""

import html
import io
import re
import warnings

import pytest
from rich.console import Console

from etw_lightning.commands import entry
from etw_lightning.commands.cli import main
from etw_lightning.metrics import Metric
from etw_lightning.notices import as_markdown_text, printable
from etw_lightning.runs.results import print_metrics
from etw_lightning.runs.run_report import _sample_panel
from etw_lightning.schema import Record
from etw_lightning.sweeps.report import table

TEXTS = [
    "<script>alert(1)</script> <b>bold</b> &amp; &lt;i&gt;",
    '<img src="https://example.org/x.png" onerror="x()">',
    "[a link](https://example.org) ![an image](https://example.org/x.png) <https://example.org>",
    "**bold** _slanted_ `code` ~~gone~~ # head 1. item - item > said | cell | cell \\| \\*",
    "[bold red]rich[/bold red] $x^2$ {{ x }} https://example.org/a_b_c",
    "Ünïcödé 中文, 12 novels. She's here; 'so'.",
]


@pytest.mark.parametrize("text", TEXTS)
def test_a_panel_of_tensorboard_shows_what_is_written(text):
    """By what TensorBoard itself makes of the panel."""
    plugin_util = pytest.importorskip("tensorboard.plugin_util")
    row = Record("forget", "forget/0", text, question=text, generation=text)
    shown = plugin_util.markdown_to_safe_html(_sample_panel([row, row]))
    cells = re.findall(r"<td[^>]*>(.*?)</td>", shown, flags=re.DOTALL)
    assert len(cells) == 6
    for cell in cells:
        assert "<" not in cell
        assert html.unescape(cell).strip() == text


def test_what_steers_a_terminal_is_written_out():
    steered = "\x1b[2J\x1b]0;title\x07red\x9b31m\rover\x00\u202eturned"
    shown = printable(steered)
    assert shown == r"\x1b[2J\x1b]0;title\x07red\x9b31m\rover\x00\u202eturned"
    assert printable("line\n\ttab 中文 é") == "line\n\ttab 中文 é"
    assert "\x1b" not in as_markdown_text(steered)


def test_an_error_names_a_file_without_obeying_it(capsys, monkeypatch):
    name = "a\x1b[31m.yaml"
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    with warnings.catch_warnings():
        assert main(["sweep", "plan", "--config", name]) == 2
    said = capsys.readouterr().err
    assert "\x1b" not in said
    assert r"\x1b[31m" in said


def test_a_table_of_the_terminal_shows_names_as_they_are():
    """Names of own sets and metrics: no colour, no link, no title of the window."""
    sets = ["[red]mine[/red]", "\x1b]0;title\x07his"]
    own = "[link=https://example.org]own\x1b[2J[/link]"
    found = {f"{one}_probability": Metric(0.25, "up", 4) for one in sets}
    stream = io.StringIO()
    console = Console(file=stream, width=200, force_terminal=True)
    print_metrics({"model": found | {own: Metric(0.5, "up", 4)}}, sets, console)
    shown = re.sub(r"\x1b\[[0-9;]*m", "", stream.getvalue())
    assert "\x1b" not in shown
    assert "\x07" not in shown
    for name in ("[red]mine[/red]", r"\x1b]0;title\x07his", own.replace("\x1b", r"\x1b")):
        assert name in shown, shown


@pytest.mark.parametrize("words", [["explain"], ["configs"], ["export", "--checkpoint"], []])
def test_every_command_names_what_it_refuses_without_obeying_it(capsys, words):
    assert entry.main([*words, "a\x1b[31m"]) == 2
    said = capsys.readouterr().err
    assert "\x1b" not in said
    assert said.startswith("error: ")


def test_a_report_shows_names_as_they_are():
    lines = table(["a|b"], [["<img src=x>"], ["![x](https://example.org)"], ["\x1b[31m"]])
    assert lines[0] == r"| a\|b |"
    assert lines[2:] == [r"| &lt;img src=x> |", r"| ![x]\(https://example.org) |", r"| \x1b[31m |"]
